"""Finished trainings of a truth set on disk: a line each, appended and synced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detnas_d2.search.history import differences
from detnas_d2.search_space import Choices
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_json
from detnas_d2.utils.line_log import append, open_lines

LOG_FILE, PLAN_FILE = "truth.jsonl", "plan.json"
TRAININGS = "trainings"
"""Folder of those that run or failed."""


@dataclass(frozen=True)
class Trained:
    """A finished training: a line of ``truth.jsonl``.

    Attributes:
        metrics: of its evaluation; empty if it failed.
        seconds: that it took.
        error: why it failed, "" if it did not.
    """

    path: str
    choices: Choices
    macs: int
    params: int
    seed: int
    metrics: Mapping[str, float]
    seconds: float
    error: str = ""


class TruthLog:
    """The trainings in a folder, by path and seed; the last line of a pair holds.

    A torn last line, of a killed process, is dropped.

    Raises:
        InputError: another line cannot be read.
    """

    def __init__(self, folder: str) -> None:
        self.file = os.path.join(folder, LOG_FILE)
        self.trained: dict[tuple[str, int], Trained] = {}
        for record in self._parse(open_lines(self.file)):
            self.trained[record.path, record.seed] = record

    def _parse(self, content: bytes) -> Iterator[Trained]:
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                values = json.loads(line)
                yield Trained(**{**values, "choices": tuple(values["choices"])})
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{self.file}, line {number}: no training of a truth set ({error}); restore "
                    "the file, or remove the line: that training then runs again"
                ) from None

    def append(self, record: Trained) -> None:
        line = json.dumps(asdict(record), allow_nan=False) + "\n"
        append(self.file, line.encode())
        self.trained[record.path, record.seed] = record

    def score(self, path: str, seed: int, metric: str) -> float | None:
        """What a network scored with a seed; None if it was not trained, or failed."""
        record = self.trained.get((path, seed))
        return None if record is None else record.metrics.get(metric)


def keep_plan(folder: str, plan: Mapping[str, Any], log: TruthLog) -> None:
    """Writes what decides the scores and networks of a folder, or compares it with what is there.

    Args:
        log: of the folder; as long as it is empty any plan will do.

    Raises:
        InputError: the folder holds another truth set, naming what differs.
    """
    file = os.path.join(folder, PLAN_FILE)
    ours = json.loads(json.dumps(plan, default=str))
    theirs = read_plan(folder)
    different = differences(ours, theirs)
    if different and log.trained:
        raise InputError(
            f"{file}: the folder holds another truth set: {'; '.join(different)}; use another "
            "--output, or delete it"
        )
    if different:
        shutil.rmtree(os.path.join(folder, TRAININGS), ignore_errors=True)  # begun by another plan
        write_json(file, ours, indent=1)


def read_plan(folder: str) -> dict[str, Any]:
    """The plan of a folder, empty if there is none."""
    file = os.path.join(folder, PLAN_FILE)
    if not os.path.exists(file):
        return {}
    with open(file, encoding="utf-8") as text:
        try:
            plan = json.load(text)
        except ValueError as error:
            raise InputError(f"{file}: no JSON ({error}); delete {folder} to start over") from None
    return plan if isinstance(plan, dict) else {}
