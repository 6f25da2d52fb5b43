"""What calls of operators cost the host, guarded by counts, and by shares of what modules cost."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """Operators that Python calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func._schema.name.removeprefix("aten::").removeprefix("detnas_d2::")] += 1
        return func(*args, **(kwargs or {}))


def frames(function: Callable[[], object]) -> int:
    """Functions of this package that run for a call."""
    count = 0

    def seen(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and "/detnas_d2/" in frame.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@pytest.fixture
def host(benchmark_module):
    torch.manual_seed(0)
    return benchmark_module("host")


def counted(function: Callable[[], object]) -> tuple[dict[str, int], int]:
    """Operators and functions of a call that has run before."""
    function()
    with Dispatched() as seen:
        function()
    return dict(seen.names), frames(function)


# Operators that a call makes of its own, with gradients, and the most functions: without autocast,
# with it; each with and without gradients.
CASTS = {"pointwise_conv": 2, "depthwise_conv": 2, "mixed_depthwise of two": 4}
DETACHED = {**CASTS, "bn_stats": 1, "bn_stats of two": 1}
FRAMES = {
    "pointwise_conv": (10, 8, 19, 17),
    "depthwise_conv": (10, 8, 19, 17),
    "shuffle_concat": (10, 8, 11, 9),
    "bn_stats": (10, 8, 11, 9),
    "bn_stats of two": (25, 8, 26, 9),
    "bn_fold": (10, 8, 11, 9),
    "mixed_depthwise of two": (31, 9, 46, 24),
    "mixed_sum of two": (21, 8, 22, 9),
    "F.conv2d": (0, 0, 0, 0),
}


def test_calls(host) -> None:
    """One operator, the casts of maps and weights under autocast, and as few functions as now."""
    cases = host.cases("cpu")
    assert cases.keys() == FRAMES.keys()
    for name, case in cases.items():
        ways = host.ways(case)
        most = iter(FRAMES[name])
        for way, recorded in itertools.product(("float32", "autocast"), (True, False)):
            function, autocast = ways[way]
            with (
                torch.set_grad_enabled(recorded),
                torch.autocast("cpu", host.LOW) if autocast else nullcontext(),
            ):
                operators, functions = counted(function)
            own = {"F.conv2d": "convolution", "bn_stats of two": "bn_stats_list"}
            expected = {own.get(name, name.removesuffix(" of two")): 1}
            if autocast and name in CASTS:
                expected["_to_copy"] = CASTS[name]
            if recorded and name in DETACHED:
                expected["detach"] = DETACHED[name]
            assert operators == expected, (name, way, recorded)
            assert functions <= next(most), (name, way, recorded)


# Of the modules' processor time, by half more than it is.
SHARES = {"recalibration": 0.5, "evaluation": 0.6, "training": 0.9}


def test_backbones(host) -> None:
    """Operators do not keep the host for as long as the modules that they replace."""
    named = host.backbone("cpu")
    assert named.keys() == SHARES.keys()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for mode, ways in named.items():
            found = dict(zip(ways, host.measured(ways, "cpu", 5, 1), strict=True))
            assert found["operators"] < SHARES[mode] * found["modules"], (mode, found)
    finally:
        torch.set_num_threads(threads)


def test_running_statistics(host) -> None:
    """Operators for all BatchNorms together, none for each."""
    ways = {name: way for name, (way, _) in host.running_statistics("cpu").items()}
    operators, functions = counted(ways["at once"])
    assert operators == {"_foreach_add_": 1, "_foreach_div": 1, "_foreach_lerp_": 1}
    assert functions <= 790  # nine for each
    operators, _ = counted(ways["one by one"])
    assert sum(operators.values()) == 5 * len(host.CHANNELS)
