from __future__ import annotations

from collections import Counter

from detnas_d2.engine import UniformPathSampler
from detnas_d2.search_space import SPACES

SMALL = SPACES["detnas_small"]
PATH_0 = (
    "7x7 5x5 5x5 xception / 3x3 3x3 7x7 xception / 3x3 5x5 5x5 5x5 xception 7x7 3x3 7x7"
    " / 3x3 3x3 5x5 xception"
)
PATH_123456 = (
    "xception 7x7 3x3 xception / xception xception 7x7 7x7 / "
    "7x7 7x7 xception 3x3 xception 7x7 3x3 5x5 / 5x5 xception 7x7 xception"
)


def test_a_path_depends_on_seed_and_iteration_alone() -> None:
    sampler = UniformPathSampler(SMALL, 3)
    forwards = [sampler(i) for i in range(50)]
    assert [UniformPathSampler(SMALL, 3)(i) for i in reversed(range(50))] == forwards[::-1]
    assert len(set(forwards)) == 50
    assert all(UniformPathSampler(SMALL, 4)(i) != path for i, path in enumerate(forwards))


def test_sequence_is_that_of_earlier_versions() -> None:
    # Checkpoints of interrupted trainings rely on it.
    assert str(UniformPathSampler(SMALL, 0)(0)) == PATH_0
    assert str(UniformPathSampler(SMALL, 7)(123_456)) == PATH_123456


def test_choices_are_uniform() -> None:
    sampler = UniformPathSampler(SMALL, 0)
    counts = Counter((layer, c) for i in range(2000) for layer, c in enumerate(sampler(i)))
    assert len(counts) == 80
    # 500 expected, standard deviation 19.4.
    assert all(400 < count < 600 for count in counts.values())
