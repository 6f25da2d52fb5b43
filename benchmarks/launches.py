"""Kernels that the operators for CUDA launch: of a call, and of forwards of the 300M backbone.

    python benchmarks/launches.py [--json] [--size 320x480]

Needs no GPU, but g++ on x86-64: the operators for CUDA run on the emulator of ``tests/emulator``
(compiled first, which takes minutes), where launches are counted and nothing is computed. float32,
TF32 allowed, as torch is by default: the way of 16-bit maps too.

What torch launches is counted by its operators, inside of ours too: one launch each, none for views
and allocations, for lists (``_foreach_*``) as many as torch's limit of tensors in a launch makes. A
library may launch more for one operator, so that those figures are lower bounds.

    recalibration   batch statistics, without gradients
    recalibration of 10 batches   in one forward, each with its own statistics
    training        the forward pass of a training step, running statistics included
    evaluation      BatchNorms folded into the weights

A forward is counted when it has run once before: what is made once and kept is not in it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import traffic
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.ops.fuzz import load  # noqa: E402  (of the repository)
from tests.ops.sanitized import EMULATED, run_checked  # noqa: E402

BATCHES = 10
SIZE, SMALL = "320x480", "64x96"  # all strides divide both: maps grow as images do
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Counter(TorchDispatchMode):
    """Launches by operator.

    Attributes:
        calls: of every operator that launches something, or calls one that does.
        launches: of every operator itself, not of those it calls.
        nodes: what they read, write and multiply, in their order.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self._library = library
        self._inner = 0  # launches of operators called by the one that runs
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.launches: defaultdict[str, int] = defaultdict(int)
        self.nodes: list[traffic.Node] = []

    @property
    def total(self) -> int:
        return sum(self.launches.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "detnas_d2":
            return self._ours(func, args, kwargs)
        if func._can_decompose():  # made of other operators on every device
            with self:
                return func.decompose(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        count = traffic.of_torch(func, name, args)
        result = func(*args, **kwargs)
        if count:
            self.calls[f"aten::{name}"] += 1
            self.launches[f"aten::{name}"] += count
            self._keep(func, name, count, args, kwargs, result)
        return result

    def _keep(self, func, name: str, count: int, args: tuple, kwargs: dict, result) -> None:
        if name in ("shuffle_block", "shuffle_block_packed"):  # launches, and maps between them
            inside = traffic.block_launches(*_block_arguments(name, args))
            if len(inside) != count:
                raise RuntimeError(f"{name}: {count} launches, {len(inside)} are known")
            self.nodes += inside
            return
        counts = traffic.multiply_adds(func, args, kwargs, result)
        inputs, outputs = traffic.tensors((args, kwargs)), traffic.tensors(result)
        self.nodes.append(traffic.node_of(name, count, inputs, outputs, *counts))

    def _ours(self, func, args: tuple, kwargs: dict) -> object:
        before, outer = self._library.detnas_launches(), self._inner
        self._inner = 0
        with self:  # what it calls is counted too
            result = func.redispatch(CPU, *args, **kwargs)
        all_of_it = self._library.detnas_launches() - before
        own, self._inner = all_of_it - self._inner, outer + all_of_it
        name = func._schema.name.split("::")[1]
        self.calls[name] += 1
        self.launches[name] += own
        if own:
            self._keep(func, name, own, args, kwargs, result)
        return result


def _block_arguments(name: str, args: tuple) -> tuple:
    """Of an operator of blocks, for :func:`traffic.block_launches`."""
    if name == "shuffle_block":
        x, weights, biases, kernel, stride, _ = args
        return x, None, weights, biases, kernel, stride
    x, right, weights, _, biases, kernel, stride, _, out_method = args
    return x, right, weights, biases, kernel, stride, out_method


@contextmanager
def only_counting(library: ctypes.CDLL):
    library.detnas_only_count(1)
    try:
        yield
    finally:
        library.detnas_only_count(0)


def counted(library: ctypes.CDLL, run: Callable[[], object]) -> Counter:
    """Counts of ``run`` where it has run before."""
    with only_counting(library):
        run()
        with Counter(library) as counter:
            run()
    return counter


def forwards(library: ctypes.CDLL, size: str) -> dict[str, Counter]:
    """Of the 300M backbone."""
    from backbone import build

    from detnas_d2.layers.batch_norm_mode import use_batch_statistics
    from detnas_d2.layers.fused_shuffle import fused_forward

    net = build("cpu")["ours"]
    x = torch.rand(1, 3, *map(int, size.split("x")))
    batches = x.repeat(BATCHES, 1, 1, 1)
    stages = {i for i, layer in enumerate(net.space.layers) if layer.stride == 2} - {0}

    def without_gradient() -> None:
        with torch.no_grad():
            net(x)

    def of_batches() -> None:
        wanted = {*stages, len(net.blocks)}  # as without_gradient
        with torch.no_grad():
            fused_forward(net.stem, net.blocks, None, batches, wanted, batches=BATCHES)

    found = {}
    with use_batch_statistics(net):
        found["recalibration"] = counted(library, without_gradient)
        found[f"recalibration of {BATCHES} batches"] = counted(library, of_batches)
    net.train()
    found["training"] = counted(library, lambda: net(x))
    net.eval()
    found["evaluation"] = counted(library, without_gradient)
    return found


def stock(size: str) -> dict[str, list[traffic.Node]]:
    """What the modules of the 300M backbone launch, without operators and autocast."""
    from backbone import build

    net = build("cpu")["eager channels_last"]
    x = torch.rand(1, 3, *map(int, size.split("x"))).contiguous(memory_format=torch.channels_last)
    found = {}
    for name, training, recorded in (
        ("recalibration", True, False),
        ("training", True, True),
        ("evaluation", False, False),
    ):
        net.train(training)
        with torch.set_grad_enabled(recorded), traffic.Trace() as trace:
            net(x)
        found[name] = trace.nodes
    return found


def traffic_of(library: ctypes.CDLL | None, size: str = SMALL) -> dict[str, dict[str, list]]:
    """Launches of forwards as functions of pixels, for ``benchmarks/device_model.py``: by way and
    forward. Without a library only of those ways that need none."""
    h, w = map(int, size.split("x"))
    both, pixels = (size, f"{2 * h}x{w}"), (h * w, 2 * h * w)
    eager = [stock(size) for size in both]
    ways: dict[str, list[dict]] = {
        "eager": eager,
        "torch.compile": [{k: traffic.fused(v) for k, v in found.items()} for found in eager],
    }
    if library is not None:
        counted_at = (forwards(library, size) for size in both)
        ways["ours"] = [{k: v.nodes for k, v in found.items()} for found in counted_at]
    return {
        way: {name: traffic.lines(first[name], second[name], pixels) for name in eager[0]}
        for way, (first, second) in ways.items()
    }


def operators(library: ctypes.CDLL) -> dict[str, int]:
    """Of one call of every operator, and of its gradient, on maps of some size."""
    from detnas_d2 import ops

    torch.manual_seed(0)
    n, c, h, w = 2, 64, 40, 60

    def image(channels: int = c) -> Tensor:
        x = torch.randn(n, channels, h, w).contiguous(memory_format=torch.channels_last)
        return x.requires_grad_()

    def vector() -> Tensor:
        return torch.rand(c).requires_grad_()

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape).requires_grad_()

    x, y, a, b, d, e = image(), image(), vector(), vector(), vector(), vector()
    square, taps = weight(c, c, 1, 1), weight(c, 1, 5, 5)
    pending, stats = (a, b, True), ops.bn_stats(x.detach())
    leaf = ops.BNStats(stats.count, stats.mean.requires_grad_(), stats.m2.requires_grad_())
    eight = [image() for _ in range(8)]
    scales, shifts = ([vector() for _ in eight] for _ in range(2))
    shares = torch.rand(8).requires_grad_()
    norm = {"gamma": d, "beta": e, "eps": 1e-5}
    cases: dict[str, Callable[[], object]] = {
        "bn_stats": lambda: ops.bn_stats(x, *pending),
        "bn_stats of 8 maps": lambda: ops.bn_stats(eight, *pending),
        "bn_stats_fold": lambda: ops.bn_stats_fold(x, *pending, **norm),
        "bn_fold": lambda: ops.bn_fold(leaf, d, e, 1e-5),
        "pointwise_conv with statistics": lambda: ops.pointwise_conv(
            x, square, *pending, want_stats=True
        ),
        "pointwise_conv_bn": lambda: ops.pointwise_conv_bn(x, square, *pending, **norm),
        "pointwise_conv with bias and ReLU": lambda: ops.pointwise_conv(
            x, square, bias=a, out_relu=True
        ),
        "depthwise_conv with statistics": lambda: ops.depthwise_conv(
            x, taps, *pending, want_stats=True
        ),
        "depthwise_conv_bn": lambda: ops.depthwise_conv_bn(x, taps, *pending, **norm),
        "depthwise_conv with bias": lambda: ops.depthwise_conv(x, taps, bias=a),
        "mixed_depthwise of 8 with statistics": lambda: ops.mixed_depthwise(
            eight, [taps] * 8, scales, shifts, True, True
        ),
        "shuffle_concat": lambda: ops.shuffle_concat(x, y, a, b, d, e, True, True, 2, True),
        "mixed_sum of 8": lambda: ops.mixed_sum(eight, scales, shifts, shares, x),
    }
    found = {}
    for name, run in cases.items():
        with torch.no_grad():
            found[name] = counted(library, run).total
        with only_counting(library):
            outputs = [t for t in traffic.tensors(run()) if t.requires_grad]
            grads = [torch.randn_like(t) for t in outputs]
            inputs = leaves(outputs)
            with Counter(library) as counter:
                torch.autograd.grad(outputs, inputs, grads)
        found[f"{name}, its gradient"] = counter.total
    return found | blocks(library)


def blocks(library: ctypes.CDLL) -> dict[str, int]:
    """Of a shuffle block in evaluation, alone and between others, and in recalibration."""
    from detnas_d2 import ops
    from tests.ops.compare import block

    found = {}
    for name, kernel, stride in (
        ("5x5, stride 1", 5, 1),
        ("5x5, stride 2", 5, 2),
        ("xception, stride 1", 0, 1),
        ("xception, stride 2", 0, 2),
    ):
        weights, biases = block(64, kernel, stride)
        x, *halves = (
            torch.randn(2, c, 40, 60).contiguous(memory_format=torch.channels_last)
            for c in (64, 32, 32)
        )
        left, right = halves if stride == 1 else (x, None)
        folded = (x, weights, biases, kernel, stride, 2)
        eps = [1e-5] * len(weights)
        rest = (weights, biases, biases, eps, kernel, stride, 2)
        args = (left, right, None, None, False, *rest)
        chained = (left, weights, biases, kernel, stride, 2, [], right, 2)
        for what, op, arguments in (
            ("shuffle_block", ops.shuffle_block, folded),
            ("shuffle_block of a chain", ops.shuffle_block, chained),
            ("shuffle_block_stats", ops.shuffle_block_stats, args),
        ):
            with torch.no_grad():
                found[f"{what}, {name}"] = counted(library, partial(op, *arguments)).total
    return found


def leaves(outputs: list[Tensor]) -> list[Tensor]:
    """What the outputs are differentiated by."""
    found, seen, todo = [], set(), [t.grad_fn for t in outputs]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [parent for parent, _ in node.next_functions]
    return found


def count(path: str, size: str) -> dict:
    """The figures, in a process with the emulated library in the place of detnas_d2._C."""
    load(path)
    library = ctypes.CDLL(path)
    nets = forwards(library, size)
    result: dict = {name: counter.total for name, counter in nets.items()}
    result["ops"] = operators(library)
    result["kernels"] = traffic_of(library)
    result["by operator"] = {
        name: {
            op: [counter.calls[op], launches] for op, launches in sorted(counter.launches.items())
        }
        for name, counter in nets.items()
    }
    return result


def table(found: dict) -> str:
    lines = []
    for name, rows in found["by operator"].items():
        lines.append(f"{name} forward of the 300M backbone: {found[name]} launches")
        lines += [f"  {op}: {n} in {calls} calls" for op, (calls, n) in rows.items() if n]
    lines.append("one call of")
    lines += [f"  {name}: {n}" for name, n in found["ops"].items()]
    return "\n".join(lines)


def found(size: str = SIZE) -> dict:
    """The figures, by a process of their own."""
    done = run_checked(__file__, "--library", str(EMULATED.build()), "--size", size)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--size", default=SIZE, help="of the images, one in the batch")
    parser.add_argument("--library", help=argparse.SUPPRESS)  # the process that counts
    args = parser.parse_args()
    if args.library:
        print(json.dumps(count(args.library, args.size)))
        return
    counts = found(args.size)
    print(json.dumps(counts) if args.json else table(counts))


if __name__ == "__main__":
    main()
