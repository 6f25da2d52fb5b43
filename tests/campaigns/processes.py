"""Kills or interrupts processes of a run and starts it again, and starts it twice at a time.

    python tests/campaigns/processes.py [--trials N] [--seed S] [--only TEXT]

The exit status is 1 if a run did not end with the outcome of one that nothing happened to.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from detnas_d2.command import INTERRUPTED
from tests.campaigns.outcome import differences, outcome
from tests.campaigns.reference import SAME, campaign
from tests.campaigns.runner import message, session, start, wait
from tests.campaigns.tiny import detnas_pipeline

LOADERS = ("DATALOADER.NUM_WORKERS", "2")
TRAINING, SEARCHING = "supernet/last_checkpoint", "search/history.jsonl"
_ATTEMPTS = 3
TOO_LATE = "ended before Ctrl-C"


class Runs:
    """Runs of a pipeline in ``root`` whose search scores in a worker."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = detnas_pipeline(root, scoring_workers=1, networks=1)
        self._references: dict[tuple, dict] = {}

    def start(self, log: str, *opts: str, ranks: int = 1) -> int:
        opts = ("OUTPUT_DIR", str(self.root / "x"), *opts)
        return start(self.file, self.root / log, *opts, ranks=ranks)

    def reference(self, ranks: int, *opts: str) -> dict:
        """The outcome of a run that nothing happens to."""
        if (ranks, opts) not in self._references:
            folder = self.root / f"reference{len(self._references)}"
            words = ("OUTPUT_DIR", str(folder), *opts)
            code = wait(start(self.file, self.root / "log", *words, ranks=ranks), 600)
            assert code == 0, (self.root / "log").read_text()
            self._references[ranks, opts] = outcome(folder)
        return self._references[ranks, opts]

    def clear(self) -> None:
        shutil.rmtree(self.root / "x", ignore_errors=True)
        for log in "ab":
            (self.root / log).unlink(missing_ok=True)

    def wait_for(self, name: str, pid: int, limit: float = 240.0) -> None:
        """Until the run has written a file, or has ended."""
        end = time.monotonic() + limit
        while time.monotonic() < end and not (self.root / "x" / name).exists() and session(pid):
            time.sleep(0.02)

    def ended(self, code: int | str, log: str, ranks: int, *opts: str) -> tuple[bool, str]:
        if code != 0:
            return False, f"exit {code}: {message((self.root / log).read_text())[:200]}"
        found = differences(outcome(self.root / "x"), self.reference(ranks, *opts))
        return not found, f"different: {found[:3]}" if found else SAME


def killed(
    runs: Runs, when: str, *opts: str, ranks: int = 1, child: bool = False
) -> tuple[bool, str]:
    """Kills the run, or one of its processes, and starts it again at once."""
    runs.reference(ranks, *opts)
    runs.clear()
    pid = runs.start("a", *opts, ranks=ranks)
    runs.wait_for(when, pid)
    others = [member for member in session(pid) if member != pid]
    with contextlib.suppress(ProcessLookupError):
        os.kill(others[-1] if child and others else pid, signal.SIGKILL)
    code = wait(pid, 300)
    if code != 0:
        code = wait(runs.start("b", *opts, ranks=ranks), 600)
    good, ended = runs.ended(code, "b", ranks, *opts)
    left = left_over(pid)
    return good and not left, f"{ended}, {left} processes left over" if left else ended


def interrupted(runs: Runs, when: str, *opts: str, ranks: int = 1) -> tuple[bool, str]:
    """Ctrl-C, which all processes of the run receive: one line, and nothing of it goes on."""
    runs.reference(ranks, *opts)
    for _ in range(_ATTEMPTS):
        wrong = interrupt(runs, when, *opts, ranks=ranks)
        if wrong != TOO_LATE:
            break
    if wrong:
        return False, wrong
    return runs.ended(wait(runs.start("b", *opts, ranks=ranks), 600), "b", ranks, *opts)


def interrupt(runs: Runs, when: str, *opts: str, ranks: int = 1) -> str:
    """Starts a run and presses Ctrl-C; "" if it ended at once, with one line and all processes.

    TOO_LATE if it had ended before: this process may wait for its turn of the machine for long.
    """
    runs.clear()
    pid = runs.start("a", *opts, ranks=ranks)
    runs.wait_for(when, pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGINT)
    code = wait(pid, 60)
    if code == 0:
        return TOO_LATE
    text, left = (runs.root / "a").read_text(), left_over(pid)
    told = text.count("interrupted") == 1 and message(text).startswith("interrupted; to go on: ")
    if code == INTERRUPTED and told and "Traceback" not in text and not left:
        return ""
    return f"exit {code}, {left} processes left over: {text[-2000:]}"


def left_over(leader: int, limit: float = 30) -> int:
    """Processes of a run that still live some seconds after its end; they are killed."""
    end = time.monotonic() + limit
    while session(leader) and time.monotonic() < end:
        time.sleep(0.1)
    left = session(leader)
    for member in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    return len(left)


def twice(runs: Runs, delay: float) -> tuple[bool, str]:
    """Starts the run twice: one ends as it should, the other is told that the folder is in use."""
    runs.reference(1)
    runs.clear()
    pids = [runs.start("a")]
    time.sleep(delay)
    pids.append(runs.start("b"))
    codes = [wait(pid, 600) for pid in pids]
    told = [message((runs.root / log).read_text()) for log in "ab"]
    refused = [text for code, text in zip(codes, told, strict=True) if code != 0]
    good, ended = runs.ended(0 if 0 in codes else codes[0], "a", 1)
    return good and all("is in use: process" in text for text in refused), (
        f"{ended}; the other one: {refused}" if refused and good else ended
    )


CASES: dict[str, Callable[[Runs], tuple[bool, str]]] = {
    "training, loader workers": lambda r: killed(r, TRAINING, *LOADERS),
    "search, scoring worker": lambda r: killed(r, SEARCHING),
    "a loader worker": lambda r: killed(r, TRAINING, *LOADERS, child=True),
    "a scoring worker": lambda r: killed(r, SEARCHING, child=True),
    "training, 2 ranks": lambda r: killed(r, TRAINING, ranks=2),
    "search, 2 ranks": lambda r: killed(r, SEARCHING, ranks=2),
    "training, one of 2 ranks": lambda r: killed(r, TRAINING, ranks=2, child=True),
    "Ctrl-C, loader workers": lambda r: interrupted(r, TRAINING, *LOADERS),
    "Ctrl-C, scoring worker": lambda r: interrupted(r, SEARCHING),
    "Ctrl-C, 2 ranks, loader workers": lambda r: interrupted(r, TRAINING, *LOADERS, ranks=2),
    "Ctrl-C, search of 2 ranks": lambda r: interrupted(r, SEARCHING, ranks=2),
    "two at once": lambda r: twice(r, 0.0),
    "two, 3 s apart": lambda r: twice(r, 3.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=len(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    # A shell that starts a command in the background has it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    names = [name for name in CASES if args.only in name]
    with tempfile.TemporaryDirectory() as scratch:
        runs = Runs(Path(scratch))
        wrong = campaign(names, lambda name: CASES[name](runs), args.trials, args.seed)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
