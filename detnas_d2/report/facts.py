"""What a run took and warned of, where and with what it ran, for its page."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from detnas_d2.command import LOG_FILE
from detnas_d2.engine.supernet_check.record import failure_text, read_record
from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline.state import FAILED, FAILED_FILE, RUNNING, STOPPED, read_json
from detnas_d2.report.found import Found, FoundStage
from detnas_d2.utils.errors import InputError

_WARNING = re.compile(r"^\[[^\]]*\] (\S+) (?:WARNING|ERROR): (.*)$")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_LOGGERS = ("detnas_d2", "d2.", "detectron2", "fvcore")
_LONG, _MOST = 600, 40
_FACT = re.compile(r"^(\S[^\n]*?)  +(\S.*)$")


@dataclass(frozen=True)
class Time:
    """Working time of a stage, or of the stages of a row; ``share`` of the whole, ``kind``."""

    name: str
    kind: str
    stages: int
    seconds: float
    share: float
    running: bool


def times(found: Found) -> list[Time]:
    """Of every row of stages that has begun, in their order."""
    rows: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for stage in found.stages:
        seconds = seconds_of(stage)
        if seconds is not None:
            told = rows.setdefault((stage.row, stage.kind), [])
            told.append((seconds, stage.state == RUNNING))
    total = sum(seconds for told in rows.values() for seconds, _ in told) or 1.0
    return [
        Time(
            row,
            kind,
            len(told),
            (own := sum(seconds for seconds, _ in told)),
            own / total,
            any(running for _, running in told),
        )
        for (row, kind), told in rows.items()
    ]


def seconds_of(stage: FoundStage) -> float | None:
    """Working time, until now of a stage that runs; None where nothing tells it."""
    done = stage.done.get("seconds")
    if isinstance(done, (int, float)):
        return float(done)
    started = read_json(stage.folder, "started.json")
    begin, before = started.get("time"), started.get("seconds", 0.0)
    if not isinstance(begin, (int, float)) or not isinstance(before, (int, float)):
        return None
    end = time.time()
    if stage.state != RUNNING:
        with os.scandir(stage.folder) as entries:
            end = max((entry.stat().st_mtime for entry in entries if entry.is_file()), default=0.0)
    return before + max(0.0, end - begin)


def by_the_clock(found: Found) -> float | None:
    """Seconds in which one stage worked or several; None where a stage that worked does not tell
    when.
    """
    told: list[stage_time.Span] = []
    for stage in found.stages:
        if seconds_of(stage) is None:
            continue
        spans = stage_time.spans(stage.folder, running=stage.state == RUNNING)
        if spans is None:
            return None
        told += spans
    return stage_time.covered(told)


@dataclass(frozen=True)
class Warned:
    """A warning and the stages that gave it; ``serious`` ones make a result doubtful or missing."""

    text: str
    stages: tuple[str, ...]
    serious: bool


def warnings(found: Found) -> list[Warned]:
    """Of the state of stages and supernets, then of the logs, each once."""
    serious: list[Warned] = []
    logged: dict[str, list[str]] = {}
    for stage in found.stages:
        if stage.state == FAILED:
            error = str(read_json(stage.folder, FAILED_FILE).get("error", "no reason is known"))
            serious.append(Warned(f"failed: {error}", (stage.title,), serious=True))
        elif stage.state == STOPPED:
            text = "stopped before its end; the same command goes on with it"
            serious.append(Warned(text, (stage.title,), serious=True))
        record = read_record(stage.folder)
        if record is not None and not record["learned"]:
            serious.append(Warned(failure_text(stage.folder, record), (stage.title,), serious=True))
        for text in logged_warnings(stage.file(LOG_FILE)):
            logged.setdefault(text, []).append(stage.title)
    serious += [Warned(text, (), serious=True) for text in found.problems]
    rest = [
        Warned(text, tuple(names), serious=False)
        for text, names in logged.items()
        if not any(warned.text.startswith(text) for warned in serious)  # logged too
    ]
    return [*serious, *rest[:_MOST]]


def logged_warnings(file: str) -> list[str]:
    """First lines of the warnings and errors of a log, each once."""
    try:
        status = os.stat(file)
    except OSError:
        return []
    return list(_warnings_in(file, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=512)
def _warnings_in(file: str, changed: int, size: int) -> tuple[str, ...]:
    found: dict[str, None] = {}
    with open(file, encoding="utf-8", errors="replace") as text:
        for line in text:
            if "WARNING" in line or "ERROR" in line:
                match = _WARNING.match(_COLORS.sub("", line).rstrip())
                if match and match.group(1).startswith(_LOGGERS):
                    found[match.group(2)[:_LONG]] = None
    return tuple(found)


def environment(found: Found) -> dict[str, str]:
    """Machine and versions, by the manifest or else by what Detectron2 wrote to a log."""
    if found.starts:
        last = found.starts[-1]
        machine, versions = last.get("machine", {}), last.get("versions", {})
        gpus = ", ".join(map(str, machine.get("gpus") or [])) or "none"
        memory = machine.get("memory_gib")
        told = {
            "processor": f"{machine.get('processor', 'unknown')}, {machine.get('cores')} cores",
            "memory": f"{memory} GiB" if memory else "unknown",
            "GPUs": gpus,
            "system": str(machine.get("system", "unknown")),
            "processes": str(last.get("processes", "unknown")),
        }
        return {**told, **{str(name): str(value) for name, value in versions.items()}}
    for stage in found.stages:
        facts = _logged_environment(stage.file(LOG_FILE))
        if facts:
            return facts
    return {}


_WANTED = ("sys.platform", "Python", "PyTorch", "torchvision", "detectron2", "numpy", "Pillow")


def _logged_environment(file: str) -> dict[str, str]:
    facts: dict[str, str] = {}
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            for number, line in enumerate(text):
                match = _FACT.match(line.rstrip())
                if match and match.group(1).startswith((*_WANTED, "GPU ")):
                    facts[match.group(1)] = match.group(2).partition(" @")[0]
                if "Command line arguments" in line or number > 60:
                    break
    except OSError:
        return {}
    return facts


def commands(found: Found) -> list[dict[str, str]]:
    """Starts of the pipeline: time, folder, command; of the newest last."""
    return [
        {key: str(start.get(key, "")) for key in ("time", "folder", "command")}
        for start in found.starts
        if start.get("command")
    ]


def seeds_text(found: Found) -> str:
    if found.seeds:
        return ", ".join(map(str, found.seeds))
    told: dict[int, None] = {}
    for stage in found.stages:
        try:
            told[stage.config.SEED] = None
        except InputError:
            continue
    return ", ".join(map(str, told)) or "unknown"


def datasets(found: Found) -> list[tuple[str, str]]:
    """Datasets that stages were run on, and what of them was digested."""
    told: dict[str, str] = {}
    for stage in found.stages:
        data: Any = stage.done.get("data")
        for name, state in data.items() if isinstance(data, dict) else ():
            digests = state.items() if isinstance(state, dict) else [("", state)]
            told.setdefault(str(name), ", ".join(f"{key} {mark}".strip() for key, mark in digests))
    return list(told.items())
