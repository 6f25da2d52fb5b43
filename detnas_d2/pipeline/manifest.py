"""Manifest of an output folder: which stages, rows and seeds its runs have, and how it was started.

``pipeline.json`` tells what the folders of stages do not: to which row of the table a stage
belongs, what is still to come, the commands, the machine. It is written at every start, for people
and for reports; nothing that decides a result is read from it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from detnas_d2 import __version__
from detnas_d2.command import command_again
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.stages import Stage, place_of
from detnas_d2.pipeline.state import read_json
from detnas_d2.utils.io import write_json

MANIFEST_FILE = "pipeline.json"
VERSION = 1
SEARCHED, RANDOM, GIVEN = "searched", "random", "given"
"""Origins of a network: the result of a search, a random one, one that a person chose."""
_KEPT = 20  # starts


def write_manifest(folder: str, pipelines: Sequence[Pipeline], processes: int | None) -> None:
    """Writes or renews the manifest of ``folder``.

    Args:
        pipelines: those that work there, one for each seed.
        processes: of this start, all machines together; None: the stages were planned anew since.
    """
    first = pipelines[0]
    before = read_json(folder, MANIFEST_FILE).get("starts")
    starts = before if isinstance(before, list) else []
    if processes is not None:
        starts = [*starts[-(_KEPT - 1) :], _start(processes)]
    value = {
        "version": VERSION,
        "file": os.path.abspath(first.file),
        "runs": [
            {"seed": pipeline.seed, "folder": os.path.relpath(pipeline.output_dir, folder)}
            for pipeline in pipelines
        ],
        "stages": [_entry(first, stage) for stage in first.stages],
        "table": list(first.table),
        "compare": list(first.compare),
        "starts": starts,
    }
    write_json(os.path.join(folder, MANIFEST_FILE), value, indent=1)


def _entry(pipeline: Pipeline, stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "kind": stage.kind,
        "row": stage.row or stage.name,
        "folder": place_of(stage),
        "origin": origin_of(pipeline, stage),
    }


def origin_of(pipeline: Pipeline, stage: Stage) -> str:
    """One of SEARCHED, RANDOM and GIVEN: where the architecture of a stage's network is from."""
    if stage.random is not None or stage.path.partition(" ")[0] == "random":
        return RANDOM
    sources = [pipeline.stage(name) for name in (stage.path, *stage.merge)]
    found = any(source and source.kind in ("search", "gradient") for source in sources)
    return SEARCHED if found else GIVEN


def _start(processes: int) -> dict[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_again(),
        "folder": os.getcwd(),
        "processes": processes,
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """What this machine computes with."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": _memory(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _memory() -> float | None:
    """Gibibytes; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            named = (line.partition(":")[2].strip() for line in file if "model name" in line)
            return next(named, "") or platform.processor() or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what decides results."""
    import detectron2
    import numpy
    import torchvision

    return {
        "detnas_d2": __version__,
        "Detectron2": detectron2.__version__,
        "PyTorch": torch.__version__,
        "torchvision": torchvision.__version__,
        "NumPy": numpy.__version__,
        "Python": platform.python_version(),
    }
