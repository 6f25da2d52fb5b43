"""The emulated statistics, shuffles and mixed sums against the references.

Usage: checks_pixelwise.py LIBRARY
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from detnas_d2.ops import BNStats, reference
from tests.emulator.library import Library, Long, maps, pixels, run, tolerance, vectors
from tests.ops.compare import assert_near, channels_last


def guarded(shape: tuple, dtype: torch.dtype, n: int = 1, offset: int = 0) -> list[Tensor]:
    """Maps whose memory starts ``offset`` elements behind a multiple of 16 bytes."""
    count = torch.Size(shape).numel()
    size = (shape[0], shape[2], shape[3], shape[1])
    flat = [torch.randn(count + offset).to(dtype)[offset:] for _ in range(n)]
    return [f.view(size).permute(0, 3, 1, 2) for f in flat]


def lengths(xs: list[Tensor]) -> Tensor:
    return torch.tensor([x.shape[0] * x.shape[2] * x.shape[3] for x in xs])


def stats(lib: Library, dtype: torch.dtype, xs: list[Tensor], *args: object) -> BNStats:
    c = xs[0].shape[1]
    mean, m2, count = torch.empty(c), torch.empty(c), torch.empty((), dtype=torch.float64)
    ld = Long(xs[0].stride(3))
    lib("stats", dtype, len(xs), xs, lengths(xs), ld, *args, c, count, mean, m2)
    return BNStats(count, mean, m2)


def check_stats(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    a, b = vectors(c, 2)
    wide = maps((shape[0], 2 * c, *shape[2:]), dtype)[0]
    plain, half, odd = maps(shape, dtype)[0], wide[:, c:], guarded(shape, dtype, offset=1)[0]
    far = (plain.float() + 1000).to(dtype)
    none = (None, None, False)
    for x, args in ((plain, (a, b, True)), (far, none), (half, (a, b, False)), (odd, none)):
        found, expected = stats(lib, dtype, [x], *args), reference.bn_stats(x, *args)
        assert found.count == expected.count
        assert_near(found.mean, expected.mean, 1e-4, "mean")
        assert_near(found.m2, expected.m2, 1e-3, "m2")
    constant = plain[:1, :, :1, :1].expand(shape).contiguous(memory_format=torch.channels_last)
    found = stats(lib, dtype, [constant], *none)
    assert torch.equal(found.mean, constant[0, :, 0, 0].float()) and not found.m2.any()
    for bad in (float("nan"), float("inf")):
        x = plain.clone()
        x[-1, c // 2, -1, -1] = bad
        found = stats(lib, dtype, [x], *none)
        expected = torch.arange(c) == c // 2
        assert torch.equal(found.m2.isnan(), expected) or x.numel() == c
        assert torch.equal(found.mean.isfinite(), ~expected)


def check_stats_list(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    n, c, h, w = shape
    sizes = [(n, c, h, w), (1, c, 1, 1), (2, c, 13, 31), (1, c, 1, w)]
    for count in (2, 4, 11):  # more than one launch takes
        xs = [maps(s, dtype)[0] for s, _ in zip(itertools.cycle(sizes), range(count), strict=False)]
        a, b = vectors(c, 2)
        found, expected = stats(lib, dtype, xs, a, b, True), reference.bn_stats(xs, a, b, True)
        assert found.count == expected.count
        assert_near(found.mean, expected.mean, 1e-4, "mean")
        assert_near(found.m2, expected.m2, 1e-3, "m2")


def check_merge(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    for chunks in (1, 5, 260):
        means, squares = 50 + torch.randn(chunks, c), torch.rand(chunks, c)
        counts = torch.randint(0, 9, (chunks,)).float()
        counts[0] = 3
        partial = torch.cat((means.flatten(), squares.flatten(), counts))
        (mean, m2), total = vectors(c, 2), torch.empty((), dtype=torch.float64)
        lib("merge", partial, Long(chunks), c, total, mean, m2)
        n = counts.double().view(-1, 1)
        expected = (n * means).sum(0) / n.sum()
        between = (n * (means - expected) ** 2).sum(0) + (squares * (n > 0)).sum(0)
        assert total == n.sum()
        assert_near(mean, expected, 1e-6, "mean")
        assert_near(m2, between, 1e-6, "m2")


def check_fold(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    mean, m2, scale, shift, *grads = vectors(c, 6)
    m2, count = m2.abs(), torch.tensor(37.0, dtype=torch.float64)
    for gamma, beta in (vectors(c, 2), (None, None)):
        found = torch.empty(4, c)
        lib("fold", c, count, mean, m2, gamma, beta, scale, shift, *grads, found)
        leaves = [t if t is None else t.double() for t in (mean, m2, gamma, beta)]
        for t in leaves:
            t is not None and t.requires_grad_()
        expected = reference.bn_fold(BNStats(count, *leaves[:2]), *leaves[2:], 1e-5)
        assert_near(scale, expected[0], 1e-6, "scale")
        assert_near(shift, expected[1], 1e-6, "shift")
        given = [t for t in leaves if t is not None]
        wanted = torch.autograd.grad(expected, given, [g.double() for g in grads])
        for i, want in enumerate(wanted):
            assert_near(found[i], want, 1e-6, f"gradient {i}")


def check_transform(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    n, c, h, w = shape
    (x, grad, out), (a, b, mean) = maps(shape, dtype, 3), vectors(c, 3)
    half = maps((n, 2 * c, h, w), dtype)[0][:, c:]
    for source in (x, half):
        for args in ((a, b, True), (a, b, False), (None, None, True)):
            lib("transform", dtype, source, Long(source.stride(3)), *args, pixels(x), c, out)
            assert_near(out, reference.pending(source, *args), tolerance(dtype), "transform")
    lib("transform_grad", dtype, grad, x, a, b, mean, pixels(x), c, out)
    add, mul, center = (t.view(1, -1, 1, 1) for t in (a, b, mean))
    assert_near(out, grad.float() + add + mul * (x.float() - center), tolerance(dtype), "gradient")
    lib("transform_grad", dtype, grad, x, None, None, None, pixels(x), c, out)
    assert_near(out, grad * (x > 0), tolerance(dtype), "gradient of ReLU")


def check_shuffle(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    n, c, h, w = shape
    more = c + 2 * (16 if c % 8 == 0 else 1)
    for method, offset, c_right in itertools.product((0, 1, 2), (0, 1), (c, more)):
        split = method != 0 or offset == 1
        widths = ((c + c_right) // 2,) * 2 if split else (c + c_right, 0)
        ld = more + (16 - more) % 16 if offset == 0 else more  # a view of a wider map
        sides = [guarded((n, ld, h, w), dtype, offset=offset)[0][:, :k] for k in (c, c_right)]
        affines = [(*vectors(c, 2), True), (*vectors(c_right, 2), True)]
        if method == 0:
            affines[0] = (None, None, offset == 1)  # with ReLU alone, or nothing
        common = (dtype, *sides, Long(ld), *affines[0], *affines[1], c, c_right, widths[0], method)
        outs = [guarded((n, k, h, w), dtype, offset=offset)[0] for k in widths]
        lib("shuffle", *common, pixels(sides[0]), *outs)
        leaves = [t.double().requires_grad_() for t in (*sides, *affines[0][:2], *affines[1][:2])
                  if t is not None]  # fmt: skip
        vectors_of = iter(leaves[2:])
        halves = [tuple(None if v is None else next(vectors_of) for v in a[:2]) for a in affines]
        args = (*leaves[:2], *halves[0], *halves[1], affines[0][2], affines[1][2], method, split)
        expected = reference.shuffle_concat(*args)
        expected = expected if split else (expected,)
        for out, want in zip(outs, expected, strict=False):
            assert_near(out, want, tolerance(dtype), f"method {method}")

        grads = [guarded((n, k, h, w), dtype, offset=offset)[0] for k in widths]
        found = [guarded((n, k, h, w), dtype, offset=offset)[0] for k in (c, c_right)]
        wants = torch.autograd.grad(expected, leaves, [g.double() for g in grads[: len(expected)]])
        sums = [torch.empty(k) for k in (c, c_right, c, c_right)]
        lib("shuffle_grad", *common, pixels(sides[0]), *grads, *found, sums)
        names = ("left", "right") + ("scale", "shift") * 2
        order = [*found, sums[0], sums[2], sums[1], sums[3]]
        if affines[0][0] is None:
            order = order[:2] + order[4:]
        for got, want, name in zip(order, wants, names[-len(order) :], strict=True):
            slack = tolerance(dtype) if got.dim() == 4 else 1e-4
            assert_near(got, want, slack, f"gradient of {name}, method {method}")
    left, right, a, b = *maps(shape, dtype, 2), *maps(shape, dtype, 2)
    plain = (None, None, Long(c), None, None, False, None, None, False, c, c, c, 2)
    lib("shuffle_grad", dtype, *plain, pixels(left), left, right, a, b, None)
    both = torch.cat((left, right), 1).unflatten(1, (2, c)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(torch.cat((a, b), 1), channels_last(both))


def check_mixed_sum(lib: Library, dtype: torch.dtype, shape: tuple) -> None:
    c = shape[1]
    for count in range(1, 9) if c == 40 else (1, 8):
        offset = count % 2 if c > 1 else 0
        y, dy = (guarded(shape, dtype, count, offset) for _ in range(2))
        residual, out, grad = guarded(shape, dtype, 3, offset)
        scale, shift, weights = vectors(c, count), vectors(c, count), torch.randn(count)
        sums = [*vectors(c, 2 * count), torch.empty(count)]
        with_residual = residual if count != 3 else None
        lib("mixed_sum", dtype, count, y, scale, shift, weights, with_residual, pixels(out), c, out,
            grad, dy, sums)  # fmt: skip
        leaves = [[t.double().requires_grad_() for t in ts] for ts in (y, scale, shift, [weights])]
        extra = None if with_residual is None else residual.double()
        expected = reference.mixed_sum(*leaves[:3], leaves[3][0], extra)
        assert_near(out, expected, tolerance(dtype), f"mixed_sum of {count}")
        want = torch.autograd.grad(expected, sum(leaves, []), grad.double())
        for i, got in enumerate([*dy, *sums]):
            slack = tolerance(dtype) if got.dim() == 4 else 1e-4
            assert_near(got, want[i], slack, f"mixed_sum of {count}, gradient {i}")


if __name__ == "__main__":
    run(
        check_stats,
        check_stats_list,
        check_merge,
        check_fold,
        check_transform,
        check_shuffle,
        check_mixed_sum,
    )
