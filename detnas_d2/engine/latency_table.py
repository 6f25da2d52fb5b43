"""Additive tables of the latency of whole detectors, made and checked on the target machine.

The blocks of backbone, neck and head are measured alone. What a whole detector takes is a line in
their sum, fitted to a few detectors: its slope is what blocks cost among others, its intercept what
all detectors share. Other detectors, which the fit has not seen, tell how good the table is.
"""

from __future__ import annotations

import os
import random
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
from detnas_d2.engine.architectures import is_relaxed, network_config, searched_space
from detnas_d2.engine.export import export_network, write_onnx
from detnas_d2.engine.latency import DetectorRun, Picture, exported_run, latencies, pytorch_run
from detnas_d2.engine.runtimes import PYTORCH, RUNTIMES, load_onnx
from detnas_d2.evaluation.running_statistics import recalibrate
from detnas_d2.search_space import LatencyTable, measure_latency
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
) -> LatencyTable:
    """The table of the detectors that a config searches, with random weights.

    Args:
        fitted: detectors to fit it to: two at least, the cheapest and the most expensive first.
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
    with tempfile.TemporaryDirectory() as folder:
        blocks = _blocks(target, space, image, folder)
        paths = _paths(space, blocks, fitted, checked, seed)
        target.tell(f"{len(paths)} detectors, in turns")
        runs = [_run(target, path, image, folder) for path in paths]
        rounds = [[told.milliseconds for told in latencies(runs, target.repeats)] for _ in range(2)]
    measured = [statistics.fmean(pair) for pair in zip(*rounds, strict=True)]
    sums = [blocks.total(path.choices) for path in paths]
    slope, intercept = _line(sums[:fitted], measured[:fitted])
    table = blocks.scaled(slope, intercept)
    own: dict[str, Any] = {
        "runtime": RUNTIMES[target.runtime].title,
        "image": list(target.picture.size),
        "fitted_to": fitted,
        "slope": slope,
        "rest": intercept,
    }
    if checked:
        own["check"] = _check(table, paths[fitted:], [row[fitted:] for row in rounds])
    return replace(table, detector=own)


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
    """Different paths: the cheapest, the most expensive, then random ones.

    Raises:
        InputError: the space has fewer.
    """
    ends = [[row.index(end(row)) for row in blocks.entries] for end in (min, max)]
    found = dict.fromkeys(space.path(choices) for choices in ends)
    rng = random.Random(f"latency/{seed}")
    for _ in range(100 * (fitted + checked)):
        if len(found) == fitted + checked:
            return list(found)
        found[space.random_path(rng)] = None
    raise InputError(
        f"space {space.name!r} has {len(found)} paths, expected {fitted + checked} to fit the "
        "table to and to check it with; ask for fewer with --detectors"
    )


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
    table: LatencyTable, paths: Sequence[Path], rounds: Sequence[Sequence[float]]
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
