"""Samplers of the paths that an update trains: pure functions of (seed, iteration)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from detectron2.config import CfgNode

from detnas_d2.config.resolutions import resolutions_of
from detnas_d2.engine.architectures import space_costs
from detnas_d2.search_space import AdditiveTable, LayerSpec, Path, SearchSpace, build_cost_table
from detnas_d2.search_space.candidates import Table
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.operations import get_operation
from detnas_d2.search_space.shuffle_ops import ShuffleOp, shuffle_op
from detnas_d2.search_space.space import SKIP, PathSpace
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


class FairPathSampler:
    """Strict fairness (FairNAS, arXiv 1907.01845): every operation of a layer once per update.

    An update has as many paths as the layer with the most operations has operations. A layer with
    fewer starts over, in another order, so that no operation of it is taken twice more often than
    another in an update: numbers differ by one at most.
    """

    def __init__(self, space: PathSpace, seed: int) -> None:
        self.space, self.seed = space, seed
        self.paths = max(space.cardinalities)

    def __call__(self, iteration: int) -> tuple[Path, ...]:
        rng = random.Random(f"path/{self.seed}/{iteration}")
        layers = [self._orders(rng, count) for count in self.space.cardinalities]
        return tuple(Path(self.space, choices) for choices in zip(*layers, strict=True))

    def _orders(self, rng: random.Random, count: int) -> list[int]:
        """As many choices as there are paths: random orders of all, one after the other."""
        choices: list[int] = []
        while len(choices) < self.paths:
            choices += rng.sample(range(count), count)
        return choices[: self.paths]


class SandwichPathSampler:
    """The sandwich rule (BigNAS, arXiv 2003.11142): the extremes of the space, and random paths.

    An update's paths are the most expensive one, which may teach the others, the cheapest one, and
    ``random_paths`` drawn uniformly.

    Args:
        costs: what is dear and cheap is looked up in.

    Raises:
        InputError: depth and width of the space's networks are fixed.
    """

    def __init__(self, space: PathSpace, seed: int, costs: Table, *, random_paths: int = 2) -> None:
        elastic = isinstance(space, ElasticHitSpace)
        if not elastic and not any(_is_elastic(layer) for layer in space.layers):
            raise InputError(
                f"space {space.name!r} has neither operations of several widths (with '_e2', "
                "'_e3', ...) nor 'skip'; expected a space that has, or 'fair'"
            )
        self.space, self.seed, self.random_paths = space, seed, random_paths
        self.dearest = Path(space, costs.most_expensive_choices())
        self.cheapest = Path(space, costs.cheapest_choices())

    def __call__(self, iteration: int) -> tuple[Path, ...]:
        rng = random.Random(f"path/{self.seed}/{iteration}")
        drawn = (self.space.random_path(rng) for _ in range(self.random_paths))
        return self.dearest, self.cheapest, *drawn


class ResolutionSampler:
    """Paths of another sampler, with resolutions drawn uniformly.

    The paths of an update share one, as one path has one; those of the sandwich rule each have
    their own: the most expensive path the largest, the cheapest the smallest (BigNAS).

    Args:
        paths: draws them.
        resolutions: rising.
    """

    def __init__(self, paths: PathSampler, resolutions: Sequence[int], seed: int) -> None:
        self.paths, self.resolutions, self.seed = paths, tuple(resolutions), seed

    def __call__(self, iteration: int) -> tuple[Path, ...]:
        paths = self.paths(iteration)
        drawn = self.drawn(iteration, len(paths))
        return tuple(path.at(size) for path, size in zip(paths, drawn, strict=True))

    def drawn(self, iteration: int, count: int) -> tuple[int, ...]:
        """The resolutions of an iteration's ``count`` paths."""
        rng = random.Random(f"resolution/{self.seed}/{iteration}")
        if not isinstance(self.paths, SandwichPathSampler):
            return (rng.choice(self.resolutions),) * count
        others = (rng.choice(self.resolutions) for _ in range(count - 2))
        return (self.resolutions[-1], self.resolutions[0], *others)

    def sizes(self, iteration: int) -> tuple[int, ...]:
        """The resolutions that an iteration's images are needed at."""
        return self.drawn(iteration, len(self.paths(iteration)))


