"""The table at the end of a pipeline: metrics and cost of the networks its stages trained."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch.utils.flop_counter import FlopCounterMode

from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.resolutions import cost_input
from detnas_d2.engine.architectures import genotype_cost, genotype_of, is_sampled
from detnas_d2.pipeline.differences import Difference, differences
from detnas_d2.pipeline.stages import SEED_STEP
from detnas_d2.pipeline.state import DONE_FILE
from detnas_d2.search.history import History
from detnas_d2.search_space import Cost, build_cost_table, space_of
from detnas_d2.search_space.space import resolution_of

if TYPE_CHECKING:
    from detnas_d2.pipeline.definition import Pipeline
    from detnas_d2.pipeline.stages import Stage

COSTS, EFFORT = ("macs", "params"), ("iterations", "gpus", "days")
METRICS = (*COSTS, *EFFORT)
"""Columns besides results: cost of the network, and what its training or search took."""


def table_rows(pipelines: Sequence[Pipeline]) -> dict[str, dict[str, Any]]:
    """Row name -> number of networks, mean and standard deviation of their metrics, mean MACs.

    Args:
        pipelines: of one file, one for each seed; the stages of their tables are done.

    Returns:
        with "values" of every metric by seed, see :func:`seed_of`.
    """
    rows = {}
    for row in pipelines[0].table:
        members = [(pipe, stage) for pipe in pipelines for stage in pipe.stages_of(row)]
        found = [_read_done(pipe, stage) for pipe, stage in members]
        seeds = [seed_of(pipe, stage, len(pipelines)) for pipe, stage in members]
        metrics, values = {}, {}
        for key in ("bbox/AP", "bbox/AP50", "classification/top1"):
            if all(key in done["results"] for done in found):
                numbers = [done["results"][key] for done in found]
                metrics[key] = mean_and_deviation(numbers)
                values[key] = by_seed(seeds, numbers)
        costs = [
            _cost_of(pipe, stage, done) for (pipe, stage), done in zip(members, found, strict=True)
        ]
        rows[row] = {
            "networks": len(found),
            "metrics": metrics,
            "values": values,
            "macs": statistics.fmean(cost.macs for cost in costs),
            "params": statistics.fmean(cost.params for cost in costs),
            "paths": [done["path"] for done in found],
        }
    return rows


def seed_of(pipeline: Pipeline, stage: Stage, runs: int) -> int:
    """The seed by which networks of two rows are a pair: that of the whole run; where there is one
    run only, that of the network's training.
    """
    whole = pipeline.seed if runs > 1 else None
    return pipeline.begin_of(stage).SEED + SEED_STEP * stage.number if whole is None else whole


def unit_of(runs: int) -> str:
    """What the seeds of :func:`seed_of` are seeds of."""
    return "seeds" if runs > 1 else "trainings of one run"


def by_seed(seeds: Sequence[int], values: Sequence[float]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for seed, value in zip(seeds, values, strict=True):
        found.setdefault(seed, []).append(value)
    return found


def table_differences(pipelines: Sequence[Pipeline], rows: dict[str, Any]) -> list[Difference]:
    """Of the rows that COMPARE names to the others, see :func:`differences`."""
    samples = {name: row["values"] for name, row in rows.items()}
    return list(differences(samples, pipelines[0].compare, unit_of(len(pipelines))))


def measured(pipeline: Pipeline, stage: Stage, metric: str) -> float | None:
    """A metric of a stage that is done, or one of METRICS; None if it has none.

    Costs are in millions. ``iterations`` of a search are the candidates that it evaluated, ``gpus``
    the processes (table 1 of DetNAS).
    """
    done = _read_done(pipeline, stage)
    if metric in EFFORT:
        return _effort(pipeline, stage, done)[metric]
    if metric in COSTS:
        return getattr(_cost_of(pipeline, stage, done), metric) / 1e6
    value = done["results"].get(metric)
    return None if value is None or math.isnan(value) else value


def _read_done(pipeline: Pipeline, stage: Stage) -> dict[str, Any]:
    file = os.path.join(pipeline.folder(stage.name), DONE_FILE)
    with open(file, encoding="utf-8") as text:
        return json.load(text)


def _effort(pipeline: Pipeline, stage: Stage, done: dict[str, Any]) -> dict[str, float | None]:
    if stage.kind == "search":
        iterations = len(History.read(pipeline.folder(stage.name)))
    else:
        trains = stage.kind != "evaluate"
        iterations = pipeline.config_of(stage).SOLVER.MAX_ITER if trains else 0
    days = done["seconds"] / 86400 if "seconds" in done else None
    return {"iterations": iterations, "gpus": done.get("processes"), "days": days}


def _cost_of(pipeline: Pipeline, stage: Stage, done: dict[str, Any]) -> Cost:
    cfg = pipeline.counted(stage)
    return network_cost(cfg, done["path"], pipeline.limits_for(cfg))


def network_cost(cfg: CfgNode, path: str, limits: CfgNode) -> Cost:
    """Cost of a network: its searchable layers, or the whole backbone if it has none; next to a
    search of Hit-Detectors by sampling, which may leave no part alike, the whole detector.

    Args:
        path: text of its path or genotype; "" if it has none.
        limits: config of a search, whose SEARCH.MAX_MACS_INPUT the multiply-adds of a backbone or
            a detector are counted for; at the resolution of the path, if it has one.
    """
    if is_sampled(limits):
        size = cost_input(limits, resolution_of(path)[1])
        return analyze(cfg, input_size=size, proposals=limits.HIT_SEARCH.COST_PROPOSALS)["total"]
    if genotype_of(cfg).parts:
        return genotype_cost(cfg)
    if not path:
        return backbone_cost(cfg, cost_input(limits))
    space = space_of(cfg)
    found = space.path(path)
    return build_cost_table(space, cost_input(limits, found.resolution)).cost(found)


def backbone_cost(cfg: CfgNode, size: tuple[int, int]) -> Cost:
    """Parameters, and multiply-adds of convolutions and linear layers, of any backbone.

    Args:
        size: (height, width) of the image. What a neck adds is not counted.
    """
    with torch.device("meta"), torch.no_grad():
        backbone = build_backbone(cfg).eval()
        body = getattr(backbone, "bottom_up", backbone)
        with FlopCounterMode(display=False) as counter:  # two for a multiply-add
            body(torch.empty(1, 3, *size))
    macs = counter.get_total_flops() // 2
    return Cost(params=sum(p.numel() for p in body.parameters()), macs=macs)


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table: metrics in percent, cost of what is searched.

    That is the backbone body of DetNAS at the search's SEARCH.MAX_MACS_INPUT, the searchable layers
    of a Hit-Detector at HIT_SEARCH.COST_INPUT, and the whole backbone of any other network; where
    Hit-Detectors were searched by sampling, the whole detector of all.
    """
    keys = list(dict.fromkeys(key for row in rows.values() for key in row["metrics"]))
    lines = [
        "| network | " + " | ".join(keys) + " | MACs (M) | params (M) |",
        "|---|" + "---|" * (len(keys) + 2),
    ]
    for name, row in rows.items():
        cells = []
        for key in keys:
            mean, deviation = row["metrics"][key]
            spread = f" ± {deviation:.2f} ({row['networks']} nets)" if row["networks"] > 1 else ""
            cells.append(f"{mean:.2f}{spread}")
        cells += [f"{row['macs'] / 1e6:.1f}", f"{row['params'] / 1e6:.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), 0 of one value.

    NaN, as COCO gives where nothing is detected, makes both NaN.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, 0.0
    # statistics.stdev cannot take what is not finite.
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
