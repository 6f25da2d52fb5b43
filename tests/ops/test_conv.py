from __future__ import annotations

import itertools

import pytest
import torch
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import (
    CAPABILITIES,
    TOLERANCE,
    assert_near,
    capability,
    channels_last,
    check_gradients,
    check_values,
    layouts,
)

SHAPES = [(1, 1, 1, 1), (2, 5, 7, 9), (1, 32, 20, 13), (1, 36, 9, 40), (1, 1728, 2, 2)]


def affine(c: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
    return torch.randn(c), torch.randn(c), True


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pointwise(name: str, shape: tuple) -> None:
    torch.manual_seed(0)
    c = shape[1]
    with capability(name):
        for x, out in zip(layouts(shape), (1, 7, 32, 50, 33), strict=True):
            w, bias = torch.randn(out, c, 1, 1), torch.randn(out)
            for args in (
                (x, w),
                (x, w, *affine(c), None, False, True),
                (x, w, None, None, True, bias, True),
                (x, w, None, None, False, bias, False, True),
            ):
                check_values(ops.pointwise_conv, reference.pointwise_conv, args, 5e-5)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_pointwise_in_groups(name: str, shape: tuple) -> None:
    n, c, h, w = shape
    x, weight = torch.randn(n, 2 * c, h, w), torch.randn(10, c, 1, 1)
    args = (x, weight, *affine(2 * c), torch.randn(10), False, True, 2)
    with capability(name):
        check_values(ops.pointwise_conv, reference.pointwise_conv, args, 5e-5)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_depthwise(name: str, kernel: int, shape: tuple) -> None:
    torch.manual_seed(0)
    c = shape[1]
    w, bias = torch.randn(c, 1, kernel, kernel), torch.randn(c)
    with capability(name):
        for (stride, dilation), x in zip(
            itertools.product((1, 2), (1, 2, 3)), itertools.cycle(layouts(shape))
        ):
            for args in (
                (x, w, *affine(c), None, False, True, stride, dilation),
                (x, w, None, None, False, bias, True, False, stride, dilation),
            ):
                check_values(ops.depthwise_conv, reference.depthwise_conv, args, 5e-5)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_depthwise_makes_the_same_of_a_whole_slab_and_of_a_part(name: str, kernel: int) -> None:
    """A slab's rows may be read in place or as strips need them; those of a part are copied."""
    torch.manual_seed(0)
    sizes = ((3, 5), (1, 1), (18, 13), (9, 30), (17, 41))
    for (height, width), stride in itertools.product(sizes, (1, 2)):
        x, w = channels_last(torch.randn(2, 16, height, width)), torch.randn(16, 1, kernel, kernel)
        for a, b, relu in ((None, None, False), affine(16), (*affine(16)[:2], False)):
            for stats in (False, True):
                rest = (relu, None, False, stats, stride)
                with capability(name):
                    whole, _ = ops.depthwise_conv(x, w, a, b, *rest)
                    vectors = [None if v is None else v[:15] for v in (a, b)]
                    part, _ = ops.depthwise_conv(x[:, :15], w[:15], *vectors, *rest)
                assert torch.equal(whole[:, :15], part), (height, width, stride, relu, stats)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    x, w = torch.randn(1, 6, 9, 7).to(dtype), torch.randn(6, 1, 5, 5).to(dtype)
    args = (x, w, *affine(6), None, False, True)
    tolerance = TOLERANCE[dtype]
    if dtype == torch.float64:
        args = (x, w, args[2].double(), args[3].double(), *args[4:])
    check_values(ops.depthwise_conv, reference.depthwise_conv, args, tolerance)
    args = (x, torch.randn(4, 6, 1, 1).to(dtype), *args[2:])
    check_values(ops.pointwise_conv, reference.pointwise_conv, args, tolerance)
    assert ops.pointwise_conv(*args)[0].dtype == dtype


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize(
    "options", [(False, True), (True, False), (False, False)], ids=["stats", "relu", "plain"]
)
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 5, 7, 9), (1, 48, 14, 21)])
def test_gradients_in_float32(name: str, options: tuple[bool, bool], shape: tuple) -> None:
    torch.manual_seed(0)
    x, c = torch.randn(shape), shape[1]
    prologue = affine(c) if options != (False, False) else (None, None, False)
    with capability(name):
        for out in (3, 34):
            args = (x, torch.randn(out, c, 1, 1), *prologue, torch.randn(out), *options)
            check_gradients(ops.pointwise_conv, reference.pointwise_conv, args, torch.float32, 1e-4)
        for kernel, stride, dilation in ((3, 1, 1), (5, 2, 1), (7, 1, 1), (3, 2, 3), (5, 1, 2)):
            w = torch.randn(c, 1, kernel, kernel)
            args = (x, w, *prologue, torch.randn(c), *options, stride, dilation)
            check_gradients(ops.depthwise_conv, reference.depthwise_conv, args, torch.float32, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 5, 4, 3), (1, 16, 5, 6)])
