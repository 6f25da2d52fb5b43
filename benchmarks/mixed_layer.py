#!/usr/bin/env python
"""Memory saved for the backward pass and time of a mixed layer: kept, checkpointed, recomputed.

    python benchmarks/mixed_layer.py --channels 96 --size 40 60 --images 2 --repeats 5

Eight inverted residuals. Prints MiB that autograd saves (parameters left out), the median CPU time
of forward and backward pass, its ratio to keeping all activations (the naive sum) in the same round
(median and range over the rounds, which run all three in turn), and how often the running
statistics of BatchNorm were updated.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from detnas_d2.layers import get_norm
from detnas_d2.modeling.mixed_block import MixedBlock
from detnas_d2.search_space.operations import BODY_RULES, build_operation
from detnas_d2.utils.timing import in_turns

OPS = (
    "ir_k3_e3_d1",
    "ir_k3_e6_d1",
    "ir_k3_e6_d2",
    "ir_k5_e3_d1",
    "ir_k5_e6_d1",
    "ir_k5_e6_d2",
    "ir_k7_e3",
    "ir_k7_e6",
)


def build(channels: int, *, recompute: bool) -> MixedBlock:
    torch.manual_seed(0)
    norm = partial(get_norm, "BN")
    return MixedBlock(
        OPS,
        lambda op: build_operation(op, channels, channels, stride=1, norm=norm, rules=BODY_RULES),
        recompute=recompute,
    )


def checkpointed(block: MixedBlock, x: Tensor, weights: Tensor) -> Tensor:
    terms = [
        checkpoint(block.candidates[op], x, use_reentrant=False) * weight
        for op, weight in zip(OPS, weights.unbind(), strict=True)
    ]
    return sum(terms[1:], terms[0])


def saved_bytes(block: MixedBlock, run: Callable[[], Tensor]) -> int:
    own = {p.untyped_storage()._cdata for p in block.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--size", type=int, nargs=2, default=(40, 60))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    x = torch.randn(args.images, args.channels, *args.size, requires_grad=True)
    weights = torch.full((len(OPS),), 1 / len(OPS), requires_grad=True)
    blocks = {name: build(args.channels, recompute=name == "recomputed")
              for name in ("kept", "checkpointed", "recomputed")}  # fmt: skip
    runs = {
        name: partial(checkpointed, block) if name == "checkpointed" else block
        for name, block in blocks.items()
    }

    def cpu_seconds(name: str) -> float:
        start = time.process_time()  # other work on the machine disturbs it less
        runs[name](x, weights).sum().backward()
        return time.process_time() - start

    # The first round warms up.
    times = dict(zip(runs, in_turns(cpu_seconds, list(runs), args.repeats + 1), strict=True))
    memory = {n: saved_bytes(blocks[n], partial(run, x, weights)) for n, run in runs.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}")
    print(" ".join(["benchmarks/mixed_layer.py", *sys.argv[1:]]))
    for name in runs:
        updates = blocks[name].candidates[OPS[0]].expand.norm.num_batches_tracked.item()
        ratios = sorted(a / b for a, b in zip(times[name][1:], times["kept"][1:], strict=True))
        print(
            f"{name:<14}{memory[name] / 2**20:>8.1f} MiB, "
            f"{memory['kept'] / memory[name]:.0f}x less   "
            f"{1e3 * statistics.median(times[name][1:]):.0f} ms, ratio "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            f"   statistics updated {updates} times in {args.repeats + 2} steps"
        )


if __name__ == "__main__":
    main()
