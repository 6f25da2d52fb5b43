"""Random networks of a pipeline: PATH ``random NUMBER``, with or without LIKE."""

from __future__ import annotations

import random

from detectron2.config import CfgNode

from detnas_d2.engine.proposals import Proposals
from detnas_d2.pipeline.stages import PipelineError, Stage
from detnas_d2.search.cost_draws import cost_sampler, in_band
from detnas_d2.search_space import Choices, Path, PathError
from detnas_d2.search_space.space import PathSpace


def random_proposals(stage: Stage, limits: CfgNode, space: PathSpace) -> Proposals:
    """Costs and limits that the random path of a stage is drawn by.

    Args:
        limits: config whose SEARCH node limits and counts costs.

    Raises:
        InputError: PATH has no number, or the limits cannot be kept or told.
    """
    if not stage.path.partition(" ")[2].isdecimal():
        raise PathError(
            f"PATH {stage.path!r}: expected random NUMBER, e.g. random 1, or REPEAT next to it"
        )
    proposals = Proposals.from_config(limits, space)
    proposals.check_limits()
    if proposals.constraint.limits != proposals.limits:
        raise PipelineError(
            f"stage {stage.name}: PATH {stage.path!r}: SEARCH.MAX_LATENCY_MS limits random "
            "paths by a table: expected SEARCH.LATENCY_TABLE to name it"
        )
    return proposals


def random_path(stage: Stage, proposals: Proposals, seed: int, best: Path | None) -> Path:
    """The random path of a stage, a function of its number and ``seed``.

    Where resolutions are searched it has one: that of ``best``, else a random one.

    Args:
        best: of the search that LIKE names: the path costs what it does, to 5 %, and is another.

    Raises:
        InputError: there is none.
    """
    candidates, constraint = proposals.candidates, proposals.constraint
    number = stage.path.partition(" ")[2]
    if best is not None:
        macs = proposals.costs_at(best.resolution).macs

        def fits(choices: Choices) -> bool:
            path = candidates.space.path(choices).at(best.resolution)
            return path != best and constraint(candidates.genes(path))

        drawn = in_band(
            cost_sampler(macs),
            fits,
            count=int(number) + 1,
            middle=macs.total(best.choices),
            seed=seed,
        )
        return candidates.space.path(drawn[-1]).at(best.resolution)
    rng = random.Random(f"pipeline/{seed}/{number}" if seed else f"pipeline/{number}")
    found = proposals.random_path(rng)
    if found is None:
        raise PipelineError(f"stage {stage.name}: no random path keeps {constraint}")
    return found
