from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import (
    CAPABILITIES,
    assert_near,
    capability,
    channels_last,
    check_gradients,
    check_values,
    layouts,
)

SHAPES = [(1, 1, 1, 1), (2, 5, 7, 9), (1, 40, 33, 17), (3, 64, 6, 6), (1, 1728, 2, 3)]


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference_in_every_layout(name: str, shape: tuple) -> None:
    torch.manual_seed(0)
    scale, shift = torch.randn(shape[1]), torch.randn(shape[1])
    with capability(name):
        for x in layouts(shape):
            for args in ((x,), (x, scale, shift), (x, scale, shift, True), (x, None, None, True)):
                actual, expected = ops.bn_stats(*args), reference.bn_stats(*args)
                assert actual.count == expected.count
                # Means near zero are compared on the scale of the deviation.
                spread = (expected.m2 / expected.count).sqrt() + expected.mean.abs() + 1e-6
                assert ((actual.mean - expected.mean).abs() / spread).max() < 1e-5
                assert_near(actual.m2, expected.m2, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    x = channels_last(torch.randn(2, 6, 9, 5)).to(dtype)
    check_values(ops.bn_stats, reference.bn_stats, (x,), 1e-5)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert ops.bn_stats(x).mean.dtype == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_mean_over_small_variance(layout: torch.memory_format) -> None:
    x = (1000 + 1e-2 * torch.randn(4, 8, 40, 30, dtype=torch.float64)).float()
    x = x.contiguous(memory_format=layout)
    actual, expected = ops.bn_stats(x), reference.bn_stats(x.double())
    assert_near(actual.mean, expected.mean, 1e-7)
    assert_near(actual.m2, expected.m2, 1e-4)


def test_constant_channels_are_exact() -> None:
    x = channels_last(torch.randn(1, 6, 1, 1).expand(3, 6, 50, 7))
    stats = ops.bn_stats(x)
    assert torch.equal(stats.mean, x[0, :, 0, 0])
    assert torch.equal(stats.m2, torch.zeros(6))


def test_empty_and_one_pixel() -> None:
    for shape in ((0, 3, 4, 4), (2, 3, 0, 5)):
        stats = ops.bn_stats(torch.randn(shape))
        assert stats.count == 0 and not stats.mean.any() and not stats.m2.any()
    x = torch.randn(1, 3, 1, 1)
    assert torch.equal(ops.bn_stats(x).mean, x.flatten()) and not ops.bn_stats(x).m2.any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 5])
def test_nan_and_inf_stay_in_their_channel(
    layout: torch.memory_format, bad: float, position: int
) -> None:
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=layout)
    x[0, 2, 0, position] = bad
    stats = ops.bn_stats(x)
    assert torch.equal(stats.m2.isnan(), torch.tensor([False, False, True, False]))
    assert torch.equal(stats.mean.isfinite(), torch.tensor([True, True, False, True]))


def test_infinite_values_have_the_references_mean() -> None:
    for values in ([torch.inf], [-torch.inf], [torch.inf, -torch.inf]):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 3, 40, 30).contiguous(memory_format=layout)
            for i, value in enumerate(values):
                x[1, 1, 20 + i, 7] = value
            actual, expected = ops.bn_stats(x), reference.bn_stats(x)
            torch.testing.assert_close(actual.mean, expected.mean, equal_nan=True)
            assert torch.equal(actual.m2.isnan(), expected.m2.isnan())
            merged = ops.bn_stats_merge(ops.bn_stats(x[:1]), ops.bn_stats(x[1:]))
            torch.testing.assert_close(merged.mean, expected.mean, equal_nan=True)
            y, stats = ops.pointwise_conv(x, torch.eye(3).view(3, 3, 1, 1), want_stats=True)
            expected = reference.bn_stats(y)
            torch.testing.assert_close(stats.mean, expected.mean, equal_nan=True)


