"""Operators against eager PyTorch, contiguous and channels_last, one JSON object per line.

    python benchmarks/ops.py [--quick] [--threads 1 2] [--device cuda] [--compile] [--only NAME]

Shapes are those of the four stages of the 300M backbone (half of the channels) at 320 x 480 and
800 x 1216; on a GPU the latter with a batch of 16, larger than its cache, in bfloat16. 3x3
convolutions, on CPUs alone, have those of a box head and of pyramid levels. "ideal_ms"
is what the bytes that an operator must move take at the measured bandwidth of a large copy, or its
multiply-adds at the rate of the fastest matrix product, whichever is more; a tensor that is still
in a cache from the run before beats the former. "share_of_copy_bandwidth" is of the bytes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import device_model
import measure
import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
import traffic
from device_model import Kernel
from torch import Tensor

from detnas_d2 import ops

STAGES = {"320x480": [(32, 80, 120), (80, 40, 60), (160, 20, 30), (320, 10, 15)]}
STAGES["800x1216"] = [(c, h * 5 // 2, w * 304 // 120) for c, h, w in STAGES["320x480"]]

# Maps (N, C, H, W): batches of the two sizes.
BATCHES = {"cpu": {"320x480": 1, "800x1216": 1}, "cuda": {"320x480": 1, "800x1216": 16}}

# Maps of 3x3 convolutions: a box head with 1,000 proposals, levels of a pyramid.
DENSE = [(1000, 256, 7, 7), (1, 256, 80, 80), (1, 256, 40, 40), (1, 256, 20, 20), (1, 64, 80, 80)]

# Name, ours, baselines, bytes that must be moved, multiply-adds.
Shape = tuple[int, int, int, int]
Case = tuple[str, Callable[[], object], dict[str, Callable[[], object]], int, int]


def cl(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def affine_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.relu(x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1))


def eager_shuffle(left: Tensor, right: Tensor, scale: Tensor, shift: Tensor) -> tuple:
    y = torch.cat((left, affine_relu(right, scale, shift)), 1)
    return y[:, 0::2].clone(), y[:, 1::2].clone()


def layouts(f: Callable, *maps: Tensor) -> dict[str, Callable[[], object]]:
    nchw = [m.contiguous() for m in maps]
    return {"eager NCHW": lambda: f(*nchw), "eager channels_last": lambda: f(*maps)}


def forward_cases(shape: Shape, device: str, dtype: torch.dtype) -> Iterator[Case]:
    n, c, h, w = shape
    like = {"device": device, "dtype": dtype}
    x, y = (cl(torch.randn(n, c, h, w, **like)) for _ in range(2))
    scale, shift = (torch.rand(c, device=device) + 0.5 for _ in range(2))
    size = x.numel() * x.element_size()
    mean, var = torch.zeros(c, device=device), torch.ones(c, device=device)
    norm = layouts(lambda t: F.batch_norm(t, mean, var, scale, shift, True), x)
    norm["batch_norm_update_stats channels_last"] = lambda: torch.batch_norm_update_stats(
        x, mean, var, 0.1
    )
    yield "bn_stats", lambda: ops.bn_stats(x), norm, size, 0
    yield (
        "shuffle_concat",
        lambda: ops.shuffle_concat(x, y, None, None, scale, shift, False, True, 2, True),
        layouts(lambda a, b: eager_shuffle(a, b, scale.to(dtype), shift.to(dtype)), x, y),
        4 * size,
        0,
    )
    maps = [cl(torch.randn(n, c, h, w, **like)) for _ in range(8)]
    weights = torch.rand(8, device=device)

    def eager_sum(*ys: Tensor) -> Tensor:
        return summed(ys, [scale.to(dtype)] * 8, [shift.to(dtype)] * 8, weights.to(dtype))

    yield (
        "mixed_sum of 8",
        lambda: ops.mixed_sum(maps, [scale] * 8, [shift] * 8, weights),
        layouts(eager_sum, *maps),
        9 * size,
        8 * x.numel(),
    )
    weight = torch.randn(c, c, 1, 1, **like)
    yield (
        "pointwise_conv with affine, ReLU, statistics",
        lambda: ops.pointwise_conv(x, weight, scale, shift, True, want_stats=True),
        layouts(
            lambda t: F.batch_norm(
                F.conv2d(affine_relu(t, scale.to(dtype), shift.to(dtype)), weight),
                mean, var, scale, shift, True,
            ),
            x,
        ),
        2 * size,
        c * x.numel(),
    )  # fmt: skip
    for k in (3, 5, 7):
        taps = torch.randn(c, 1, k, k, **like)
        yield (
            f"depthwise_conv {k} with affine, ReLU, statistics",
            lambda taps=taps: ops.depthwise_conv(x, taps, scale, shift, True, want_stats=True),
            layouts(
                lambda t, taps=taps, k=k: F.batch_norm(
                    F.conv2d(
                        affine_relu(t, scale.to(dtype), shift.to(dtype)), taps, None, 1, k // 2,
                        1, c,
                    ),
                    mean, var, scale, shift, True,
                ),
                x,
            ),
            2 * size,
            k * k * x.numel(),
        )  # fmt: skip


def dense_case(shape: tuple[int, int, int, int]) -> Case:
    n, c, h, w = shape
    x, weight, bias = cl(torch.randn(shape)), torch.randn(c, c, 3, 3), torch.randn(c)
    products = 36 * n * -(-h // 4) * -(-w // 4) * c * c  # as many as Winograd's tiles have
    return (
        "conv3x3 with bias, ReLU",
        lambda: ops.conv3x3(x, weight, bias, True),
        layouts(lambda t: F.relu_(F.conv2d(t, weight, bias, padding=1)), x),
        2 * x.numel() * x.element_size(),
        products,
    )


def summed(ys: Sequence, scales: Sequence, shifts: Sequence, weights: Tensor) -> Tensor:
    affine = [
        a.view(1, -1, 1, 1) * y + b.view(1, -1, 1, 1)
        for y, a, b in zip(ys, scales, shifts, strict=True)
    ]
    return sum(w * t for w, t in zip(weights, affine, strict=True))


def gradient(f: Callable, leaves: list[Tensor], grads: Sequence[Tensor]) -> Callable[[], object]:
    """The backward pass of ``f``, whose forward has run once."""
    outputs = f(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


def pixelwise_backward_cases(
    shape: Shape, device: str, dtype: torch.dtype, with_compile: bool
) -> Iterator[Case]:
    """Gradients of shuffles and mixed sums; baselines differentiate eager or compiled code."""
    n, c, h, w = shape
    like = {"device": device, "dtype": dtype}
    maps = [cl(torch.randn(n, c, h, w, **like)).requires_grad_() for _ in range(8)]
    vectors = [torch.rand(c, device=device, requires_grad=True) for _ in range(16)]
    weights = torch.rand(8, device=device, requires_grad=True)
    grads = [cl(torch.randn(n, c, h, w, **like)) for _ in range(2)]
    size = maps[0].numel() * maps[0].element_size()

    def shuffle(left: Tensor, right: Tensor, a: Tensor, b: Tensor) -> tuple:
        return ops.shuffle_concat(left, right, None, None, a, b, False, True, 2, True)

    def eager_shuffle_of(left: Tensor, right: Tensor, a: Tensor, b: Tensor) -> tuple:
        return eager_shuffle(left, right, a.to(dtype), b.to(dtype))

    def mixed(*leaves: Tensor) -> Tensor:
        return ops.mixed_sum(leaves[:8], leaves[8:16], leaves[16:24], leaves[24])

    def eager_mixed(*leaves: Tensor) -> Tensor:
        low = [t.to(dtype) for t in leaves[8:]]
        return summed(leaves[:8], low[:8], low[8:16], low[16])

    cases = [
        ("shuffle_concat backward", shuffle, eager_shuffle_of, [*maps[:2], *vectors[:2]], grads, 5),
        ("mixed_sum of 8, backward", mixed, eager_mixed, [*maps, *vectors, weights], grads[:1], 17),
    ]
    for name, ours, eager, leaves, g, moved in cases:
        with torch.enable_grad():
            functions = {"eager channels_last": gradient(eager, leaves, g)}
            if with_compile:
                compiled = torch.compile(eager)
                functions["torch.compile channels_last"] = gradient(compiled, leaves, g)
            own = gradient(ours, leaves, g)
        yield name, own, functions, moved * size, 0


def backward_cases(shape: Shape, device: str, dtype: torch.dtype) -> Iterator[Case]:
    n, c, h, w = shape
    for k, dilation in ((3, 1), (5, 1), (7, 1), (3, 3), (5, 2)):
        x = cl(torch.randn(n, c, h, w, device=device, dtype=dtype))
        taps = torch.randn(c, 1, k, k, device=device, dtype=dtype)
        grad = cl(torch.randn_like(x))
        pad = (k - 1) // 2 * dilation

        def eager(t, g, taps=taps, pad=pad, d=dilation):
            return torch.ops.aten.convolution_backward(
                g, t, taps, None, [1, 1], [pad, pad], [d, d], False, [0, 0], c, [True, True, False]
            )

        def ours(x=x, grad=grad, taps=taps, d=dilation):
            return torch.ops.detnas_d2.depthwise_conv_backward(
                grad, None, None, x, taps, None, None, False, None, None, False, 1, d,
                [True, True, False],
            )  # fmt: skip

        size = 3 * x.numel() * x.element_size()
        yield (
            f"depthwise_conv_backward {k}, dilation {dilation}",
            ours,
            layouts(eager, x, grad),
            size,
            2 * k * k * x.numel(),
        )


def cases_of(shape: Shape, device: str, dtype: torch.dtype, with_compile: bool) -> Iterator[Case]:
    """One at a time: the memory of a case is free before the next."""
    for name, ours, baselines, size, multiply_adds in forward_cases(shape, device, dtype):
        if with_compile:
            torch.compiler.reset()  # else the ninth shape runs eagerly
            compiled = torch.compile(baselines["eager channels_last"])
            baselines = {**baselines, "torch.compile channels_last": compiled}
        yield name, ours, baselines, size, multiply_adds
    # One library call, of which torch.compile makes the same.
    yield from backward_cases(shape, device, dtype)
    torch.compiler.reset()
    yield from pixelwise_backward_cases(shape, device, dtype, with_compile)


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases with this in their name")
    args = parser.parse_args()
    measure.keep_memory(args.device == "cpu" and not args.page_faults)
    functorch_config.donated_buffer = False  # a compiled gradient runs many times here
    report = measure.Report("ops", args)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    # On a GPU the quick cases have large maps: small ones measure launches.
    quick = "800x1216" if args.device == "cuda" else "320x480"
    sizes = [quick] if args.quick else list(STAGES)
    repetitions = 10 if args.quick else 30
    failures: list[str] = []
    for threads in args.threads if args.device == "cpu" else [1]:
        torch.set_num_threads(threads)
        limits = report.roofline(threads)
        for size in sizes:
            for stage in STAGES[size][::2] if args.quick else STAGES[size]:
                shape = (BATCHES[args.device][size], *stage)
                with torch.no_grad():
                    for case in cases_of(shape, args.device, dtype, args.compile):
                        try:
                            if args.only in case[0]:
                                compare(report, threads, shape, case, limits, repetitions)
                        except RuntimeError as error:  # the other cases are worth measuring
                            report.failed(f"{case[0]}, {shape}", error)
                            failures.append(f"{case[0]}, {shape}: {error}")
        for shape in DENSE if args.device == "cpu" else []:
            with torch.no_grad():
                if args.only in (case := dense_case(shape))[0]:
                    compare(report, threads, shape, case, limits, repetitions)
    if failures:
        raise SystemExit("\n".join(failures))


def compare(
    report: measure.Report, threads: int, shape: Shape, case: Case, limits: dict, repetitions: int
) -> None:
    name, ours, baselines, size_in_bytes, multiply_adds = case
    rate = limits["multiply_adds_g_per_s"]
    if name.startswith("pointwise"):
        rate = limits.get("bfloat16_multiply_adds_g_per_s", rate)
    copy_ms = size_in_bytes / limits["copy_gb_per_s"] / 1e6
    batch = "" if shape[0] == 1 else f"{shape[0]}x"
    dtype = torch.bfloat16 if report.args.device == "cuda" else torch.float32
    model = expected(report, case, dtype)
    report.compare(
        f"{name}, {batch}{shape[1]}x{shape[2]}x{shape[3]}", threads, ours, baselines, repetitions,
        model, copy_ms=copy_ms, ideal_ms=round(max(copy_ms, multiply_adds / rate / 1e6), 4),
    )  # fmt: skip


# Cases of launches.py, of cases here.
COUNTED = {
    "bn_stats": "bn_stats",
    "shuffle_concat": "shuffle_concat",
    "mixed_sum of 8": "mixed_sum of 8",
    "pointwise_conv with affine, ReLU, statistics": "pointwise_conv with statistics",
    **{
        f"depthwise_conv {k} with affine, ReLU, statistics": "depthwise_conv with statistics"
        for k in (3, 5, 7)
    },
    "shuffle_concat backward": "shuffle_concat, its gradient",
    "mixed_sum of 8, backward": "mixed_sum of 8, its gradient",
}


def expected(report: measure.Report, case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds on the device by the model: of ours, where launches of such a call were counted,
    of eager code, as traced here, and of torch.compile, fused at best."""
    if report.device is None:
        return {}
    name, _, baselines, size_in_bytes, multiply_adds = case
    found = {}
    if report.counts is not None and name in COUNTED:
        launches = report.counts["ops"][COUNTED[name]]
        ms = device_model.operator_ms(report.device, launches, size_in_bytes, multiply_adds)
        found["ours"] = ms
    for way, f in baselines.items():
        if not way.startswith("eager"):
            continue
        with traffic.Trace() as trace:
            f()
        nodes = {way: trace.nodes}
        if way == "eager channels_last":
            nodes["torch.compile channels_last"] = traffic.fused(trace.nodes)
        for label, own in nodes.items():
            if own:  # a backward pass runs on a thread of its own, which is not traced
                kernels = [
                    Kernel(n.launches, 0, n.elements, n.multiply_adds, n.vector_adds) for n in own
                ]
                found[label] = device_model.device_ms(kernels, report.device, 1, dtype.itemsize)
    return found


if __name__ == "__main__":
    main()
