"""Searchers, limits and fingerprints from ``cfg.SEARCH``."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.search.constraints import Constraint, CostTableLike, LatencyTableLike, Limits
from detnas_d2.search.evolution import Evolution, EvolutionSettings
from detnas_d2.search.random_search import RandomSearch
from detnas_d2.search.searcher import Feasible, GenerationSearcher
from detnas_d2.utils.errors import InputError

logger = logging.getLogger(__name__)

STRATEGIES = ("evolution", "random")


def settings_from_config(cfg: CfgNode) -> EvolutionSettings:
    """The preset with the config's overrides. Raises ValueError naming what is wrong."""
    search = cfg.SEARCH
    overrides: dict[str, Any] = {"attempts": search.ATTEMPTS}
    for key in ("POPULATION", "GENERATIONS", "PARENTS"):
        if search[key] > 0:
            overrides[key.lower()] = search[key]
    for key in ("MUTATION", "CROSSOVER", "RANDOM", "MUTATION_PROB"):
        if search[key] >= 0:
            overrides[key.lower()] = search[key]
    try:
        return EvolutionSettings.preset(search.PRESET, **overrides)
    except ValueError as error:
        raise InputError(_with_keys(error)) from None


def _with_keys(message: object) -> str:
    """A message in which fields of the settings or limits have values, with the fields' keys."""
    fields = [
        field.name for kind in (EvolutionSettings, Limits) for field in dataclasses.fields(kind)
    ]
    pattern = rf"\b({'|'.join(fields)}|preset)(?= must | is | -?[\d'])"
    return re.sub(pattern, lambda match: f"SEARCH.{match[1].upper()}", str(message))


def build_constraint(
    cfg: CfgNode, costs: CostTableLike | None, latency: LatencyTableLike | None = None
) -> Constraint:
    """The limits of ``cfg.SEARCH``, checked to be satisfiable.

    Args:
        costs: table at ``cfg.SEARCH.MAX_MACS_INPUT``.
        latency: what ``cfg.SEARCH.LATENCY_TABLE`` holds, None without one.

    Raises:
        ValueError: a limit without its table, or below the cheapest path.
    """
    search = cfg.SEARCH
    limits = Limits(
        max_macs=search.MAX_MACS or None,
        min_macs=search.MIN_MACS or None,
        max_params=search.MAX_PARAMS or None,
        max_latency_ms=search.MAX_LATENCY_MS or None,
    )
    try:
        constraint = Constraint(limits, costs, latency)
        constraint.check_satisfiable()
    except ValueError as error:
        raise type(error)(_with_keys(error)) from None
    for text in constraint.idle():
        logger.warning("%s", _with_keys(text))
    return constraint


def build_searcher(cfg: CfgNode, space: Any, feasible: Feasible) -> GenerationSearcher:
    """The searcher of ``cfg.SEARCH.STRATEGY`` over ``space.cardinalities``.

    Args:
        feasible: usually the `Constraint`, whose text appears in errors.

    Raises:
        ValueError: an unknown strategy or preset, or numbers that do not go together.
        SearchSpaceExhausted: too few feasible paths for the first generation.
    """
    search = cfg.SEARCH
    if search.STRATEGY not in STRATEGIES:
        raise InputError(f"cfg.SEARCH.STRATEGY is {search.STRATEGY!r}, not one of {STRATEGIES}")
    settings = settings_from_config(cfg)
    if settings.parents_from == "population" and settings.parents > settings.population:
        raise InputError(
            f"SEARCH.PARENTS {settings.parents}: expected at most the population of "
            f"{settings.population}, which they are chosen from"
        )
    paths = math.prod(space.cardinalities)
    if settings.population > paths:
        raise InputError(
            f"SEARCH.POPULATION {settings.population}: the space has {paths} paths; expected at "
            "most as many"
        )
    common = {"seed": search.SEED, "feasible": feasible, "constraint": str(feasible)}
    if search.STRATEGY == "evolution":
        return Evolution(space.cardinalities, settings, **common)
    return RandomSearch(
        space.cardinalities,
        samples=search.NUM_SAMPLES or settings.population * settings.generations,
        batch=settings.population,
        attempts=search.ATTEMPTS,
        **common,
    )


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
        others: JSON values: data sets, calibration settings, metric, test-time input size, sha256
            of the latency table, ...
    """
    return {
        "space": dataclasses.asdict(space),
        "searcher": searcher.describe(),
        "limits": dataclasses.asdict(limits),
        "checkpoint_sha256": checkpoint_sha256,
        **others,
    }
