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
        mean: (C,) float64.
        m2: (C,) float64, sum of squared deviations from the mean.
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

    def cpu(self) -> Moments:
        """On the CPU, in memory of its own: vectors may be views of those of many BatchNorms."""
        return Moments(self.count, self.mean.clone().cpu(), self.m2.clone().cpu())


def moments_of(batch: Sequence[tuple[K, BNStats]]) -> list[tuple[K, Moments]]:
    """Moments of what :func:`detnas_d2.ops.bn_stats` found. Waits for a GPU only once."""
    if not batch:
        return []
    keys, stats = zip(*batch, strict=True)
    counts = torch.stack([s.count for s in stats]).tolist()
    sizes = [s.mean.numel() for s in stats]
    means = torch.cat([s.mean for s in stats]).double().split(sizes)
    m2s = torch.cat([s.m2 for s in stats]).double().split(sizes)
    moments = zip(map(int, counts), means, m2s, strict=True)
    return [(key, Moments(*of_key)) for key, of_key in zip(keys, moments, strict=True)]


def merge_pairs(pairs: Sequence[tuple[Moments, Moments]]) -> list[Moments]:
    """The moments of each pair's samples together (Chan, Golub, LeVeque 1979)."""
    merged = [b if a.count == 0 else a for a, b in pairs]
    both = [i for i, (a, b) in enumerate(pairs) if a.count and b.count]
    if not both:
        return merged
    firsts, seconds = zip(*(pairs[i] for i in both), strict=True)
    sizes = [a.mean.numel() for a in firsts]
    counts = [a.count + b.count for a, b in zip(firsts, seconds, strict=True)]

    def per_channel(factors: Iterable[float]) -> Tensor:
        repeated = torch.tensor([*factors], dtype=torch.float64)
        return repeated.repeat_interleave(torch.tensor(sizes)).to(firsts[0].mean.device)

    triples = list(zip(firsts, seconds, counts, strict=True))
    share = per_channel(b.count / n for _, b, n in triples)
    between = per_channel(a.count * b.count / n for a, b, n in triples)
    mean = torch.cat([a.mean for a in firsts])
    delta = torch.cat([b.mean for b in seconds]) - mean
    m2 = torch.cat([a.m2 for a in firsts]) + torch.cat([b.m2 for b in seconds])
    means = (mean + delta * share).split(sizes)
    m2s = (m2 + delta.square() * between).split(sizes)
    for i, *moments in zip(both, counts, means, m2s, strict=True):
        merged[i] = Moments(*moments)
    return merged


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
        seen |= first | dict(zip(known, merged, strict=True))
        rest = again
