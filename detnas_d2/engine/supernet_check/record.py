"""Record of a check, ``supernet.json``, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from detnas_d2.engine.supernet_check.hook import RESULT_FILE, SupernetCheck
from detnas_d2.engine.supernet_check.scores import PathScore, mean_of
from detnas_d2.engine.supernet_check.verdict import judge

_KEYS = {
    *("metric", "validation", "images", "calibration", "calibration_images", "paths", "mean"),
    *("start", "initial", "standalone", "learned", "chance", "threshold", "value", "rule", "key"),
}


def read_record(folder: str) -> dict[str, Any] | None:
    """``supernet.json`` of a folder, None if there is none that can be read."""
    try:
        with open(os.path.join(folder, RESULT_FILE), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= _KEYS else None


def make_record(
    hook: SupernetCheck, final: Sequence[PathScore], alone: PathScore | None, updates: int
) -> dict[str, Any]:
    """What ``supernet.json`` says."""
    plan = hook.plan
    verdict = judge(final, hook.initial, plan.images, plan.constant)
    return {
        "metric": plan.metric,
        "validation": plan.whole.validation,
        "images": plan.images,
        "calibration": plan.whole.calibration.dataset,
        "calibration_images": plan.whole.calibration.images,
        "paths": [asdict(found) for found in final],
        "mean": mean_of(final),
        "start": None if hook.start is None else [found.score for found in hook.start],
        "initial": [found.score for found in hook.initial],
        "standalone": None if alone is None else {**asdict(alone), "updates": updates},
        **asdict(verdict),
    }


def spread_text(record: Mapping[str, Any]) -> str:
    """Mean and range of the fixed paths' scores, e.g. ``41.2 (40.1-42.0)``."""
    known = _known(record)
    if not known:
        return "no score"
    return f"{record['mean']:.2f} ({min(known):.2f}-{max(known):.2f})"


def alone_text(record: Mapping[str, Any]) -> str:
    """Score of the path alone and its updates; "" if there is none."""
    alone = record["standalone"]
    if alone is None:
        return ""
    score = "no score" if alone["score"] is None else f"{alone['score']:.2f}"
    return f"one path alone {score} after {alone['updates']} updates"


def text_of(record: Mapping[str, Any]) -> str:
    """The record for the log, a line for each path."""
    start = record["start"] or [None] * len(record["paths"])
    lines = [
        f"Did the supernet learn? {record['metric']} of fixed paths on {record['images']} images "
        f"of {record['validation']}, BatchNorm statistics from {record['calibration_images']} of "
        f"{record['calibration']}:"
    ]
    for path, before in zip(record["paths"], start, strict=True):
        began = "" if before is None else f" (at the start {before:.2f})"
        score = path["error"] if path["score"] is None else f"{path['score']:.2f}"
        lines.append(f"  {path['path']}: {score}{began}")
    lines += [
        f"  mean (range) {spread_text(record)}; chance {record['chance']:.2f}",
        *([f"  {text}, as many as an operation gets"] if (text := alone_text(record)) else []),
        f"  {'yes' if record['learned'] else 'NO'}; expected {record['rule']}",
    ]
    return "\n".join(lines)


def failure_text(folder: str, record: Mapping[str, Any]) -> str:
    """One line about a supernet at chance: scores, chance, what to change, how to go on."""
    alone = alone_text(record)
    errors = [path["error"] for path in record["paths"] if path["error"]]
    why = f" ({len(errors)} paths cannot be scored: {errors[0]})" if errors else ""
    return (
        f"{folder}: the supernet has not learned: {record['metric']} of its "
        f"{len(record['paths'])} fixed paths is {spread_text(record)}{why}, chance level "
        f"{record['chance']:.2f}; expected {record['rule']}{f'; {alone}' if alone else ''}. All is "
        "saved. Change SOLVER.BASE_LR, SOLVER.MAX_ITER, the initialisation (MODEL.DETNAS.INIT, "
        "MODEL.WEIGHTS) or SOLVER.CLIP_GRADIENTS and train in another OUTPUT_DIR, or go on with "
        "these weights by SUPERNET.CHECK.REQUIRED False"
    )


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The record's numbers, for a pipeline's results."""
    known = _known(record)
    found = {"chance": record["chance"]}
    if known:
        found |= {"score_mean": record["mean"], "score_min": min(known), "score_max": max(known)}
    if record["standalone"] is not None and record["standalone"]["score"] is not None:
        found["standalone"] = record["standalone"]["score"]
    return found


def _known(record: Mapping[str, Any]) -> list[float]:
    return [path["score"] for path in record["paths"] if path["score"] is not None]
