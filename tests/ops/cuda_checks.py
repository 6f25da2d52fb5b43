"""The operators on a GPU against their references in float64 on the CPU; see benchmarks/gpu.sh.

Usage: cuda_checks.py [--small]. Needs no pytest and no Detectron2.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from detnas_d2 import ops
from detnas_d2.ops import reference

TOLERANCE = {torch.float32: 5e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


def convert(value: object, device: str, dtype: torch.dtype, wide: torch.dtype) -> object:
    if isinstance(value, Tensor):
        kind = dtype if value.dim() == 4 else wide
        return value.detach().to(device, kind).requires_grad_()
    if isinstance(value, (list, tuple)):
        return [convert(v, device, dtype, wide) for v in value]
    return value


def check(name: str, dtype: torch.dtype, args: tuple, gradients: bool = True) -> None:
    args = convert(convert(args, "cpu", dtype, torch.float32), "cpu", torch.float64, torch.float64)
    fast = convert(args, "cuda", dtype, torch.float32)
    expected = tensors(getattr(reference, name)(*args))
    actual = tensors(getattr(ops, name)(*fast))
    pairs = list(zip(actual, expected, strict=True))
    if gradients:
        outputs = [(a, e) for a, e in pairs if a.requires_grad]
        grads = [torch.randn_like(e) for _, e in outputs]
        want = torch.autograd.grad([e for _, e in outputs], tensors(args), grads)
        cast = [g.to(a.device, a.dtype) for g, (a, _) in zip(grads, outputs, strict=True)]
        got = torch.autograd.grad([a for a, _ in outputs], tensors(fast), cast)
        pairs += zip(got, want, strict=True)
    for i, (a, e) in enumerate(pairs):
        error = (a.double().cpu() - e.double()).abs().max() / e.abs().max().clamp(min=1e-3)
        if not error < TOLERANCE[dtype]:
            raise SystemExit(f"{name} {dtype}, result {i} of shape {tuple(a.shape)}: {error:.2g}")


def run(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    n, c, h, w = shape
    x, y = torch.randn(shape), torch.randn(shape)
    a, b = torch.randn(c), torch.randn(c)
    check("bn_stats", dtype, (x, a, b, True))
    check("pointwise_conv", dtype, (x, torch.randn(24, c, 1, 1) / c, a, b, True, None, False, True))
    check("pointwise_conv", dtype, (x, torch.randn(24, c, 1, 1) / c, a, b, True, torch.randn(24)))
    for k, stride, dilation in ((3, 1, 1), (5, 2, 1), (7, 1, 1), (7, 2, 3), (3, 1, 2)):
        taps = torch.randn(c, 1, k, k) / k
        check("depthwise_conv", dtype, (x, taps, a, b, True, None, False, True, stride, dilation))
    for method in (0, 1, 2) if c % 2 == 0 else (0,):
        for split in (False, True) if method else (False,):
            check("shuffle_concat", dtype, (x, y, a, b, b, a, True, True, method, split))
    check("mixed_sum", dtype, ([x, y], [a, b], [b, a], torch.randn(2), x))


def check_graph() -> None:
    """A captured graph replays the operators: none of them synchronises."""
    x = torch.randn(2, 32, 24, 24, device="cuda").contiguous(memory_format=torch.channels_last)
    taps = torch.randn(32, 1, 5, 5, device="cuda")
    run_once = lambda: ops.depthwise_conv(x, taps, want_stats=True)  # noqa: E731
    run_once()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y, stats = run_once()
    x.normal_()
    graph.replay()
    expected, expected_stats = run_once()
    assert torch.equal(y, expected) and torch.equal(stats.m2, expected_stats.m2)


def main() -> None:
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    shapes = [(1, 5, 7, 9), (2, 32, 9, 11)]
    if "--small" not in sys.argv:
        shapes += [(1, 1, 1, 1), (2, 64, 56, 40), (1, 160, 20, 30), (1, 1728, 5, 5)]
    for dtype in TOLERANCE:
        for shape in shapes:
            run(shape, dtype)
        print(f"{dtype}: ok", flush=True)
    check_graph()
    print("graph: ok")


if __name__ == "__main__":
    main()
