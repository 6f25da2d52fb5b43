"""Pooled moments of the channels of many BatchNorms, merged with Chan's parallel update.

A network has dozens of BatchNorms of a few hundred channels: a merge for each would cost more in
calls than in arithmetic. Here the channels of all of them are one vector.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from detnas_d2.ops import BNStats

K = TypeVar("K", bound=Hashable)


@dataclass
class Moments:
    """Pooled first and second moments of C channels.

    Args:
        count: number of samples (N * H * W, summed over batches).
        mean: (C,) float64; of a single batch, as the operator made it.
        m2: (C,) as mean, sum of squared deviations from the mean.
    """

    count: int
    mean: Tensor
    m2: Tensor

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of samples together."""
        return merge_pairs([(self, other)])[0]

    @property
    def variance(self) -> Tensor:
        """Unbiased variance (C,), as BatchNorm's running_var; biased for a single sample."""
        return self.m2 / max(self.count - 1, 1)

    def double(self) -> Moments:
        return Moments(self.count, self.mean.double(), self.m2.double())

    def cpu(self) -> Moments:
        """On the CPU, in memory of its own: vectors may be views of those of many BatchNorms."""
        return Moments(self.count, self.mean.clone().cpu(), self.m2.clone().cpu())


def moments_of(batch: Sequence[tuple[K, BNStats]]) -> list[tuple[K, Moments]]:
    """Moments of the results of :func:`detnas_d2.ops.bn_stats`. Waits for a GPU only once."""
    if not batch:
        return []
    counts = torch.stack([stats.count for _, stats in batch]).tolist()
    both = zip(batch, counts, strict=True)
    return [(key, Moments(int(count), stats.mean, stats.m2)) for (key, stats), count in both]


def merge_pairs(pairs: Sequence[tuple[Moments, Moments]]) -> list[Moments]:
    """The moments of each pair's samples together (Chan, Golub, LeVeque 1979), in float64."""
    where = [i for i, (first, second) in enumerate(pairs) if first.count and second.count]
    merged = [first for first, _ in pairs]
    for i in set(range(len(pairs))).difference(where):
        first, second = pairs[i]
        merged[i] = (first if first.count else second).double()
    if not where:
        return merged
    firsts, seconds = zip(*(pairs[i] for i in where), strict=True)
    counts = [a.count + b.count for a, b in zip(firsts, seconds, strict=True)]
    sizes = [a.mean.numel() for a in firsts]
    triples = list(zip(firsts, seconds, counts, strict=True))
    shares = [b.count / n for _, b, n in triples]
    between = [a.count * b.count / n for a, b, n in triples]
    factors = torch.tensor([shares, between], dtype=torch.float64)
    factors = factors.repeat_interleave(torch.tensor(sizes), dim=1).to(firsts[0].mean.device)
    a, b = _joined(firsts), _joined(seconds)
    delta = b[0] - a[0]
    means = torch.split(a[0] + delta * factors[0], sizes)
    m2s = torch.split(a[1] + b[1] + delta.square() * factors[1], sizes)
    for i, *moments in zip(where, counts, means, m2s, strict=True):
        merged[i] = Moments(*moments)
    return merged


def _joined(moments: Sequence[Moments]) -> Tensor:
    """Means and m2s of all, (2, sum of C) float64."""
    vectors = [m.mean for m in moments] + [m.m2 for m in moments]
    return torch.cat(vectors).double().view(2, -1)


def pool(seen: dict[K, Moments], new: Iterable[tuple[K, Moments]]) -> None:
    """Adds new moments to those of their keys, in place and in order; keys may come repeatedly."""
    rest = list(new)
    while rest:
        again: list[tuple[K, Moments]] = []
        first: dict[K, Moments] = {}
        for key, moments in rest:
            if key in first:
                again.append((key, moments))
            else:
                first[key] = moments
        known = [key for key in first if key in seen]
        merged = merge_pairs([(seen[key], first[key]) for key in known])
        seen |= {key: moments.double() for key, moments in first.items() if key not in seen}
        seen |= zip(known, merged, strict=True)
        rest = again