@pytest.mark.parametrize("name", CAPABILITIES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_outlier_as_the_first_pixel(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (1 + 1e-3 * torch.randn(1, 20, 120, 100)).contiguous(memory_format=layout)
    x[:, :, 0, 0] = 1000
    eye = torch.eye(20).view(20, 20, 1, 1)
    centre = torch.zeros(20, 1, 3, 3)
    centre[:, :, 1, 1] = 1
    expected = reference.bn_stats(x.double())
    with capability(name):
        found = [(ops.bn_stats(x), 2e-6), (ops.bn_stats([x]), 2e-6)]
        found += [(ops.pointwise_conv(x, eye, want_stats=True)[1], 2e-5)]
        found += [(ops.depthwise_conv(x, centre, want_stats=True)[1], 1e-4)]
    for stats, tolerance in found:
        assert ((stats.m2 - expected.m2).abs() / expected.m2).max() < tolerance
        assert (stats.mean - expected.mean).abs().max() < 1e-5


def test_threads_do_not_change_the_result() -> None:
    x = channels_last(torch.randn(2, 24, 61, 53))
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(ops.bn_stats(x))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(results[0].mean, other.mean)
        assert torch.equal(results[0].m2, other.m2)


PYRAMID = [(2, 6, 9, 7), (1, 6, 0, 3), (2, 6, 4, 5), (3, 6, 1, 1)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_several_maps_equal_one(layout: torch.memory_format, dtype: torch.dtype) -> None:
    maps = [torch.randn(s).to(dtype).contiguous(memory_format=layout) + 3 for s in PYRAMID]
    args = (torch.randn(6), torch.randn(6), True)
    actual, expected = ops.bn_stats(maps, *args), reference.bn_stats(maps, *args)
    assert actual.count == expected.count == sum(t[:, 0].numel() for t in maps)
    assert actual.mean.dtype == expected.mean.dtype
    assert_near(actual.mean, expected.mean, 1e-5)
    assert_near(actual.m2, expected.m2, 1e-5)
    merged = ops.bn_stats(maps[0], *args)
    for t in maps[1:]:
        merged = ops.bn_stats_merge(merged, ops.bn_stats(t, *args))
    assert_near(actual.mean, merged.mean, 1e-5)
    assert_near(actual.m2, merged.m2, 1e-5)
    if dtype == torch.float32 and layout == torch.channels_last:
        single, listed = ops.bn_stats(maps[0], *args), ops.bn_stats(maps[:1], *args)
        assert torch.equal(single.mean, listed.mean) and torch.equal(single.m2, listed.m2)


def test_several_empty_maps() -> None:
    stats = ops.bn_stats([torch.randn(0, 3, 2, 2), torch.randn(1, 3, 0, 2)])
    assert stats.count == 0 and not stats.mean.any() and not stats.m2.any()


@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_several_maps(affine: bool) -> None:
    torch.manual_seed(0)
    scale, shift = (torch.randn(6), torch.randn(6)) if affine else (None, None)
    args = ([torch.randn(s) for s in PYRAMID], scale, shift, True)
    check_gradients(ops.bn_stats, reference.bn_stats, args, torch.float64, 1e-9)


def test_merge_equals_statistics_of_the_union() -> None:
    x = torch.randn(5, 7, 6, 4) * 3 + 100
    merged = ops.bn_stats_merge(ops.bn_stats(x[:2]), ops.bn_stats(x[2:]))
    whole = ops.bn_stats(x)
    assert merged.count == whole.count
    assert_near(merged.mean, whole.mean, 1e-6)
    assert_near(merged.m2, whole.m2, 1e-5)
    empty = ops.bn_stats_merge(ops.bn_stats(x[:0]), whole)
    assert torch.equal(empty.mean, whole.mean) and torch.equal(empty.m2, whole.m2)


def test_fold_is_batch_norm() -> None:
    x, gamma, beta = torch.randn(2, 5, 8, 8) * 2 + 1, torch.randn(5), torch.randn(5)
    scale, shift = ops.bn_fold(ops.bn_stats(x), gamma, beta, 1e-5)
    expected = torch.nn.functional.batch_norm(x, None, None, gamma, beta, True)
    assert_near(x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1), expected, 1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_gradients(affine: bool) -> None:
    torch.manual_seed(0)
    c = 5
    scale, shift = (torch.randn(c), torch.randn(c)) if affine else (None, None)
    args = (torch.randn(2, c, 4, 3), scale, shift, True)
    check_gradients(ops.bn_stats, reference.bn_stats, args, torch.float64, 1e-9)

    def fold(op):
        return lambda mean, m2, g, b: op.bn_fold(
            ops.BNStats(torch.tensor(20.0, dtype=torch.float64), mean, m2.abs() + 1), g, b, 1e-3
        )

    vectors = tuple(torch.randn(c) for _ in range(4))
    check_gradients(fold(ops), fold(reference), vectors, torch.float64, 1e-9)


def test_opcheck() -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    scale, shift = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    opcheck(torch.ops.detnas_d2.bn_stats, (x, scale, shift, True))
    other = torch.randn(1, 3, 2, 2, requires_grad=True)
    opcheck(torch.ops.detnas_d2.bn_stats_list, ([x, other], scale, shift, True))
    stats = (torch.tensor(8.0, dtype=torch.float64), torch.randn(3), torch.rand(3) + 1)
    opcheck(torch.ops.detnas_d2.bn_fold, (*stats, scale, shift, 1e-5))
    mean = torch.randn(3)
    opcheck(
        torch.ops.detnas_d2.bn_stats_backward,
        (mean, mean, x.detach(), mean, scale.detach(), shift.detach(), True),
    )


def test_errors_name_the_argument() -> None:
    x = torch.randn(1, 3, 2, 2)
    with pytest.raises(RuntimeError, match=r"x: expected a tensor \(N, C, H, W\)"):
        ops.bn_stats(x[0])
    with pytest.raises(RuntimeError, match=r"scale: expected shape \[3\]"):
        ops.bn_stats(x, torch.ones(4), torch.ones(3))
    with pytest.raises(RuntimeError, match="scale and shift: expected both or neither"):
        ops.bn_stats(x, torch.ones(3))
    with pytest.raises(RuntimeError, match="x: expected at least one tensor"):
        ops.bn_stats([])
    with pytest.raises(RuntimeError, match="x: expected 3 channels as the first"):
        ops.bn_stats([x, torch.randn(1, 4, 2, 2)])
    with pytest.raises(RuntimeError, match="x: expected dtype Float as the first, got Double"):
        ops.bn_stats([x, x.double()])
