"""Settings of searchers and limits, read off a config once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.values import RULES
from detnas_d2.search.constraints import Constraint, Limits
from detnas_d2.search.evolution import Evolution, EvolutionSettings
from detnas_d2.search.nsga2 import NSGA2, NSGA2Settings
from detnas_d2.search.predictor import PredictorSearch, PredictorSettings
from detnas_d2.search.random_search import RandomSearch
from detnas_d2.search.regularized import RegularizedEvolution, RegularizedSettings
from detnas_d2.search.searcher import Feasible, GenerationSearcher
from detnas_d2.utils.errors import InputError

STRATEGIES = ("evolution", "random", "regularized", "predictor")
FRONT_STRATEGIES = ("evolution", "random")
"""Those that have a meaning with several objectives."""

Own = RegularizedSettings | PredictorSettings | NSGA2Settings
"""Settings of a strategy that has some besides the sizes of generations."""

# Where the fields of settings are keys; of a field of several kinds, that of the first.
_NODES: dict[type[Any], str] = {
    EvolutionSettings: "SEARCH",
    Limits: "SEARCH",
    RegularizedSettings: "SEARCH.REGULARIZED",
    PredictorSettings: "SEARCH.PREDICTOR",
    NSGA2Settings: "SEARCH",
}


@dataclass(frozen=True)
class SearcherSettings:
    """Settings of the searcher.

    Attributes:
        strategy: one of ``STRATEGIES``.
        evolution: sizes of the generations; "random" has batches of a population.
        samples: candidates of "random".
        seed: derives every draw.
        own: those that "regularized", "predictor" or, with several objectives, "evolution" has
            besides; None for the others.
        objectives: "fitness", and costs that are minimised.
    """

    strategy: str
    evolution: EvolutionSettings
    samples: int
    seed: int
    own: Own | None
    objectives: tuple[str, ...] = ("fitness",)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SearcherSettings:
        """Those of ``cfg.SEARCH``: its preset with its overrides.

        Raises:
            InputError: an unknown strategy or preset, or numbers that do not go together.
        """
        search = cfg.SEARCH
        if search.STRATEGY not in STRATEGIES:
            raise InputError(f"cfg.SEARCH.STRATEGY is {search.STRATEGY!r}, not one of {STRATEGIES}")
        known = RULES["SEARCH.OBJECTIVES"]
        if not known.allows(search.OBJECTIVES):
            raise InputError(
                f"SEARCH.OBJECTIVES is {search.OBJECTIVES!r}: expected {known.expected}"
            )
        overrides: dict[str, Any] = {"attempts": search.ATTEMPTS}
        for key in ("POPULATION", "GENERATIONS", "PARENTS"):
            if search[key] > 0:
                overrides[key.lower()] = search[key]
        for key in ("MUTATION", "CROSSOVER", "RANDOM", "MUTATION_PROB"):
            if search[key] >= 0:
                overrides[key.lower()] = search[key]
        try:
            evolution = EvolutionSettings.preset(search.PRESET, **overrides)
        except ValueError as error:
            raise InputError(with_keys(error)) from None
        if evolution.parents_from == "population" and evolution.parents > evolution.population:
            raise InputError(
                f"SEARCH.PARENTS {evolution.parents}: expected at most the population of "
                f"{evolution.population}, which they are chosen from"
            )
        samples = search.NUM_SAMPLES or evolution.population * evolution.generations
        try:
            own = _own_settings(search, evolution)
        except ValueError as error:
            raise InputError(with_keys(error)) from None
        return cls(search.STRATEGY, evolution, samples, search.SEED, own, tuple(search.OBJECTIVES))

    def build(self, cardinalities: Sequence[int], feasible: Feasible) -> GenerationSearcher:
        """The searcher of paths with these numbers of operations per layer.

        Args:
            feasible: usually the `Constraint`, whose text appears in errors; with several
                objectives always.

        Raises:
            InputError: a population larger than the space, or no scikit-learn, which
                "predictor" needs.
            SearchSpaceExhausted: too few feasible paths for the first generation.
        """
        settings, paths = self.evolution, math.prod(cardinalities)
        if settings.population > paths:
            raise InputError(
                f"SEARCH.POPULATION {settings.population}: the space has {paths} paths; expected "
                "at most as many"
            )
        shared: dict[str, Any] = {
            "seed": self.seed,
            "feasible": feasible,
            "constraint": str(feasible),
        }
        if isinstance(self.own, RegularizedSettings):
            return RegularizedEvolution(cardinalities, self.own, **shared)
        if isinstance(self.own, PredictorSettings):
            return PredictorSearch(cardinalities, self.own, **shared)
        if isinstance(self.own, NSGA2Settings):
            if not isinstance(feasible, Constraint):
                raise TypeError(f"feasible is {feasible!r}, expected a Constraint, for its costs")
            costs_of = partial(feasible.selected_costs, self.objectives[1:])
            return NSGA2(cardinalities, self.own, costs_of=costs_of, **shared)
        if self.strategy == "evolution":
            return Evolution(cardinalities, settings, **shared)
        return RandomSearch(
            cardinalities,
            samples=self.samples,
            batch=settings.population,
            attempts=settings.attempts,
            **shared,
        )


def _own_settings(search: CfgNode, evolution: EvolutionSettings) -> Own | None:
    """Settings of a strategy that has some besides the sizes of the evolution's generations."""
    sizes = {
        "population": evolution.population,
        "generations": evolution.generations,
        "attempts": evolution.attempts,
    }
    if len(search.OBJECTIVES) > 1:
        if search.STRATEGY not in FRONT_STRATEGIES:
            raise InputError(
                f"SEARCH.STRATEGY {search.STRATEGY!r} has one objective, SEARCH.OBJECTIVES is "
                f"{list(search.OBJECTIVES)}: expected 'evolution', which is NSGA-II then, or "
                "'random'"
            )
        if search.STRATEGY == "evolution":
            return NSGA2Settings(
                mutation=evolution.mutation,
                crossover=evolution.crossover,
                random=evolution.random,
                mutation_prob=evolution.mutation_prob,
                objectives=tuple(search.OBJECTIVES),
                **sizes,
            )
    if search.STRATEGY == "regularized":
        alive = search.REGULARIZED.ALIVE or 2 * evolution.population
        sample = search.REGULARIZED.SAMPLE or max(2, alive // 4)
        return RegularizedSettings(alive=alive, sample=sample, **sizes)
    if search.STRATEGY == "predictor":
        return PredictorSettings(
            parents=evolution.parents,
            pool=search.PREDICTOR.POOL,
            random_share=search.PREDICTOR.RANDOM_SHARE,
            **sizes,
        )
    return None


def limits_from_config(cfg: CfgNode) -> Limits:
    """The limits of ``cfg.SEARCH``. Raises InputError if they contradict each other."""
    search = cfg.SEARCH
    try:
        return Limits(
            max_macs=search.MAX_MACS or None,
            min_macs=search.MIN_MACS or None,
            max_params=search.MAX_PARAMS or None,
            max_latency_ms=search.MAX_LATENCY_MS or None,
        )
    except ValueError as error:
        raise InputError(with_keys(error)) from None


def with_keys(message: object) -> str:
    """A message in which fields of the settings or limits have values, with the fields' keys."""
    keys = {
        field.name: f"{node}.{field.name.upper()}"
        for kind, node in reversed(_NODES.items())
        for field in dataclasses.fields(kind)
    }
    keys["preset"] = "SEARCH.PRESET"
    pattern = rf"\b({'|'.join(keys)})(?= must | is | -?[\d'])"
    return re.sub(pattern, lambda match: keys[match[1]], str(message))


def search_fingerprint(
    *,
    space: Any,
    searcher: GenerationSearcher,
    limits: Limits,
    checkpoint_sha256: str,
    **others: Mapping[str, Any] | str | int | float | None,
) -> dict[str, Any]:
    """Everything that determines the result of a search, for `open_history`.

    Args:
        space: a dataclass, e.g. SearchSpace.
        checkpoint_sha256: of the supernet's checkpoint (`files.sha256_of`).
        others: JSON values: datasets, calibration settings, metric, test-time input size, sha256
            of the latency table, ...
    """
    return {
        "space": dataclasses.asdict(space),
        "searcher": searcher.describe(),
        "limits": dataclasses.asdict(limits),
        "checkpoint_sha256": checkpoint_sha256,
        **others,
    }
