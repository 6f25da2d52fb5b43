"""What ``detnas export --evaluate`` found of a detector's file, kept in the folder of its stage.

A score is of one network's weights: the record tells them by digest, and is not read any more once
the folder has others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from detnas_d2.pipeline.state import read_json
from detnas_d2.utils.io import sha256_of, write_json

EXPORTS_FILE = "evaluated_exports.json"
VERSION = 1


@dataclass(frozen=True)
class ExportRecord:
    """An exported file, evaluated beside the network that it was made of.

    Attributes:
        format: of :data:`detnas_d2.engine.export.FORMATS`.
        file: its name when it was written.
        dataset: that both were evaluated on.
        eager, exported: metric, as "bbox/AP" -> value in percent, of PyTorch and of the file; those
            that are defined for both.
        largest_difference: of their outputs on the images that were compared when it was written.
        weights: file in the stage's folder; ``digest`` of its content.
        time: when, in ISO 8601.
    """

    format: str
    file: str
    dataset: str
    eager: dict[str, float]
    exported: dict[str, float]
    largest_difference: float
    weights: str
    digest: str
    time: str

    def difference(self, metric: str) -> float | None:
        """What the file has more than PyTorch; None where one has no such metric."""
        if metric not in self.eager:
            return None
        return self.exported[metric] - self.eager[metric]


def keep_export(weights: str, format: str, found: Mapping[str, Any]) -> str:
    """Writes the record of a file next to the weights that it was made of; returns the file of it.
    Those of other formats stay.

    Args:
        found: by :func:`detnas_d2.programs.export.run` with an evaluation.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder, name = os.path.split(weights)
    eager, exported = (_flat(found[key]) for key in ("eager_results", "results"))
    both = [metric for metric in eager if metric in exported]
    record = ExportRecord(
        format=format,
        file=os.path.basename(found["file"]),
        dataset=found["dataset"],
        eager={metric: eager[metric] for metric in both},
        exported={metric: exported[metric] for metric in both},
        largest_difference=max(found["differences"]),
        weights=name,
        digest=sha256_of(weights),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    told = {known.format: asdict(known) for known in read_exports(folder)}
    file = os.path.join(folder, EXPORTS_FILE)
    write_json(file, {"version": VERSION, "files": [*{**told, format: asdict(record)}.values()]})
    return file


def read_exports(folder: str) -> list[ExportRecord]:
    """The records in a folder, one for each format; those of other weights than it has now are left
    out, and so are damaged ones.
    """
    told = read_json(folder, EXPORTS_FILE)
    if told.get("version") != VERSION:
        return []
    digests: dict[str, str] = {}
    found = []
    for value in told.get("files", []):
        try:
            record = ExportRecord(**value)
            name = record.weights
            if name not in digests:
                digests[name] = sha256_of(os.path.join(folder, name))
            numbers = [*record.eager.values(), *record.exported.values()]
            same = digests[name] == record.digest and set(record.eager) == set(record.exported)
            if same and all(map(math.isfinite, numbers)):
                found.append(record)
        except (AttributeError, OSError, TypeError):
            continue
    return found


def _flat(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """ "task/metric" -> value, of those that are defined."""
    return {
        f"{task}/{metric}": float(value)
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if math.isfinite(value)
    }
