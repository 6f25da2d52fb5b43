"""Blocks by kernel and stage: section 4.4 of DetNAS."""

from __future__ import annotations

from detnas_d2.drawing import KernelCounts, count_kernels
from detnas_d2.drawing.counts import shallow_and_deep
from detnas_d2.search_space import get_space

SMALL = get_space("detnas_small")


def test_released_network_has_the_paper_s_counts() -> None:
    """Section 4.4: eight blue (3x3) blocks in stages 3 and 4, six of them Xception."""
    path = SMALL.path("2 1 2 0 / 2 1 1 2 / 3 3 1 3 0 0 3 1 / 3 1 3 2")
    stages = count_kernels(SMALL.layers, path.ops)
    shallow, deep = shallow_and_deep(stages)
    assert deep == KernelCounts({3: 8, 5: 3, 7: 1}, xception=6)
    assert shallow == KernelCounts({3: 1, 5: 3, 7: 4})
    assert stages[2] == KernelCounts({3: 6, 5: 2}, xception=4)
    assert str(deep) == "8 of 3x3 (6 Xception), 3 of 5x5, 1 of 7x7"


def test_skipped_layers_and_other_operations() -> None:
    space = get_space("detnas_demo")
    path = space.path("3x3 skip / 7x7 skip ir_k5_e3_d1 / 3x3 7x7 3x3 / conv_k3 skip")
    shallow, deep = shallow_and_deep(count_kernels(space.layers, path.ops))
    assert shallow == KernelCounts({3: 1, 5: 1, 7: 1}, skipped=2)
    assert str(deep) == "3 of 3x3, 1 of 7x7, 1 skipped"
    assert str(KernelCounts()) == "none"
