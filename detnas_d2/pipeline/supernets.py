"""Lines about the supernets of an experiment below its table: whether each of them learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detnas_d2.engine.supernet_check.record import alone_text, read_record, spread_text
from detnas_d2.pipeline.experiment import Experiment


def supernet_lines(experiment: Experiment) -> list[str]:
    """A line for each stage that trained a supernet and checked it."""
    found = ((run.name, read_record(run.folder)) for run in experiment.runs())
    return [f"{name}: {_line(record)}" for name, record in found if record is not None]


def _line(record: Mapping[str, Any]) -> str:
    """E.g. ``supernet bbox/AP 41.20 (40.10-42.00), chance 0.10, one path alone 44.0 after ...``."""
    parts = [
        f"supernet {record['metric']} {spread_text(record)}, mean and range of "
        f"{len(record['paths'])} fixed paths",
        f"chance {record['chance']:.2f}",
        *([text] if (text := alone_text(record)) else []),
        *([] if record["learned"] else ["NOT above chance"]),
    ]
    return ", ".join(parts)
