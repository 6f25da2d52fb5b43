"""Every tensor argument of every operator with a wrong shape, dtype or device: each is refused.

Usage: bad_arguments.py LIBRARY, which takes the place of detnas_d2._C (see sanitized.py): an
operator that reads out of bounds ends the process there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

N, C, H, W, OUT = 2, 6, 5, 4, 10
MASK = [True, True, True]


def maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(s).contiguous(memory_format=torch.channels_last) for s in shapes]


def vectors(*sizes: int) -> list[Tensor]:
    return [torch.rand(s) + 0.5 for s in sizes]


X = (N, C, H, W)
COUNT = torch.tensor(40.0, dtype=torch.float64)


def conv_backward(weight: tuple, out: tuple, stats: bool, *geometry: int) -> list:
    x, w, grad, y = maps(X, weight, out, out)
    a, b = vectors(C, C)
    grads = vectors(out[1], out[1]) if stats else [None, None]
    mean = vectors(out[1])[0] if stats else None
    return [grad, *grads, x, w, a, b, True, y, mean, not stats, *geometry, MASK]


def mixed(backward: bool) -> list:
    x, w = maps(X, X), maps((C, 1, 3, 3), (C, 1, 5, 5))
    a, b = vectors(C, C), vectors(C, C)
    if not backward:
        return [x, w, a, b, True, True, 1, [1, 2]]
    mean, y = vectors(C, C), maps(X, X)
    return [maps(X, X), vectors(C, C), vectors(C, C), x, w, a, b, True, y, mean, 1, [1, 2]]


def block_weights(kernel: int, stride: int) -> list[Tensor]:
    c = C // 2 if stride == 1 else C
    if kernel:
        shapes = [(C, c, 1, 1), (C, 1, kernel, kernel), (OUT, C, 1, 1)]
    else:
        shapes = [
            (c, 1, 3, 3),
            (C, c, 1, 1),
            (C, 1, 3, 3),
            (C, C, 1, 1),
            (C, 1, 3, 3),
            (OUT, C, 1, 1),
        ]
    if stride == 2:
        shapes += [(C, 1, kernel or 3, kernel or 3), (C, C, 1, 1)]
    return maps(*shapes)


def block(kernel: int, stride: int) -> list:
    weights = block_weights(kernel, stride)
    biases = vectors(*(w.shape[0] for w in weights))
    return [maps(X)[0], weights, biases, kernel, stride, 2]


def packed_block(kernel: int, stride: int, halves: bool = False) -> list:
    x, weights, biases, *_ = block(kernel, stride)
    packed = torch.ops.detnas_d2.pack_shuffle_block(weights, kernel, stride)
    half = (N, C // 2, H, W)
    left, right = maps(half, half) if halves else (x, None)
    return [left, right, weights, packed, biases, kernel, stride, 1, 0]


def packed_blocks(kernel: int, stride: int) -> list:
    x, _, *lists, _, _, method, _ = packed_block(kernel, stride)
    return [x, *lists, [kernel], [stride], [method], [1]]


def packed_conv3x3() -> list:
    weight = maps((OUT, C, 3, 3))[0]
    packed = torch.ops.detnas_d2.pack_conv3x3(weight)
    return [maps(X, (1, C, 7, 2)), weight, packed, *vectors(OUT), True]


def regions() -> list:
    boxes = torch.tensor([[0, 1, 1, 3, 4], [1, 0, 0, 5, 2], [0, 2, 0, 2, 9]], dtype=torch.float32)
    return [maps(X, (N, C, 7, 2)), boxes, [0, 1, 0], [1.0, 0.5], 3, 2, False]


def block_stats(kernel: int, stride: int) -> list:
    weights = block_weights(kernel, stride)
    gammas, betas = (vectors(*(w.shape[0] for w in weights)) for _ in range(2))
    half = (N, C // 2, H, W)
    left, right = maps(half, half) if stride == 1 else (*maps(X), None)
    pending = (None, None, False) if stride == 1 else (*vectors(C, C), True)
    eps = [1e-3] * len(weights)
    return [left, right, *pending, weights, gammas, betas, eps, kernel, stride, 0, 1]


def block_training_backward(kernel: int, stride: int) -> list:
    *args, _ = block_stats(kernel, stride)
    with torch.no_grad():
        out, _, made = torch.ops.detnas_d2.shuffle_block_training(*args)
    wanted = [t is not None for t in args[:4]] + [True] * 3 * len(args[5])
    return [torch.randn_like(out), None, *args, made, wanted]


def blocks_stats(kernel: int, stride: int) -> list:
    weights = block_weights(kernel, stride)
    gammas, betas = (vectors(*(w.shape[0] for w in weights)) for _ in range(2))
    rest = ([], gammas, betas, [1e-3] * len(weights), [kernel], [stride], [2], [1], 1)
    return [*maps(X), *vectors(C, C), True, weights, *rest]


def shuffle(split: bool, backward: bool) -> list:
    left, right = maps(X, X)
    rest = [left, right, *vectors(C, C, C, C), True, False, 2, split]
    if not backward:
        return [*rest, 1]
    grads = maps(X, X) if split else [*maps((N, 2 * C, H, W)), torch.empty(0)]
    return [*grads, *rest]


def mixed_sum(backward: bool) -> list:
    y = maps(X, X, X)
    rest = [y, vectors(C, C, C), vectors(C, C, C), *vectors(3)]
    return [*maps(X), *rest] if backward else [*rest, *maps(X)]


# Operator, arguments that are right, and dimensions that may change by themselves: of an argument.
Case = tuple[str, Callable[[], list], dict[str, tuple[int, ...]]]
SIZE = (0, 2, 3)
CASES: list[Case] = [
    ("bn_stats", lambda: [*maps(X), *vectors(C, C), True], {"x": SIZE}),
    ("bn_stats_list", lambda: [maps(X, X), *vectors(C, C), True], {"x": SIZE}),
    (
        "bn_stats_backward",
        lambda: [*vectors(C, C), *maps(X), *vectors(C, C, C), True],
        {"x": SIZE},
    ),
    ("bn_fold", lambda: [COUNT, *vectors(C, C, C, C), 1e-5], {}),
    (
        "bn_stats_fold",
        lambda: [*maps(X), *vectors(C, C), True, *vectors(C, C), 1e-5, 1],
        {"x": SIZE},
    ),
    ("bn_fold_backward", lambda: [*vectors(C, C), COUNT, *vectors(C, C, C), 1e-5], {}),
    (
        "pointwise_conv",
        lambda: [*maps(X, (OUT, C, 1, 1)), *vectors(C, C), True, *vectors(OUT), False, True, 1],
        {"x": SIZE},
    ),
    (
        "pointwise_conv",
        lambda: [*maps(X, (OUT, 3, 1, 1)), *vectors(C, C), True, *vectors(OUT), True, False, 2],
        {"x": SIZE},
    ),
    (
        "depthwise_conv",
        lambda: [*maps(X, (C, 1, 3, 3)), *vectors(C, C), True, *vectors(C), False, True, 2, 1],
        {"x": SIZE},
    ),
    (
        "pointwise_conv_bn",
        lambda: [
            *(*maps(X, (OUT, 3, 1, 1)), *vectors(C, C), True, *vectors(OUT), 2),
            *(*vectors(OUT, OUT), 1e-5, 1),
        ],
        {"x": SIZE},
    ),
    (
        "depthwise_conv_bn",
        lambda: [
            *(*maps(X, (C, 1, 3, 3)), *vectors(C, C), True, *vectors(C), 2, 1),
            *(*vectors(C, C), 1e-5, 1),
        ],
        {"x": SIZE},
    ),
    ("conv3x3", lambda: [*maps(X, (OUT, C, 3, 3)), *vectors(OUT), True, False], {"x": SIZE}),
    ("conv3x3_packed", packed_conv3x3, {"x": SIZE}),
    ("pack_conv3x3", lambda: maps((OUT, C, 3, 3)), {"weight": (0, 1)}),
    ("roi_align", regions, {"x": SIZE}),
    ("mixed_depthwise", lambda: mixed(False), {"x": SIZE}),
    ("mixed_depthwise_backward", lambda: mixed(True), {}),
    ("shuffle_concat", lambda: shuffle(True, False), {}),
    ("shuffle_concat", lambda: shuffle(False, False), {}),
    ("shuffle_concat_backward", lambda: shuffle(True, True), {}),
    ("shuffle_concat_backward", lambda: shuffle(False, True), {}),
    ("mixed_sum", lambda: mixed_sum(False), {}),
    ("mixed_sum_backward", lambda: mixed_sum(True), {}),
]
for _stats in (True, False):
    CASES += [
        (
            "pointwise_conv_backward",
            lambda s=_stats: conv_backward((OUT, C, 1, 1), (N, OUT, H, W), s, 1),
            {},
        ),
        (
            "depthwise_conv_backward",
            lambda s=_stats: conv_backward((C, 1, 5, 5), (N, C, 3, 2), s, 2, 2),
            {"x": (2, 3)},  # by one: the output's size may stay
        ),
    ]
PENDING = {
    "bn_stats_fold": (1, 2),
    "pointwise_conv_bn": (2, 3),
    "depthwise_conv_bn": (2, 3),
    "shuffle_concat": (2, 3, 4, 5),
}


def of_batches(op: str, make: Callable[[], list]) -> list:
    """The arguments with every image as a batch, which has affine maps of its own."""
    args = make()
    for i in PENDING[op]:
        args[i] = torch.rand(N, C) + 0.5
    return [*args[:-1], N]


CASES += [
    (op, lambda op=op, make=make: of_batches(op, make), {"x": (2, 3)})
    for op, make, _ in CASES
    if op in PENDING
]
for _kernel in (0, 3, 5, 7):
    for _stride in (1, 2):
        CASES += [
            ("shuffle_block", lambda k=_kernel, s=_stride: block(k, s), {"x": SIZE}),
            ("shuffle_block_packed", lambda k=_kernel, s=_stride: packed_block(k, s), {"x": SIZE}),
            (
                "shuffle_blocks_packed",
                lambda k=_kernel, s=_stride: packed_blocks(k, s),
                {"x": SIZE},
            ),
            (
                "pack_shuffle_block",
                lambda k=_kernel, s=_stride: [block_weights(k, s), k, s, 0],
                {"weights": (0, 1)},
            ),
            (
                "shuffle_block_stats",
                lambda k=_kernel, s=_stride: block_stats(k, s),
                {"left": SIZE if _stride == 2 else (1,)},
            ),
            (
                "shuffle_block_training",
                lambda k=_kernel, s=_stride: block_stats(k, s)[:-1],
                {"left": SIZE if _stride == 2 else (1,)},
            ),
            (
                "shuffle_block_training_backward",
                lambda k=_kernel, s=_stride: block_training_backward(k, s),
                # What strides first may leave as much of a row or column more.
                {"left": (2, 3)} if _kernel == 0 and _stride == 2 else {},
            ),
            ("shuffle_blocks_stats", lambda k=_kernel, s=_stride: blocks_stats(k, s), {"x": SIZE}),
        ]
    CASES.append(
        ("shuffle_block_packed", lambda k=_kernel: packed_block(k, 1, halves=True), {"x": (1,)})
    )


OF_THE_CPU = ("conv3x3_packed", "pack_conv3x3", "roi_align")
ANY_DTYPE = {
    ("bn_stats", "x"),
    ("bn_stats_fold", "x"),
    ("bn_stats_backward", "x"),
    ("shuffle_block_stats", "left"),
    ("shuffle_block_training", "left"),
    ("pack_conv3x3", "weight"),
}


def wrong(t: Tensor, free: tuple[int, ...], op: str, name: str) -> Iterator[tuple[str, Tensor]]:
    """``t`` as it must not be."""
    yield "int64", t.to(torch.int64)
    if op != "pack_conv3x3":  # whose only tensor it is
        yield "meta", t.to("meta")
    # A vector may be of another floating dtype than the map; so may, under autocast, the half of a
    # block that passes.
    if (t.dim() == 4 and (op, name) not in ANY_DTYPE) or name in ("m2", "packed"):
        yield "float64", t.double()
    if name == "count":
        yield "two values", t.expand(2)
        return
    yield "one dimension more", t[None]
    if t.dim() > 0 and t.shape[0] > 0:
        yield "one dimension less", t[0]
    for d in range(t.dim()):
        if d in free:
            continue
        longer = list(t.shape)
        longer[d] += 1
        yield f"longer in dimension {d}", torch.ones(longer)
        if t.shape[d] > 1:
            yield f"shorter in dimension {d}", t.narrow(d, 0, t.shape[d] - 1)
            yield f"1 in dimension {d}", t.narrow(d, 0, 1)
        taps = t.dim() == 4 and t.shape[2] > 1 and (t.shape[1] == 1 or "conv3x3" in op)
        if taps and d == 2:
            for k in (2, 4, 9, 11):
                yield f"taps {k}", torch.ones(*t.shape[:2], k, k)
    if t.dim() == 4 and t.shape[2] == 1 and "weight" in name:
        yield "taps 3", torch.ones(*t.shape[:2], 3, 3)


def perturbed(op: str, make: Callable[[], list], free: dict) -> Iterator[tuple[str, list]]:
    """The arguments with one tensor wrong, and where."""
    names = [a.name for a in getattr(torch.ops.detnas_d2, op).default._schema.arguments]
    args = make()
    for i, (name, value) in enumerate(zip(names, args, strict=True)):

        def put(bad: object, i: int = i) -> list:
            return [*args[:i], bad, *args[i + 1 :]]

        may = free.get(name, ())
        if isinstance(value, Tensor):
            for what, bad in wrong(value, may, op, name):
                yield f"{name}: {what}", put(bad)
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            if op not in ("bn_stats_list", "conv3x3_packed"):  # they take any number
                yield f"{name}: one fewer", put(value[:-1])
                yield f"{name}: one more", put([*value, value[-1]])
            for j, item in enumerate(value):
                for what, bad in wrong(item, may, op, name):
                    yield f"{name}[{j}]: {what}", put([*value[:j], bad, *value[j + 1 :]])


def check() -> int:
    """Calls every operator with every wrong argument; how many calls were refused."""
    from detnas_d2.ops.extension import has_cpu_kernel  # of the library that was loaded

    total = 0
    for op, make, free in CASES:
        if op in OF_THE_CPU and not has_cpu_kernel(op):  # CUDA's operators for the host
            continue
        overload = getattr(torch.ops.detnas_d2, op).default
        with torch.no_grad():
            overload(*make())  # these are right
            for where, args in perturbed(op, make, free):
                try:
                    overload(*args)
                except RuntimeError as error:
                    assert "expected" in str(error), f"{op}, {where}: {error}"
                else:
                    raise AssertionError(f"{op}, {where}: accepted")
                total += 1
    return total


if __name__ == "__main__":
    from tests.ops.fuzz import load

    load(sys.argv[1])
    import detnas_d2.ops  # noqa: F401

    print(f"{check()} refused: ok")
