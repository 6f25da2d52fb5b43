"""Do other image sizes want other architectures? Searches of several supernets, compared.

What a search found at a size it chose by the scores of its own supernet on its own images, which
are too high by part of their noise. So it is scored by the supernets of the other searches. Random
networks that all of them score tell besides whether the sizes rank architectures alike.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from detnas_d2.analysis.size_agreement import Agreement, agreement
from detnas_d2.config.resolutions import at_resolution, resolutions_of
from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.pipeline.differences import Difference, difference
from detnas_d2.pipeline.truth_scores import ScoreLog, Tell, supernet_fitness
from detnas_d2.search_space import Path
from detnas_d2.utils.errors import InputError

Fitness = Mapping[tuple[Path, int], float]
"""(path without resolution, size) -> fitness by one supernet, of those that have one."""
_LEAST = 8  # networks; the order of fewer tells nothing


@dataclass(frozen=True)
class FoundPaths:
    """What a search found.

    Attributes:
        name: of the search, for people.
        best: size -> the best path, without its resolution.
    """

    name: str
    cfg: CfgNode
    best: Mapping[int, Path]


@dataclass(frozen=True)
class SizeComparison:
    """Scores of several supernets, each on the images of its search.

    Attributes:
        sizes: rising.
        searches: names.
        best: for each search, size -> its best path.
        networks: random ones.
        scores: of each search's supernet.
    """

    sizes: tuple[int, ...]
    searches: tuple[str, ...]
    best: tuple[Mapping[int, Path], ...]
    networks: tuple[Path, ...]
    scores: tuple[Fitness, ...]

    def judged(self, search: int, found_at: int, size: int) -> float | None:
        """Fitness at ``size`` of what a search found best at ``found_at``: mean over the supernets
        of the others; None unless all of them have one.
        """
        key = self.best[search][found_at], size
        others = [own.get(key) for place, own in enumerate(self.scores) if place != search]
        known = [value for value in others if value is not None]
        return statistics.fmean(known) if len(known) == len(others) else None

    def of_random(self, size: int) -> np.ndarray:
        """float[S, N]: scores of the random networks that all supernets score at all sizes."""
        return np.array([[own[path, size] for path in self.scored] for own in self.scores])

    @cached_property
    def scored(self) -> list[Path]:
        """The random networks that have a score everywhere."""
        return [
            path
            for path in self.networks
            if all((path, size) in own for own in self.scores for size in self.sizes)
        ]

    @cached_property
    def agreements(self) -> dict[tuple[int, int], Agreement]:
        """Of each two sizes; none where too few networks have scores."""
        if len(self.scored) < _LEAST:
            return {}
        pairs = itertools.combinations(self.sizes, 2)
        return {(a, b): agreement(self.of_random(a), self.of_random(b)) for a, b in pairs}

    @cached_property
    def differences(self) -> list[Difference]:
        """At each size what was found best there less what was found best at each other one,
        paired by search.
        """
        found = []
        for size, other in itertools.permutations(self.sizes, 2):
            ours: dict[int, list[float]] = {}
            theirs: dict[int, list[float]] = {}
            for search in range(len(self.searches)):
                here, there = (self.judged(search, at, size) for at in (size, other))
                if here is not None and there is not None:
                    ours[search], theirs[search] = [here], [there]
            if ours:
                rows = f"best at {size}", f"best at {other}"
                metric = f"fitness at {size}"
                found.append(difference(*rows, metric, ours, theirs, unit="searches"))
        return found

    def table(self) -> list[list[str]]:
        """Rows of texts, the first one the head: fitness at each size, by the other supernets."""
        lines = [["", *(f"at {size}" for size in self.sizes)]]
        for found_at in self.sizes:
            cells = []
            for size in self.sizes:
                told = [self.judged(s, found_at, size) for s in range(len(self.searches))]
                known = [value for value in told if value is not None]
                cells.append(f"{statistics.fmean(known):.2f}" if known else "-")
            lines.append([f"found best at {found_at}", *cells])
        means = [
            f"{self.of_random(size).mean():.2f}" if self.scored else "-" for size in self.sizes
        ]
        return [*lines, [f"{len(self.scored)} random networks", *means]]

    def sentences(self) -> list[str]:
        """The differences and the agreements, in words."""
        told = [str(found) for found in self.differences]
        for (a, b), found in self.agreements.items():
            told.append(
                f"{a} and {b}: two supernets rank {len(self.scored)} random networks with tau "
                f"{found.across} one at each size, {found.at_first} both at {a}, "
                f"{found.at_second} both at {b}, which lets an order that the size does not "
                f"change reach {found.expected}; it is {found.loss} below that: {found.verdict}"
            )
        return told

    def text(self) -> str:
        """The table in Markdown, and the sentences as a list."""
        head, *rows = self.table()
        lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
        about = (
            f"Fitness by the supernets of the other searches, mean over {len(self.searches)} "
            "searches (95 % intervals: of differences over searches, of taus over networks)"
        )
        return "\n".join([about, "", *lines, "", *(f"- {told}" for told in self.sentences())])

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "sizes": list(self.sizes),
            "searches": [
                {
                    "name": name,
                    "best": {str(size): str(path) for size, path in best.items()},
                    "scores": [
                        {"path": str(path), "size": size, "fitness": value}
                        for (path, size), value in own.items()
                    ],
                }
                for name, best, own in zip(self.searches, self.best, self.scores, strict=True)
            ],
            "networks": [str(path) for path in self.scored],
            "differences": [found.as_dict() for found in self.differences],
            "agreements": [
                {"sizes": list(sizes), **asdict(found), "verdict": found.verdict}
                for sizes, found in self.agreements.items()
            ],
        }


def compare(
    searches: Sequence[FoundPaths], networks: int, folder: str, tell: Tell
) -> SizeComparison:
    """Scores what the searches found, and random networks, by all supernets at all sizes.

    Args:
        networks: how many random ones there are; they keep the limits of the search at all sizes.
        folder: keeps the scores; what is there is not evaluated again.

    Raises:
        InputError: searches of another space, data or sizes, or of one supernet.
    """
    sizes = _check_alike(searches)
    cfg = searches[0].cfg
    drawn = random_networks(cfg, networks)
    paths = list(dict.fromkeys([*(p for s in searches for p in s.best.values()), *drawn]))
    os.makedirs(folder, exist_ok=True)
    log, scores = ScoreLog(folder), []
    for search in searches:
        own: dict[tuple[Path, int], float] = {}
        for size in sizes:
            tell(f"{search.name}, at {size}: {len(paths)} networks")
            sized = at_resolution(search.cfg, size)
            found = supernet_fitness(sized, sized.MODEL.WEIGHTS, paths, log, lambda line: None)
            own |= {(path, size): found[str(path)] for path in paths if str(path) in found}
        scores.append(own)
    names = tuple(search.name for search in searches)
    best = tuple(search.best for search in searches)
    return SizeComparison(sizes, names, best, tuple(drawn), tuple(scores))


def _check_alike(searches: Sequence[FoundPaths]) -> tuple[int, ...]:
    """The sizes of the searches."""
    first, weights = searches[0], dict[str, str]()
    for search in searches:
        for what, ours, theirs in (
            ("SEARCH.RESOLUTIONS", resolutions_of(search.cfg), resolutions_of(first.cfg)),
            ("sizes that have a candidate", sorted(search.best), sorted(first.best)),
            ("space", _space(search), _space(first)),
            ("scored on", _scored_on(search.cfg), _scored_on(first.cfg)),
        ):
            if ours != theirs:
                raise InputError(
                    f"{search.name}: {what}: {ours}, of {first.name} {theirs}; expected searches "
                    "that differ in their seeds alone"
                )
        file = os.path.realpath(search.cfg.MODEL.WEIGHTS)
        if file in weights:
            raise InputError(
                f"{search.name} and {weights[file]} have one supernet, {file}; expected a supernet "
                "of its own of each, as a pipeline with SEEDS trains them"
            )
        weights[file] = search.name
    return tuple(sorted(first.best))


def _space(search: FoundPaths) -> Any:
    return next(iter(search.best.values())).space


def _scored_on(cfg: CfgNode) -> tuple[str, str]:
    settings = EvaluationSettings.from_config(cfg)
    return settings.validation, settings.named_metric


def random_networks(cfg: CfgNode, count: int) -> list[Path]:
    """Different random paths, each within the limits of a search at all of its sizes; the first n
    are the same whatever ``count`` is.

    Raises:
        InputError: there are fewer.
    """
    proposals, rng = Proposals.from_config(cfg), random.Random("resolutions")
    candidates, found = proposals.candidates, dict[Path, None]()
    for _ in range(count * cfg.SEARCH.ATTEMPTS):
        if len(found) == count:
            break
        path = candidates.space.random_path(rng)
        genes = (candidates.genes(path.at(size)) for size in candidates.resolutions)
        if all(map(proposals.constraint, genes)):
            found[path] = None
    if len(found) < count:
        raise InputError(
            f"--networks {count}: {len(found)} paths were found that keep "
            f"{proposals.constraint} at all of {list(candidates.resolutions)}; ask for fewer"
        )
    return list(found)
