"""Operators against eager PyTorch, contiguous and channels_last, one JSON object per line.

    python benchmarks/ops.py [--quick] [--threads 1 2] [--device cuda] [--compile]

Shapes are those of the four stages of the 300M backbone (half of the channels) at 320 x 480 and
800 x 1216. "ideal_ms" is what the bytes that an operator must move take at the measured bandwidth
of a large copy, or its multiply-adds at the rate of the fastest matrix product, whichever is more;
a tensor that is still in a cache from the run before beats the former.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from detnas_d2 import ops

STAGES = {"320x480": [(32, 80, 120), (80, 40, 60), (160, 20, 30), (320, 10, 15)]}
STAGES["800x1216"] = [(c, h * 5 // 2, w * 304 // 120) for c, h, w in STAGES["320x480"]]

# Name, ours, baselines, bytes that must be moved, multiply-adds.
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


def forward_cases(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> Iterator[Case]:
    c, h, w = shape
    like = {"device": device, "dtype": dtype}
    x, y = (cl(torch.randn(1, c, h, w, **like)) for _ in range(2))
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
    maps = [cl(torch.randn(1, c, h, w, **like)) for _ in range(8)]
    weights = torch.rand(8, device=device)

    def eager_sum(*ys: Tensor) -> Tensor:
        a, b = scale.to(dtype).view(1, -1, 1, 1), shift.to(dtype).view(1, -1, 1, 1)
        return sum(p * (t * a + b) for p, t in zip(weights.to(dtype), ys, strict=True))

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


def backward_cases(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> Iterator[Case]:
    c, h, w = shape
    for k, dilation in ((3, 1), (5, 1), (7, 1), (3, 3), (5, 2)):
        x = cl(torch.randn(1, c, h, w, device=device, dtype=dtype))
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


def main() -> None:
    args = measure.parser(__doc__.splitlines()[0]).parse_args()
    measure.keep_memory(args.device == "cpu" and not args.page_faults)
    report = measure.Report("ops", args)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    sizes = ["320x480"] if args.quick else list(STAGES)
    threads = args.threads if args.device == "cpu" else [1]
    for n in threads:
        torch.set_num_threads(n)
        limits = measure.roofline(args.device, n)
        report.write(limits)
        for size in sizes:
            for shape in STAGES[size][::2] if args.quick else STAGES[size]:
                with torch.no_grad():
                    cases = [
                        *forward_cases(shape, args.device, dtype),
                        *backward_cases(shape, args.device, dtype),
                    ]
                    for name, ours, baselines, size_in_bytes, multiply_adds in cases:
                        if args.compile:
                            torch.compiler.reset()  # else the ninth shape runs eagerly
                            eager = baselines["eager channels_last"]
                            baselines["torch.compile channels_last"] = torch.compile(eager)
                        case = f"{name}, {shape[0]}x{shape[1]}x{shape[2]}"
                        ideal = max(
                            size_in_bytes / limits["copy_gb_per_s"],
                            multiply_adds / limits["multiply_adds_g_per_s"],
                        )
                        report.compare(
                            case, n, ours, baselines, 10 if args.quick else 30,
                            ideal_ms=round(ideal / 1e6, 4),
                        )  # fmt: skip


if __name__ == "__main__":
    main()