def test_gradients_of_16_bits_err_by_their_own_rounding_alone(
    dtype: torch.dtype, shape: tuple
) -> None:
    """Maps' gradients by half a last bit, vectors', which are float32, hardly; on few pixels, whose
    gradients often cancel."""
    rounding, c = torch.finfo(dtype).eps / 2, shape[1]
    for seed in range(20):
        torch.manual_seed(seed)
        for k, stride, dilation in ((3, 2, 1), (3, 1, 2), (5, 2, 3), (7, 1, 1), (7, 2, 2)):
            x, w = torch.randn(shape).to(dtype), (torch.randn(c, 1, k, k) / k).to(dtype)
            rest = (True, None, False, True, stride, dilation)
            fast = [t.requires_grad_() for t in (channels_last(x), w, *torch.randn(2, c).unbind())]
            wide = [t.detach().double().requires_grad_() for t in fast]
            y, (count, mean, m2) = ops.depthwise_conv(*fast, *rest)
            outputs = (y, mean, m2)
            grads = [torch.randn_like(t) for t in outputs]
            found = torch.autograd.grad(outputs, fast, grads)
            # Statistics are differentiated at the output that there is, the rounded one.
            of_y, of_mean, of_m2, at, mean = (t.detach().double() for t in (*grads, y, mean))
            of_mean, of_m2, mean = (t.view(1, -1, 1, 1) for t in (of_mean, of_m2, mean))
            grad = of_y + of_mean / count + 2 * of_m2 * (at - mean)
            wanted = torch.autograd.grad(reference.depthwise_conv(*wide, *rest)[0], wide, grad)
            bounds = (1.01 * rounding, 1.01 * rounding, 5e-5, 5e-5)
            for a, e, bound in zip(found, wanted, bounds, strict=True):
                assert_near(a, e, bound, f"seed {seed}, {k}x{k}, {stride}, {dilation}")


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_depthwise_gradients_in_float64(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 5, 10, 13), torch.randn(5, 1, kernel, kernel)
    for options in ((None, False, True), (torch.randn(5), True, False)):
        args = (x, w, *affine(5), *options, stride, dilation)
        check_gradients(ops.depthwise_conv, reference.depthwise_conv, args, torch.float64, 1e-9)


