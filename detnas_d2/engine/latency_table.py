"""Additive tables of the latency of whole detectors, made and checked on the target machine.

The blocks of backbone, neck and head are measured alone. What a whole detector takes is a line in
their sum, fitted to a few detectors: its slope is what blocks cost among others, its intercept what
all detectors share. Other detectors, which the fit has not seen, tell how good the table is. All of
them lie over the range of the sums, where random ones would lie in its middle and differ by little.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from detnas_d2.analysis.rank_statistics import tau_b
from detnas_d2.engine.architectures import (
    is_relaxed,
    network_config,
    region_size,
    searched_space,
)
from detnas_d2.engine.export import export_network, write_onnx
from detnas_d2.engine.latency import DetectorRun, Picture, exported_run, latencies, pytorch_run
from detnas_d2.engine.runtimes import PYTORCH, RUNTIMES, load_onnx
from detnas_d2.evaluation.running_statistics import recalibrate
from detnas_d2.modeling.hit.build import at_neck_channels
from detnas_d2.search.cost_draws import cost_sampler, over_costs
from detnas_d2.search_space import LatencyTable, measure_latency
from detnas_d2.search_space.elastic_latency import ElasticLatency, Latency
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.latency import in_pytorch
from detnas_d2.search_space.space import Path, PathSpace
from detnas_d2.utils.errors import InputError

FITTED = 8
"""Detectors that a table is fitted to."""
CHECKED = 30
"""Detectors that it is checked with."""


@dataclass(frozen=True)
class Target:
    """Where and of what a table is.

    Args:
        cfg: of the search.
        runtime: of :mod:`detnas_d2.engine.runtimes`.
        repeats: runs of each block, and of each detector in both rounds.
        tell: told what is going on.
    """

    cfg: CfgNode
    picture: Picture
    runtime: str = PYTORCH
    repeats: int = 10
    tell: Callable[[str], object] = lambda text: None


def detector_table(
    target: Target, *, fitted: int = FITTED, checked: int = CHECKED, seed: int = 0
) -> Latency:
    """The table of the detectors that a config searches, with random weights.

    Args:
        fitted: detectors to fit it to: two at least, the cheapest and the most expensive first; so
            many for each number of channels, if those of the neck are searched.
        checked: detectors to check it with; 0: it is not checked.

    Raises:
        InputError: the config searches no single paths.
    """
    cfg = target.cfg
    if is_relaxed(cfg):
        raise InputError(
            "the config searches by gradient; expected one whose candidates are single paths, "
            "with a supernet of DetNAS or MODEL.HIT.STRATEGY sampling"
        )
    space = searched_space(cfg)
    image = target.picture.input()
    if not isinstance(space, ElasticHitSpace):
        ((table, paths, rounds),) = _measured(target, image, [(cfg, space)], fitted, checked, seed)
        if checked and table.detector is not None:
            table.detector["check"] = _check(table, paths, rounds)
        return table
    channels = space.neck_channels
    each = -(-checked // len(channels))
    narrower = [(at_neck_channels(cfg, number), space.at(number)) for number in channels]
    found = _measured(target, image, narrower, fitted, each, seed)
    tables = tuple(table for table, _, _ in found)
    whole = ElasticLatency(tables=tables, gene=space.gene, neck_channels=channels, space=space.name)
    if not checked:
        return whole
    whole_paths = [
        Path(space, whole.put_in(value, path.choices))
        for value, (_, paths, _) in enumerate(found)
        for path in paths
    ]
    both = [[ms for _, _, rounds in found for ms in rounds[number]] for number in range(2)]
    return replace(whole, check=_check(whole, whole_paths, both))


def _measured(
    target: Target,
    image: Tensor,
    spaces: Sequence[tuple[CfgNode, PathSpace]],
    fitted: int,
    checked: int,
    seed: int,
) -> list[tuple[LatencyTable, list[Path], list[list[float]]]]:
    """Of each space and the config that searches it: its table, and the paths that it was not
    fitted to with what two rounds measured. The detectors of all of them are measured in turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        targets = [replace(target, cfg=cfg) for cfg, _ in spaces]
        pairs = list(zip(targets, (space for _, space in spaces), strict=True))
        blocks = [_blocks(own, space, image, folder) for own, space in pairs]
        paths = [
            _paths(space, table, fitted, checked, seed)
            for (_, space), table in zip(pairs, blocks, strict=True)
        ]
        target.tell(f"{sum(map(len, paths))} detectors, in turns")
        runs = [
            _run(own, path, image, folder)
            for own, some in zip(targets, paths, strict=True)
            for path in some
        ]
        rounds = [[told.milliseconds for told in latencies(runs, target.repeats)] for _ in range(2)]
    found, start = [], 0
    for table, some in zip(blocks, paths, strict=True):
        own_rounds = [row[start : start + len(some)] for row in rounds]
        start += len(some)
        fit = _fit(target, table, some[:fitted], [row[:fitted] for row in own_rounds])
        found.append((fit, some[fitted:], [row[fitted:] for row in own_rounds]))
    return found