def build_path_sampler(cfg: CfgNode, space: PathSpace) -> PathSampler:
    """The sampler ``SUPERNET.PATH_SAMPLING`` for the supernet of a training config; its paths have
    a resolution if ``SEARCH.RESOLUTIONS`` are searched.

    Raises:
        InputError: an unknown sampling, or one that does not fit the space.
    """
    kind = cfg.SUPERNET.PATH_SAMPLING
    if kind not in _SAMPLERS:
        raise InputError(
            f"SUPERNET.PATH_SAMPLING {kind!r}: expected one of {', '.join(map(repr, _SAMPLERS))}"
        )
    paths, resolutions = _SAMPLERS[kind](cfg, space), resolutions_of(cfg)
    if not resolutions:
        return paths
    if kind == "sandwich" and cfg.SUPERNET.DISTILL_WEIGHT:
        raise InputError(
            f"SUPERNET.DISTILL_WEIGHT {cfg.SUPERNET.DISTILL_WEIGHT}: with SEARCH.RESOLUTIONS "
            f"{list(resolutions)} the paths of an update see images of several sizes, whose "
            "features cannot be compared; expected 0"
        )
    return ResolutionSampler(paths, resolutions, cfg.SEED)


def _binned(cfg: CfgNode, space: PathSpace) -> FlopsBinnedPathSampler:
    if not isinstance(space, SearchSpace):
        raise InputError("SUPERNET.PATH_SAMPLING 'flops_bins': only DetNAS spaces have bins")
    edges, classes = cfg.SUPERNET.FLOPS_BINS, cfg.MODEL.CLASSIFIER.NUM_CLASSES
    try:
        return FlopsBinnedPathSampler(space, cfg.SEED, edges, num_classes=classes)
    except ValueError as error:
        raise InputError(f"SUPERNET.FLOPS_BINS: {error}") from None


def _sandwich(cfg: CfgNode, space: PathSpace) -> SandwichPathSampler:
    if isinstance(space, ElasticHitSpace) and cfg.SUPERNET.DISTILL_WEIGHT:
        raise InputError(
            f"SUPERNET.DISTILL_WEIGHT {cfg.SUPERNET.DISTILL_WEIGHT}: with MODEL.HIT.NECK_CHANNELS "
            f"{list(space.neck_channels)} the features of the paths of an update have different "
            "channels and cannot be compared; expected 0"
        )
    macs, drawn = space_costs(cfg, space).macs, cfg.SUPERNET.SANDWICH_PATHS
    try:
        return SandwichPathSampler(space, cfg.SEED, macs, random_paths=drawn)
    except InputError as error:
        raise InputError(f"SUPERNET.PATH_SAMPLING 'sandwich': {error}") from None


_SAMPLERS: dict[str, Callable[[CfgNode, PathSpace], PathSampler]] = {
    "uniform": lambda cfg, space: UniformPathSampler(space, cfg.SEED),
    "flops_bins": _binned,
    "fair": lambda cfg, space: FairPathSampler(space, cfg.SEED),
    "sandwich": _sandwich,
}


def _is_elastic(layer: LayerSpec) -> bool:
    """Whether the layer's operations differ in width, or one of several is to skip the layer."""
    found = [shuffle_op(op) or get_operation(op) for op in layer.ops]
    wide = (op for op in found if isinstance(op, ShuffleOp) or op.kind == "ir")
    return len({op.expansion for op in wide}) > 1 or (SKIP in layer.ops and len(layer.ops) > 1)


def _classifier_macs(space: SearchSpace, num_classes: int) -> int:
    """Last convolution (on 7x7 after four stages) and linear layer."""
    positions = (-(-224 // space.layers[-1].reduction)) ** 2
    last = positions * space.stage_channels[-1] * space.last_channels
    return last + space.last_channels * num_classes