def test_pointwise_gradients_in_float64_and_groups() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 6, 5, 4), torch.randn(4, 3, 1, 1)
    for prologue in (affine(6), (None, None, True), (None, None, False)):
        args = (x, w, *prologue, torch.randn(4), False, True, 2)
        check_gradients(ops.pointwise_conv, reference.pointwise_conv, args, torch.float64, 1e-9)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    w1 = torch.randn(3, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    w2 = torch.randn(4, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    scale, shift = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def values(result):
        y, stats = result
        return y, stats.mean, stats.m2

    def pointwise(x, w, a, b):
        return values(ops.pointwise_conv(x, w, a, b, True, want_stats=True))

    def depthwise(x, w, a, b):
        return values(ops.depthwise_conv(x, w, a, b, True, want_stats=True, stride=2))

    assert torch.autograd.gradcheck(pointwise, (x, w1, scale, shift))
    assert torch.autograd.gradcheck(depthwise, (x, w2, scale, shift))


@pytest.mark.parametrize("name", CAPABILITIES)
def test_mixed_depthwise(name: str) -> None:
    torch.manual_seed(0)
    kernels, dilation = (3, 5, 7), [2, 1, 3]
    x = [torch.randn(2, c, 9, 8) for c in (4, 17, 6)]
    w = [torch.randn(t.shape[1], 1, k, k) for t, k in zip(x, kernels, strict=True)]
    scale, shift = ([torch.randn(t.shape[1]) for t in x] for _ in range(2))

    def separate(x, w, scale, shift, *rest):
        relu, want_stats, stride, dilation = rest
        results = [
            reference.depthwise_conv(t, v, a, b, relu, None, False, want_stats, stride, d)
            for t, v, a, b, d in zip(x, w, scale, shift, dilation, strict=True)
        ]
        return [y for y, _ in results], [s for _, s in results]

    with capability(name):
        for stride, want_stats in ((1, True), (2, False)):
            args = (x, w, scale, shift, True, want_stats, stride, dilation)
            if want_stats:
                check_values(ops.mixed_depthwise, separate, args, 5e-5)
            check_gradients(ops.mixed_depthwise, separate, args, torch.float32, 1e-4)


def test_empty_inputs() -> None:
    x = torch.randn(0, 4, 5, 5, requires_grad=True)
    w = torch.randn(4, 1, 3, 3, requires_grad=True)
    y, stats = ops.depthwise_conv(x, w, want_stats=True, stride=2)
    assert y.shape == (0, 4, 3, 3) and stats.count == 0
    (y.sum() + stats.mean.sum()).backward()
    assert not w.grad.any()
    w1 = torch.randn(6, 4, 1, 1, requires_grad=True)
    y, stats = ops.pointwise_conv(x, w1, want_stats=True)
    assert y.shape == (0, 6, 5, 5) and not stats.mean.any()
    y.sum().backward()
    assert not w1.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_reach_what_they_touch(bad: float) -> None:
    x = channels_last(torch.randn(1, 4, 8, 8))
    x[0, 1, 3, 3] = bad
    y, _ = ops.depthwise_conv(x, torch.rand(4, 1, 3, 3) + 0.1, relu=True)
    broken = ~y.isfinite()
    assert broken[0, 1, 2:5, 2:5].all() and broken.sum() == 9
    y, _ = ops.pointwise_conv(x, torch.rand(5, 4, 1, 1) + 0.1, out_relu=True)
    assert (~y.isfinite()).sum() == 5


def test_outputs_are_channels_last_and_deterministic() -> None:
    x, w = torch.randn(2, 24, 31, 33), torch.randn(24, 1, 7, 7)
    first, again = (ops.depthwise_conv(x, w, want_stats=True) for _ in range(2))
    assert first[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1].m2, again[1].m2)


def test_autocast_casts_maps_and_keeps_statistics() -> None:
    x, w = torch.randn(1, 4, 5, 5), torch.randn(3, 4, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        y, stats = ops.pointwise_conv(x, w, *affine(4), want_stats=True)
    assert y.dtype == torch.bfloat16 and stats.m2.dtype == torch.float32
    expected, _ = reference.pointwise_conv(x.bfloat16(), w.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(ops.pointwise_conv(x, w)[0], expected, TOLERANCE[torch.bfloat16])


def test_opcheck() -> None:
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    w1, w2 = (torch.randn(s, requires_grad=True) for s in ((6, 4, 1, 1), (4, 1, 3, 3)))
    scale, shift = (torch.randn(4, requires_grad=True) for _ in range(2))
    opcheck(torch.ops.detnas_d2.pointwise_conv, (x, w1, scale, shift, True, None, False, True, 1))
    opcheck(
        torch.ops.detnas_d2.depthwise_conv, (x, w2, scale, shift, True, None, False, True, 2, 1)
    )
    other = torch.randn(2, 4, 5, 6, requires_grad=True)
    w3 = torch.randn(4, 1, 5, 5, requires_grad=True)
    vectors = [torch.randn(4, requires_grad=True) for _ in range(4)]
    opcheck(
        torch.ops.detnas_d2.mixed_depthwise,
        ([x, other], [w2, w3], vectors[:2], vectors[2:], True, True, 1, [1, 2]),
    )


def test_errors_name_the_argument() -> None:
    x = torch.randn(1, 4, 5, 5)
    for call, message in (
        (lambda: ops.pointwise_conv(x, torch.randn(3, 5, 1, 1)), "weight: expected shape"),
        (lambda: ops.pointwise_conv(x, torch.randn(3, 4, 1, 1).half()), "weight: expected dtype"),
        (lambda: ops.depthwise_conv(x, torch.randn(4, 1, 4, 4)), "k 3, 5 or 7"),
        (lambda: ops.depthwise_conv(x, torch.randn(4, 1, 3, 3), stride=3), "stride: expected"),
        (lambda: ops.depthwise_conv(x, torch.randn(4, 1, 3, 3), dilation=4), "dilation: expected"),
        (
            lambda: ops.pointwise_conv(x, torch.randn(3, 4, 1, 1), out_relu=True, want_stats=True),
            "want_stats",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
