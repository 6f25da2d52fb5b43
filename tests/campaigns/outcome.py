"""What a pipeline leaves behind, without times, and how two outcomes differ, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TEXTS = {
    "best.yaml",
    "best_inherited.yaml",
    "genotype.yaml",
    "sub_space.yaml",
    "screening.yaml",
    "table.md",
    "table.json",
    "last_checkpoint",
}
_TIMES = {"index", "seconds", "finished", "check"}  # "index" is the order of finishing


def outcome(folder: Path) -> dict[str, Any]:
    """File name -> content: weights, histories, architectures, tables and done files."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".pth" and file.name.startswith(("model", "best_inherited")):
            found[name] = _checkpoint(file)
        elif file.name == "history.jsonl":
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            rows.sort(key=lambda row: (row["generation"], row["position"]))
            found[name] = [_without_times(row) for row in rows]
        elif file.name in ("done.json", "generations.json"):
            value = json.loads(file.read_text())
            found[name] = [_without_times(v) for v in (value if type(value) is list else [value])]
        elif file.name in _TEXTS:
            found[name] = file.read_text()
    return found


def _checkpoint(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:
        return f"damaged: {error}"


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in _TIMES}


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """One text for each place where two outcomes differ; a NaN equals a NaN."""
    if isinstance(ours, Tensor):
        equal = isinstance(theirs, Tensor) and (ours.dtype, ours.shape) == (
            theirs.dtype,
            theirs.shape,
        )
        equal = equal and torch.equal(ours.isnan(), theirs.isnan())
        return [] if equal and torch.equal(ours.nan_to_num(), theirs.nan_to_num()) else [where]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = [f"{where}/{key}: only in one" for key in ours.keys() ^ theirs.keys()]
        for key in ours.keys() & theirs.keys():
            found += differences(ours[key], theirs[key], f"{where}/{key}")
        return sorted(found)
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(ours) != len(theirs):
            return [f"{where}: {len(ours)} and {len(theirs)} entries"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [text for i, (a, b) in pairs for text in differences(a, b, f"{where}/{i}")]
    both_nan = isinstance(ours, float) and ours != ours and theirs != theirs
    return [] if ours == theirs or both_nan else [f"{where}: {ours!r} and {theirs!r}"]
