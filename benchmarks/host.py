"""Host time of operators and of a backbone on tiny maps; JSON lines.

    python benchmarks/host.py [--quick] [--device cuda] [--output FILE]

CPU time of the calling thread per call, in microseconds: what Python, autograd, casts, dispatch and
launches cost, which a GPU waits for where maps are small. On the CPU the kernels are part of it.
The ways of a call take turns, 20 calls at a time; a figure is the lower quartile of their times:

    float32     without autocast
    bfloat16    without autocast, maps and weights cast before
    autocast    to bfloat16, which casts them
    by hand     without autocast, cast in front of every call
    registered  autocast, with the kernels for autocast and autograd that PyTorch's dispatcher has

"ratio" is that to the first way of a case. Running statistics: of the 87 BatchNorms of the 300M
backbone, at once and one by one. The 300M backbone: of an image of 64x64, through its modules (in
evaluation with BatchNorms folded into the convolutions too) and through the operators, which hardly
multiply there (0.02 G multiply-adds).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.layers.batch_statistics import BatchNorms
from detnas_d2.utils.timing import in_turns

CALLS, FORWARDS = 20, 2  # of a sample
LOW = torch.bfloat16
CHANNELS = [16] * 2 + [64] * 21 + [160] * 18 + [320] * 27 + [640] * 19  # 87 BatchNorms

# A function of detnas_d2.ops and its arguments; the operator and what it takes.
Case = tuple[Callable[..., object], list, Callable[..., object], list]
Way = tuple[Callable[[], object], bool]  # a call, and whether it is under autocast


def cases(device: str) -> dict[str, Case]:
    c, library = 8, torch.ops.detnas_d2
    x, y = (
        torch.randn(1, c, 2, 2).to(device, memory_format=torch.channels_last).requires_grad_()
        for _ in range(2)
    )
    weight, taps = (
        torch.randn(s, device=device, requires_grad=True) for s in ((c, c, 1, 1), (c, 1, 3, 3))
    )
    a, b = (torch.rand(c, device=device, requires_grad=True) for _ in range(2))
    stats = ops.bn_stats(x.detach())
    fold, share = [a, b, 1e-5], torch.rand(2, device=device)

    def same(function: Callable, operator: Callable, *args: object) -> Case:
        return function, list(args), operator, list(args)

    return {
        "pointwise_conv": same(
            ops.pointwise_conv, library.pointwise_conv.default,
            x, weight, a, b, True, None, False, True, 1,
        ),
        "depthwise_conv": same(
            ops.depthwise_conv, library.depthwise_conv.default,
            x, taps, a, b, True, None, False, True, 1, 1,
        ),
        "shuffle_concat": same(
            ops.shuffle_concat, library.shuffle_concat.default,
            x, y, None, None, a, b, False, True, 2, True,
        ),
        "bn_stats": same(ops.bn_stats, library.bn_stats.default, x, a, b, True),
        "bn_stats of two": same(ops.bn_stats, library.bn_stats_list.default, [x, y], a, b, True),
        "bn_fold": (ops.bn_fold, [stats, *fold], library.bn_fold.default, [*stats, *fold]),
        "mixed_depthwise of two": same(
            ops.mixed_depthwise, library.mixed_depthwise.default,
            [x, y], [taps, taps], [a, a], [b, b], True, True, 1, [1, 1],
        ),
        "mixed_sum of two": same(
            ops.mixed_sum, library.mixed_sum.default, [x, y], [a, a], [b, b], share, None
        ),
        "F.conv2d": same(F.conv2d, F.conv2d, x, weight),
    }  # fmt: skip


def low(value: object) -> object:
    """Maps and weights in bfloat16, as autocast casts them."""
    if isinstance(value, Tensor):
        return value.to(LOW) if value.dim() == 4 else value
    return [low(v) for v in value] if isinstance(value, list) else value


def leaves(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    return [leaves(v) for v in value] if isinstance(value, list) else value


def ways(case: Case) -> dict[str, Way]:
    function, args, operator, raw = case
    cast = [leaves(low(a)) for a in args]
    return {
        "float32": (lambda: function(*args), False),
        "bfloat16": (lambda: function(*cast), False),
        "autocast": (lambda: function(*args), True),
        "by hand": (lambda: function(*map(low, args)), False),
        "registered": (lambda: operator(*raw), True),
    }


def microseconds(way: Way, device: str, calls: int = CALLS) -> float:
    """CPU time of this thread, of one of several calls."""
    function, autocast = way
    if device == "cuda":
        torch.cuda.synchronize()
    with torch.autocast(device, LOW) if autocast else nullcontext():
        start = time.thread_time()
        for _ in range(calls):
            function()
        return (time.thread_time() - start) * 1e6 / calls


def measured(named: dict[str, Way], device: str, rounds: int, calls: int = CALLS) -> list[float]:
    """Microseconds of every way."""
    alternatives = list(named.values())
    sample = partial(microseconds, device=device, calls=calls)
    in_turns(sample, alternatives, 3)
    return [measure.lower_quartile(row) for row in in_turns(sample, alternatives, rounds)]


def compare(
    report: measure.Report, case: str, named: dict[str, Way], rounds: int, calls: int = CALLS,
    **extra: object,
) -> None:  # fmt: skip
    """One record per way; the first is what the others are compared to."""
    found = measured(named, report.args.device, rounds, calls)
    for way, us in zip(named, found, strict=True):
        ratio = round(us / found[0], 2)
        report.write({"case": case, "way": way, "us": round(us, 1), "ratio": ratio, **extra})


def backbone(device: str) -> dict[str, dict[str, Way]]:
    """Forward passes of the 300M backbone, and training steps, by modules and by operators."""
    from backbone import build, step

    nets = build(device)
    x = torch.rand(1, 3, 64, 64, device=device)
    both = {"modules": nets["eager NCHW"], "operators": nets["ours"]}
    trained = copy.deepcopy(both)
    third = {"folded modules": nets["folded BN NCHW"]}

    def evaluation(net: nn.Module) -> None:
        with torch.no_grad():
            net(x)

    def recalibration(net: nn.Module) -> None:
        with use_batch_statistics(net):
            evaluation(net)

    found = {"recalibration": (recalibration, both), "evaluation": (evaluation, both | third)}
    for net in both.values():
        net.eval()
    found["training"] = partial(step, x=x), trained
    return {
        case: {way: (partial(run, net), False) for way, net in of.items()}
        for case, (run, of) in found.items()
    }


def running_statistics(device: str) -> dict[str, Way]:
    norms = [nn.BatchNorm2d(c).to(device) for c in CHANNELS]
    seen = [ops.bn_stats(torch.randn(1, c, 2, 2, device=device)) for c in CHANNELS]

    def together() -> None:
        batch = BatchNorms()
        for norm, stats in zip(norms, seen, strict=True):
            batch.consume(norm, stats, 4)
        batch.update()

    @torch.no_grad()
    def each() -> None:
        for norm, stats in zip(norms, seen, strict=True):
            norm.num_batches_tracked.add_(1)
            n = (
                max(stats.count.item() - 1, 1)
                if device == "cpu"
                else (stats.count - 1).clamp(min=1)
            )
            norm.running_mean.lerp_(stats.mean, norm.momentum)
            norm.running_var.lerp_(stats.m2 / n, norm.momentum)

    return {"at once": (together, False), "one by one": (each, False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output", type=Path, help="append the JSON lines to this file, too")
    args = parser.parse_args()
    report = measure.Report("host", args)
    torch.set_num_threads(1)
    rounds = 20 if args.quick else 200
    for name, case in cases(args.device).items():
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded):
                compare(report, name, ways(case), rounds, gradients=recorded)
    for name, named in backbone(args.device).items():
        compare(report, f"300M backbone, {name}", named, rounds // 2, FORWARDS)
    compare(
        report,
        "running statistics",
        running_statistics(args.device),
        rounds // 10,
        norms=len(CHANNELS),
    )


if __name__ == "__main__":
    main()
