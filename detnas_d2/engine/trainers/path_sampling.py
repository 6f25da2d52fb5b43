"""Samplers of the paths that an update trains: pure functions of (seed, iteration)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from detectron2.config import CfgNode

from detnas_d2.search_space import AdditiveTable, Path, SearchSpace, build_cost_table
from detnas_d2.search_space.space import PathSpace
from detnas_d2.utils.errors import InputError

PathSampler = Callable[[int], tuple[Path, ...]]
"""Iteration -> the paths of its update, one or more, the same on all ranks."""


class UniformPathSampler:
    """Uniform sampling of single paths (DetNAS section 3.1, step 2).

    All ranks agree without communication, and a resumed run continues the same sequence.
    """

    def __init__(self, space: PathSpace, seed: int) -> None:
        self.space, self.seed = space, seed

    def __call__(self, iteration: int) -> tuple[Path, ...]:
        return (self.space.random_path(random.Random(f"path/{self.seed}/{iteration}")),)


class FlopsBinnedPathSampler:
    """The sampling of the released ImageNet stage: multiply-adds uniform over bins.

    A bin is drawn uniformly, then random paths until one falls into it; after ``attempts`` of
    them a random path is taken as it is. Cheap and expensive paths, which uniform sampling
    seldom draws, so are trained as often as average ones.

    Args:
        edges: rising multiply-adds; bin i holds the paths of ``edges[i]`` to below
            ``edges[i + 1]``. They are counted at 3x224x224 for the whole classifier: body, last
            convolution and a linear layer of ``num_classes`` outputs (in the small space
            33,136,640 more than the body).

    Raises:
        ValueError: fewer than two edges, edges that do not rise, or bins that hold no path.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        edges: Sequence[int],
        *,
        num_classes: int = 1000,
        attempts: int = 500,
    ) -> None:
        if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
            raise InputError(f"edges {list(edges)}: expected at least two, each above the last")
        self.space, self.seed, self.attempts = space, seed, attempts
        self.bins = tuple(pairwise(edges))
        body = build_cost_table(space, (224, 224)).macs
        base = body.base + _classifier_macs(space, num_classes)
        self._macs = AdditiveTable(base, body.entries)
        least, most = self._macs.cheapest(), self._macs.most_expensive()
        empty = [b for b in self.bins if b[1] <= least or b[0] > most]
        if empty:
            raise InputError(
                f"bins {empty} hold no path of space {space.name!r}, whose classifiers take "
                f"{least} to {most} multiply-adds"
            )

    def __call__(self, iteration: int) -> tuple[Path, ...]:
        rng = random.Random(f"path/{self.seed}/{iteration}")
        low, high = rng.choice(self.bins)
        for _ in range(self.attempts):
            path = self.space.random_path(rng)
            if low <= self.macs(path) < high:
                return (path,)
        return (self.space.random_path(rng),)

    def macs(self, path: Path) -> int:
        """Multiply-adds of the classifier of ``path`` at 3x224x224."""
        return self._macs.total(path.choices)


def build_path_sampler(cfg: CfgNode, space: PathSpace) -> PathSampler:
    """The sampler ``SUPERNET.PATH_SAMPLING`` for the supernet of a training config.

    Raises:
        ValueError: an unknown sampling, or bins that do not fit the space.
    """
    kind = cfg.SUPERNET.PATH_SAMPLING
    if kind == "uniform":
        return UniformPathSampler(space, cfg.SEED)
    if kind != "flops_bins":
        raise InputError(f"SUPERNET.PATH_SAMPLING {kind!r}: expected 'uniform' or 'flops_bins'")
    if not isinstance(space, SearchSpace):
        raise InputError("SUPERNET.PATH_SAMPLING 'flops_bins': only DetNAS spaces have bins")
    try:
        return FlopsBinnedPathSampler(
            space,
            cfg.SEED,
            cfg.SUPERNET.FLOPS_BINS,
            num_classes=cfg.MODEL.CLASSIFIER.NUM_CLASSES,
        )
    except ValueError as error:
        raise InputError(f"SUPERNET.FLOPS_BINS: {error}") from None


def _classifier_macs(space: SearchSpace, num_classes: int) -> int:
    """Last convolution (on 7x7) and linear layer."""
    positions = (224 // 32) ** 2
    last = positions * space.stage_channels[-1] * space.last_channels
    return last + space.last_channels * num_classes
