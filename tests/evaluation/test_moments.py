"""Moments of many BatchNorms merged as one vector against Chan's formula for each of them."""

from __future__ import annotations

import pickle

import pytest
import torch

from detnas_d2.evaluation.moments import Moments, moments_of, pool
from detnas_d2.ops import BNStats, bn_stats


def stats_of(seed: int, channels: int, pixels: int, offset: float = 0.0) -> BNStats:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, channels, pixels, 3 if pixels else 0, generator=generator) * seed + offset
    return bn_stats(x)


def chan(a: Moments, b: Moments) -> Moments:
    """Both together, channel by channel."""
    if a.count == 0 or b.count == 0:
        return a if b.count == 0 else b
    n, mean, m2 = a.count + b.count, a.mean.clone(), a.m2.clone()
    for c in range(len(mean)):
        delta = b.mean[c].item() - a.mean[c].item()
        mean[c] = a.mean[c].item() + delta * (b.count / n)
        between = delta * delta * (a.count * b.count / n)
        m2[c] = a.m2[c].item() + b.m2[c].item() + between
    return Moments(n, mean, m2)


def single(stats: BNStats) -> Moments:
    return Moments(int(stats.count), stats.mean.double(), stats.m2.double())


def assert_equal(a: Moments, b: Moments) -> None:
    assert a.count == b.count and a.mean.dtype == b.m2.dtype == torch.float64
    assert torch.equal(a.mean, b.mean) and torch.equal(a.m2, b.m2)


def test_bit_equal_to_channel_by_channel() -> None:
    batches = [  # "b" comes twice, "c" not always, "empty" sees nothing, "late" nothing at first
        [("a", stats_of(1, 7, 5)), ("b", stats_of(2, 3, 4, 100.0)), ("empty", stats_of(1, 2, 0)),
         ("b", stats_of(3, 3, 2)), ("late", stats_of(1, 2, 0)), ("c", stats_of(4, 1, 1))],
        [("b", stats_of(5, 3, 9)), ("a", stats_of(6, 7, 2, -3.0)), ("late", stats_of(9, 2, 3)),
         ("empty", stats_of(1, 2, 0)), ("b", stats_of(7, 3, 0)), ("b", stats_of(8, 3, 1))],
        [("a", stats_of(10, 7, 0)), ("c", stats_of(11, 1, 6)), ("late", stats_of(12, 2, 8))],
    ]  # fmt: skip
    seen: dict[str, Moments] = {}
    expected: dict[str, Moments] = {}
    for batch in batches:
        pool(seen, moments_of(batch))
        for key, stats in batch:
            alone = single(stats)
            expected[key] = chan(expected[key], alone) if key in expected else alone
    assert seen.keys() == expected.keys() and seen["empty"].count == 0
    for key, moments in expected.items():
        assert_equal(seen[key], moments)


def test_order_of_a_repeated_key_counts() -> None:
    parts = [stats_of(seed, 4, 3 * seed, 10.0**seed) for seed in (1, 2, 3)]
    seen: dict[int, Moments] = {}
    pool(seen, moments_of([(0, part) for part in parts]))
    assert_equal(seen[0], chan(chan(*map(single, parts[:2])), single(parts[2])))


def test_nothing_to_pool() -> None:
    seen: dict[str, Moments] = {}
    pool(seen, moments_of([]))
    assert seen == {}


def test_merging_is_associative() -> None:
    a, b, c, d = (single(stats_of(10**n, 4, n + 1, 100.0)) for n in range(4))
    left = a.merge(b).merge(c).merge(d)
    right = a.merge(b.merge(c.merge(d)))
    crossed = d.merge(b).merge(c.merge(a))
    for other in (right, crossed):
        assert other.count == left.count
        torch.testing.assert_close(other.mean, left.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.m2, left.m2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("batches", [1, 2])
def test_what_is_sent_to_other_ranks_is_its_own_memory(batches: int) -> None:
    seen: dict[int, Moments] = {}
    for _ in range(batches):
        pool(seen, moments_of([(i, stats_of(1, 100, 2)) for i in range(20)]))
    assert len(pickle.dumps(seen[3].cpu())) < 4000  # two vectors of 800 bytes, not of 16,000
    assert_equal(seen[3].cpu(), seen[3])
