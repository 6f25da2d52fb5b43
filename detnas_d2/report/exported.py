"""Exported files that were evaluated, beside the networks that they were made of."""

from __future__ import annotations

from dataclasses import dataclass

from detnas_d2.pipeline.export_record import ExportRecord, read_exports
from detnas_d2.report.found import METRICS, Found

_TITLES = {"onnx": "ONNX", "torchscript": "TorchScript"}


@dataclass(frozen=True)
class ExportedLine:
    """A file of a stage's network."""

    stage: str
    record: ExportRecord

    def difference(self, metric: str) -> str:
        """Of the file to PyTorch, to a thousandth."""
        return signed_thousandths(self.record.difference(metric) or 0.0)

    @property
    def format(self) -> str:
        return _TITLES.get(self.record.format, self.record.format)


def signed_thousandths(value: float) -> str:
    """With a sign, +0.000 for what rounds to 0."""
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "\u2212")


@dataclass(frozen=True)
class ExportedPart:
    """Files, and the metrics that one of them has."""

    lines: list[ExportedLine]
    metrics: list[str]


def exported_part(found: Found) -> ExportedPart | None:
    """Of all stages; None where no file was evaluated."""
    lines = [
        ExportedLine(stage.title, record)
        for stage in found.stages
        for record in read_exports(stage.folder)
    ]
    metrics = [name for name in METRICS if any(name in line.record.eager for line in lines)]
    return ExportedPart(lines, metrics) if metrics else None
