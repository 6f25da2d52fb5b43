from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import (
    CAPABILITIES,
    TOLERANCE,
    assert_near,
    capability,
    channels_last,
    check_values,
    layouts,
)

SHAPES = [(1, 1, 1, 1), (2, 5, 7, 9), (3, 33, 4, 5), (1, 36, 9, 40), (45, 8, 7, 7), (1, 1100, 3, 2)]


def bound(x: Tensor, weight: Tensor) -> Tensor:
    """What the operator's docstring says of an output's error in float32."""
    h, w = x.shape[2:]
    padded = F.pad(x.double().abs(), (1, 4, 1, 4))  # tiles begin at (-1, -1), every four pixels
    patches = F.max_pool2d(padded, 6, stride=4)[..., : -(-h // 4), : -(-w // 4)]
    taps = weight.double().abs().sum((2, 3), keepdim=True)
    of_tiles = F.conv2d(patches, taps)
    return 4e-6 * of_tiles.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :h, :w]


def check_bound(x: Tensor, weight: Tensor) -> float:
    """The largest error over its bound, which must not be above 1."""
    y, _ = ops.conv3x3(x, weight)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    share = ((y.double() - exact).abs() / bound(x, weight).clamp(min=1e-300)).max().item()
    assert share <= 1, f"{share:.2g} of the bound"
    return share


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(name: str, shape: tuple) -> None:
    torch.manual_seed(0)
    c = shape[1]
    with capability(name):
        for x, out in zip(layouts(shape), (1, 7, 32, 50, 33), strict=True):
            weight, bias = torch.randn(out, c, 3, 3), torch.randn(out)
            for args in ((x, weight), (x, weight, bias, True), (x, weight, bias, False, True)):
                check_values(ops.conv3x3, reference.conv3x3, args, 5e-5)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("channels", [1, 16, 256, 1728])
def test_error_is_within_its_bound(name: str, channels: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(19, channels, 3, 3)
    with capability(name):
        for h, w in ((1, 1), (7, 7), (8, 12), (13, 6)):
            x = torch.randn(2, channels, h, w)
            check_bound(x, weight)
            check_bound(x.relu() + 100, weight)
            for outlier in (1e6, 1e20, 1e-20):
                x = torch.randn(2, channels, h, w)
                x[:, :, :: max(h // 2, 1), w // 2] *= outlier
                check_bound(x, weight)
                lopsided = weight.clone()
                lopsided[:, :, 0, 2] *= outlier
                check_bound(torch.randn(2, channels, h, w), lopsided)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_tiles_of_every_size(name: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 5, 3, 3)
    with capability(name):
        for h in range(1, 10):
            for w in range(1, 10):
                x = torch.randn(3, 5, h, w)
                check_bound(x, weight)
                exact = F.conv2d(x.double(), weight.double(), padding=1)
                y = ops.conv3x3(x.double(), weight.double())[0]
                torch.testing.assert_close(y, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_several_maps_of_packed_weights_to_the_bit(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = ((1, 40, 60), (2, 20, 31), (1, 3, 4), (0, 5, 5), (3, 10, 15), (1, 1, 1))
    for channels, out in ((20, 33), (16, 16), (3, 1), (5, 0)):
        xs = [torch.randn(n, channels, h, w).to(dtype) for n, h, w in sizes]
        xs[1] = channels_last(xs[1])
        weight, bias = torch.randn(out, channels, 3, 3).to(dtype), torch.randn(out)
        with capability(name):
            packed = ops.pack_conv3x3(weight)
            assert packed.shape == (36, -(-out // 16), channels, 16)
            for options in ((), (bias, True)):
                ys = ops.conv3x3_packed(xs, weight, packed, *options)
                for x, y in zip(xs, ys, strict=True):
                    alone, _ = ops.conv3x3(x, weight, *options)
                    assert y.dtype == dtype and torch.equal(y, alone)
                    assert y.is_contiguous(memory_format=torch.channels_last)


def test_packed_weights_under_autocast_and_as_opcheck_wants_them() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(6)
    xs, packed = [torch.randn(2, 4, 5, 6), torch.randn(1, 4, 8, 3)], ops.pack_conv3x3(weight)
    opcheck(torch.ops.detnas_d2.pack_conv3x3, (weight,))
    opcheck(torch.ops.detnas_d2.conv3x3_packed, (xs, weight, packed, bias, True))
    with torch.autocast("cpu", torch.bfloat16):
        ys = ops.conv3x3_packed(xs, weight, packed, bias)
    assert all(y.dtype == torch.bfloat16 for y in ys)
    with pytest.raises(RuntimeError, match="packed: expected shape"):
        ops.conv3x3_packed(xs, weight, packed[:-1], bias)
    with pytest.raises(RuntimeError, match="at least one tensor"):
        ops.conv3x3_packed([], weight, packed)


def test_statistics_of_far_means() -> None:
    torch.manual_seed(0)
    x, weight = torch.rand(3, 16, 33, 29), torch.randn(5, 16, 3, 3)
    _, stats = ops.conv3x3(x, weight, torch.tensor([0.0, 1.0, -1e3, 1e4, 3.0]), want_stats=True)
    assert stats is not None
    y = F.conv2d(x.double(), weight.double(), padding=1)
    y += torch.tensor([0.0, 1.0, -1e3, 1e4, 3.0]).view(1, -1, 1, 1)
    assert stats.count == 3 * 33 * 29
    assert_near(stats.mean, y.mean((0, 2, 3)), 1e-6)
    m2 = (y - y.mean((0, 2, 3), keepdim=True)).square().sum((0, 2, 3))
    # Deviations of values that float32 rounds at 1e4.
    torch.testing.assert_close(stats.m2.double(), m2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 9, 7).to(dtype), torch.randn(4, 6, 3, 3).to(dtype)
    args = (x, weight, torch.randn(4), False, True)
    check_values(ops.conv3x3, reference.conv3x3, args, TOLERANCE[dtype])
    assert ops.conv3x3(*args)[0].dtype == dtype


def test_autocast_casts_maps_and_keeps_statistics() -> None:
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(3, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, stats = ops.conv3x3(x, weight, want_stats=True)
    assert y.dtype == torch.bfloat16 and stats is not None and stats.m2.dtype == torch.float32


def test_empty_inputs() -> None:
    weight = torch.randn(6, 4, 3, 3)
    for shape in ((0, 4, 5, 5), (2, 4, 0, 5), (2, 4, 5, 0)):
        y, stats = ops.conv3x3(torch.randn(shape), weight, want_stats=True)
        assert y.shape == (shape[0], 6, *shape[2:])
        assert stats is not None and stats.count == 0 and not stats.mean.any()
    y, _ = ops.conv3x3(torch.randn(1, 4, 5, 5), weight[:0])
    assert y.shape == (1, 0, 5, 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_what_it_touches(bad: float) -> None:
    x = channels_last(torch.randn(1, 4, 16, 16))
    x[0, 1, 5, 5] = bad
    y, _ = ops.conv3x3(x, torch.rand(3, 4, 3, 3) + 0.1, out_relu=True)
    broken = ~y.isfinite()
    assert broken[..., 4:7, 4:7].all()
    tile = torch.zeros_like(broken)
    tile[..., 4:8, 4:8] = True  # the only tile whose 6x6 pixels it is among
    assert not (broken & ~tile).any()


def test_does_not_depend_on_threads_batch_or_layout() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(90, 24, 7, 7), torch.randn(40, 24, 3, 3)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(ops.conv3x3(x, weight, want_stats=True))
    finally:
        torch.set_num_threads(threads)
    for y, stats in found[1:]:
        assert torch.equal(y, found[0][0]) and torch.equal(stats.m2, found[0][1].m2)
    y = found[0][0]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.conv3x3(channels_last(x), weight)[0], y)
    assert torch.equal(ops.conv3x3(x[37:59], weight)[0], y[37:59])
    assert torch.equal(ops.conv3x3(x, weight.transpose(2, 3).contiguous().transpose(2, 3))[0], y)


def test_weights_are_read_at_every_call() -> None:
    x, weight = torch.randn(1, 8, 5, 6), torch.randn(9, 8, 3, 3)
    for _ in range(2):
        check_values(ops.conv3x3, reference.conv3x3, (x, weight), 5e-5)
        weight.data[1, 2] += 1


def test_opcheck() -> None:
    x, weight, bias = torch.randn(2, 4, 5, 6), torch.randn(6, 4, 3, 3), torch.randn(6)
    for args in ((x, weight, None, False, True), (x, weight, bias, True, False)):
        opcheck(torch.ops.detnas_d2.conv3x3, args)


def test_gradients_are_refused_and_transforms_take_the_reference() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 3, 3).double()

    def loss(x: Tensor) -> Tensor:
        return ops.conv3x3(x, weight, out_relu=True)[0].square().sum()

    for wanted in (x.clone().requires_grad_(), x):
        w = weight if wanted is not x else weight.clone().requires_grad_()
        with pytest.raises(NotImplementedError, match="conv3x3: not differentiable"):
            ops.conv3x3(wanted, w)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(F.conv2d(leaf, weight, padding=1).relu().square().sum(), leaf)[0]
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    _, tangent = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected.sum())
    each = torch.func.vmap(loss)(x[:, None])
    torch.testing.assert_close(each.sum(), loss(x))


def test_errors_name_the_argument() -> None:
    x = torch.randn(1, 4, 5, 5)
    weight = torch.randn(3, 4, 3, 3)
    for call, message in (
        (lambda: ops.conv3x3(x, torch.randn(3, 5, 3, 3)), "weight: expected shape"),
        (lambda: ops.conv3x3(x, torch.randn(3, 4, 5, 5)), "weight: expected shape"),
        (lambda: ops.conv3x3(x, weight.half()), "weight: expected dtype"),
        (lambda: ops.conv3x3(x, weight, torch.randn(4)), "bias: expected shape"),
        (lambda: ops.conv3x3(x, weight, None, True, True), "want_stats"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(RuntimeError, match="x: expected a floating point tensor"):
        torch.ops.detnas_d2.conv3x3(x.long(), weight.long(), None, False, False)
