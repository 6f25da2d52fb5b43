"""A finished run of the tiny pipeline that campaigns copy, spoil and run again."""

from __future__ import annotations

import collections
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.campaigns.outcome import differences, outcome
from tests.campaigns.runner import message, run
from tests.campaigns.tiny import detnas_pipeline

SAME = "same"
"""The expectation that the run ends with the reference's outcome."""


class Reference:
    """A pipeline in ``root`` with its finished run; made on first use."""

    def __init__(self, root: Path) -> None:
        self.root, self.kept = root, root / "kept"
        self.place = root / "work"
        self.file, self.runs = self.place / "pipeline.yaml", self.place / "runs"
        if not (self.kept / "runs" / "table.json").exists():
            shutil.rmtree(root, ignore_errors=True)
            detnas_pipeline(self.place, scoring_workers=0, networks=1)
            code, text = run(self.file, root / "log")
            assert code == 0, text
            shutil.copytree(self.place, self.kept, symlinks=True)
        self.outcome = outcome(self.kept / "runs")

    def restore(self, *, finished: bool = True) -> None:
        """Puts everything back as it was after the run, or before it."""
        shutil.rmtree(self.place, ignore_errors=True)
        ignored = None if finished else shutil.ignore_patterns("runs", "cache")
        shutil.copytree(self.kept, self.place, symlinks=True, ignore=ignored)

    def verdict(
        self, expected: str, *opts: str, before: Callable[[], object] | None = None
    ) -> tuple[bool, str]:
        """Runs the pipeline; whether it ended as expected, and how.

        Args:
            expected: SAME, or what the one line must hold with which the run is refused.
        """
        code, text = run(self.file, self.root / "log", *opts, before=before)
        if code == 0:
            different = self.differences()
            ended = f"different: {different[:3]}" if different else SAME
            return ended == expected, ended
        line = message(text)
        named = code == 1 and line.startswith("error: ") and line.count("Traceback") == 0
        return named and expected != SAME and expected in line, f"exit {code}: {line[:300]}"

    def differences(self) -> list[str]:
        """How what lies there now differs from the reference."""
        return differences(_comparable(outcome(self.runs)), _comparable(self.outcome))


def _comparable(found: dict[str, Any]) -> dict[str, Any]:
    # A checkpoint that was gone back to is one of the newest two, or no longer is.
    return {
        name: value
        for name, value in found.items()
        if not name.endswith("last_checkpoint") and "/model_0" not in name
    }


def campaign(
    cases: Iterable[str], trial: Callable[[str], tuple[bool, str]], trials: int, seed: int
) -> int:
    """Runs ``trials`` of the cases in random order, prints each and the sums; the number wrong."""
    names = list(cases)
    random.Random(seed).shuffle(names)
    counts: collections.Counter[str] = collections.Counter()
    for name in names[:trials]:
        good, ended = trial(name)
        kind = SAME if ended == SAME else "refused" if good else "WRONG"
        counts[kind] += 1
        print(f"{'ok   ' if good else 'WRONG'} {name}: {ended}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())), flush=True)
    return counts["WRONG"]