def _fit(
    target: Target,
    blocks: LatencyTable,
    paths: Sequence[Path],
    rounds: Sequence[Sequence[float]],
) -> LatencyTable:
    """The table of whole detectors out of that of blocks."""
    measured = [statistics.fmean(pair) for pair in zip(*rounds, strict=True)]
    slope, intercept = _line([blocks.total(path.choices) for path in paths], measured)
    own: dict[str, Any] = {
        "runtime": RUNTIMES[target.runtime].title,
        "image": list(target.picture.size),
        "fitted_to": len(paths),
        "slope": slope,
        "rest": intercept,
    }
    return replace(blocks.scaled(slope, intercept), detector=own)


def _blocks(target: Target, space: PathSpace, image: Tensor, folder: str) -> LatencyTable:
    cfg = target.cfg
    model = build_model(network_config(cfg, space.first_path())).eval()
    size = tuple(model.preprocess_image([{"image": image}]).tensor.shape[-2:])
    target.tell(f"blocks of {space.name} alone, at {size[0]} x {size[1]} pixels")
    prepare = partial(in_pytorch, fused=cfg.MODEL.DETNAS.FUSED_OPS != "off")
    if target.runtime != PYTORCH:
        prepare = partial(_in_runtime, runtime=target.runtime, folder=folder)
    return measure_latency(
        space,
        input_size=(size[0], size[1]),
        device=cfg.MODEL.DEVICE if target.runtime == PYTORCH else "cpu",
        repeats=2 * target.repeats,
        shuffle_method=cfg.MODEL.DETNAS.SHUFFLE_METHOD,
        regions=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        region=region_size(cfg),
        prepare=prepare,
    )


def _in_runtime(module: nn.Module, x: Tensor, *, runtime: str, folder: str) -> Callable[[], object]:
    file = os.path.join(folder, "block.onnx")
    write_onnx(module.requires_grad_(False), x, ("output",), file)
    threads = torch.get_num_threads()
    return partial(load_onnx(file, runtime, threads=threads, shape=tuple(x.shape)), x)


def _paths(
    space: PathSpace, blocks: LatencyTable, fitted: int, checked: int, seed: int
) -> list[Path]:
    """Different paths: the cheapest, the most expensive, then random ones over the costs between.

    Raises:
        InputError: the space has fewer.
    """
    wanted, there = fitted + checked, math.prod(space.cardinalities)
    if there < wanted:
        raise InputError(
            f"space {space.name!r} has {there} paths, expected {wanted} to fit the table to and to "
            "check it with; ask for fewer with --detectors"
        )
    ends = [blocks.cheapest_choices(), blocks.most_expensive_choices()]
    between = over_costs(
        cost_sampler(blocks),
        lambda choices: choices not in ends,
        count=wanted - len(ends),
        low=blocks.cheapest(),
        high=blocks.most_expensive(),
        seed=seed,
    )
    return [space.path(choices) for choices in (*ends, *between)]


def _run(target: Target, path: Path, image: Tensor, folder: str) -> DetectorRun:
    """A detector with random weights, whose activations are of the usual size."""
    cfg = network_config(target.cfg, path)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    recalibrate(model, [[{"image": image}]])
    if target.runtime == PYTORCH:
        return pytorch_run(model, target.picture)
    # Random weights find much that is equally good, so results may differ.
    exported = export_network(
        cfg, image, folder, format="onnx", tolerance=float("inf"), network=model
    )
    threads, shape = torch.get_num_threads(), tuple(image.shape)
    runner = load_onnx(exported.file, target.runtime, threads=threads, shape=shape)
    return exported_run(exported, runner, target.picture)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept; where noise hides the slope, 1 and what is left."""
    slope, intercept = statistics.linear_regression(x, y)
    if slope > 0:
        return slope, intercept
    return 1.0, statistics.fmean(y) - statistics.fmean(x)


def _check(
    table: Latency, paths: Sequence[Path], rounds: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """How the table ranks and misses detectors that it was not fitted to."""
    measured = [statistics.fmean(pair) for pair in zip(*rounds, strict=True)]
    expected = [table.total(path.choices) for path in paths]
    errors = [abs(a / b - 1) for a, b in zip(expected, measured, strict=True)]
    return {
        "tau": tau_b(expected, measured),
        "tau_of_two_rounds": tau_b(rounds[0], rounds[1]),
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "detectors": [
            {"path": str(path), "table": a, "measured": b}
            for path, a, b in zip(paths, expected, measured, strict=True)
        ],
    }
