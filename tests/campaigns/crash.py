"""Kills whole pipelines at random, lets them go on, and compares with an uninterrupted run.

    python tests/campaigns/crash.py FOLDER PIPELINE MODE --trials 20 --seed 0

PIPELINE is a key of :data:`PIPELINES`. MODE says how a run is ended:

op     SIGKILL before one of its file operations (opening for writing, renaming, removing, making
       folders and links, fsync), or in the middle of a line of a search's history;
time   SIGKILL after a random time;
chain  2 to 5 kills of either sort, those after the first while it resumes;
term, int  SIGTERM, SIGINT after a random time;
new    SIGKILL after a random time of a command that is started as a program, and so goes on.

Everywhere but in ``new`` runs are forked from a process that has imported the package and done
nothing else. Weights, histories, architectures, tables and done files are compared bit by bit. One
line per trial, a JSON line with its details in FOLDER/results.jsonl; exit code 1 if any trial
differs or does not end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import detnas_d2.engine  # noqa: F401  what forked runs find imported
from tests.campaigns import tiny
from tests.campaigns.outcome import differences, outcome
from tests.campaigns.runner import message, run, session, start, wait

ROOT = Path(__file__).resolve().parents[2]
PIPELINES: dict[str, Callable[[Path], Path]] = {
    "detnas": tiny.detnas_pipeline,
    "retinanet": partial(tiny.detnas_pipeline, kind="retinanet", networks=1),
    "precise_bn": partial(tiny.detnas_pipeline, precise_bn=True, networks=1),
    "slice": partial(
        tiny.detnas_pipeline, kind="retinanet", networks=0, generations=1, scoring_workers=0
    ),
    "hit": tiny.hit_pipeline,
    "hit_retinanet": partial(tiny.hit_pipeline, one_stage=True),
}
MODES = ("op", "time", "chain", "term", "int", "new")
_EVENTS = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.truncate",
    "os.chmod",
    "os.symlink",
    "os.rmdir",
)


class Operations:
    """Counts this process's file operations below a folder; ends it before the n-th.

    Args:
        last: n; None: to the end.
        log: where to write what they were.
    """

    def __init__(self, folder: Path, last: int | None = None, log: Path | None = None) -> None:
        self.folder, self.last, self.log = str(folder), last, log
        self.count, self.pid = 0, -1

    def install(self) -> None:
        """To be called in the process; it cannot be undone."""
        import detnas_d2.search.history as history

        self.pid, sync, append = os.getpid(), os.fsync, history.append

        def counted_sync(descriptor: int) -> None:
            self._next("fsync")
            sync(descriptor)

        def torn_append(path: Path, data: bytes) -> None:
            if self.count + 1 == self.last:
                with open(path, "ab") as file:
                    file.write(data[: len(data) // 2])
            self._next("half a line")
            append(path, data)

        os.fsync, history.append = counted_sync, torn_append
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in _EVENTS:
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)):
            name = os.fsdecode(path)
            if name.startswith(self.folder) and name != str(self.log):
                target = f" to {os.path.basename(arguments[1])}" if event == "os.rename" else ""
                self._next(f"{event} {name[len(self.folder) :]}{target}")

    def _next(self, what: str) -> None:
        if os.getpid() != self.pid:  # a worker
            return
        self.count += 1
        if self.log is not None:
            descriptor = os.open(str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{what}\n".encode())
            os.close(descriptor)
        if self.count == self.last:
            os.kill(self.pid, signal.SIGKILL)


class Campaign:
    """Trials on one pipeline below ``root``; the uninterrupted run is made first."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.file = PIPELINES[name](root)
        self.runs, self.log = root / "runs", root / "log.txt"
        operations = root / "operations.txt"
        before = Operations(self.runs, log=operations).install
        begin = time.monotonic()
        code, text = run(self.file, self.log, before=before)
        if code != 0:
            raise RuntimeError(f"the uninterrupted run failed: {message(text)}")
        self.seconds = time.monotonic() - begin
        self.operations = operations.read_text().splitlines()
        self.expected = outcome(self.runs)

    def clear(self) -> None:
        """Forgets the last run."""
        shutil.rmtree(self.runs, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    def trial(self, mode: str, rng: random.Random) -> dict[str, Any]:
        """Ends a fresh run as ``mode`` says, resumes it to its end; what happened, and "ok"."""
        self.clear()
        count = rng.randint(2, 5) if mode == "chain" else 1
        kills: list[dict[str, Any]] = []
        for number in range(count):
            how = rng.choice(("op", "time")) if mode == "chain" else mode
            share = 1.0 if mode != "chain" else 0.5
            kills.append(self._kill(how, rng, share, resumes=number > 0))
            if kills[-1]["code"] == 0:
                break
        return {"mode": mode, "kills": kills, **self.finish(program=mode == "new")}

    def finish(self, *, program: bool = False) -> dict[str, Any]:
        """Resumes at once (workers of the killed run may still live); compares the outcome."""
        code = wait(self._program() if program else start(self.file, self.log))
        different = differences(self.expected, outcome(self.runs)) if code == 0 else []
        return {
            "pipeline": self.name,
            "resumed": code,
            "why": "" if code == 0 else message(self.log.read_text(errors="replace")),
            "different": different,
            "left": [str(f.relative_to(self.runs)) for f in self.runs.rglob(".partial-*")],
            "ok": code == 0 and not different,
        }

    def kill_at(self, last: int) -> dict[str, Any]:
        """Runs or resumes to the file operation ``last`` of this process."""
        before = Operations(self.runs, last).install
        code = wait(start(self.file, self.log, before=before))
        return {"how": "op", "at": last, "what": self.operations[last - 1], "code": code}

    def _kill(self, how: str, rng: random.Random, share: float, *, resumes: bool) -> dict[str, Any]:
        if how == "op":
            # A run that resumes has fewer of them; one beyond its last lets it end.
            most = int(len(self.operations) * (0.5 if resumes else 1))
            return self.kill_at(rng.randint(1, max(1, most)))
        after = rng.uniform(0.05, self.seconds * share)
        if how == "new":
            after += 4.0  # the imports
        numbers = {"term": signal.SIGTERM, "int": signal.SIGINT}
        pid = self._program() if how == "new" else start(self.file, self.log)
        code = _signal_after(pid, after, numbers.get(how, signal.SIGKILL))
        if how in numbers:
            _wait_for_orphans(pid)
        return {"how": how, "at": round(after, 2), "what": "", "code": code}

    def _program(self) -> int:
        project = "HitDetector" if self.name.startswith("hit") else "DetNAS"
        program = ROOT / "projects" / project / "run_pipeline.py"
        command = [sys.executable, str(program), "--config-file", str(self.file)]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
            )
        process.returncode = 0  # it is waited for by its id
        return process.pid


def _signal_after(pid: int, seconds: float, number: int) -> int | str:
    """Sends a signal after a time unless the process has ended; its exit code."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, number)
    return wait(pid, 60)


def _wait_for_orphans(leader: int, limit: float = 15.0) -> None:
    """Waits for what an ended run started; kills what is left after the limit."""
    end = time.monotonic() + limit
    while session(leader) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in session(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pipeline", choices=PIPELINES)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # A shell that starts a command in the background has it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root = (args.folder / args.pipeline).resolve()
    shutil.rmtree(root, ignore_errors=True)
    campaign = Campaign(root, args.pipeline)
    print(
        f"{args.pipeline} {args.mode}: {campaign.seconds:.1f} s and {len(campaign.operations)} "
        "file operations uninterrupted",
        flush=True,
    )
    rng, failed, kills = random.Random(f"{args.pipeline}/{args.mode}/{args.seed}"), 0, 0
    for number in range(args.trials):
        row = campaign.trial(args.mode, rng)
        with open(args.folder / "results.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        last = row["kills"][-1]
        failed, kills = failed + (not row["ok"]), kills + sum(k["code"] != 0 for k in row["kills"])
        verdict = "same" if row["ok"] else f"FAILED {row['why']} {row['different'][:2]}"
        print(number, len(row["kills"]), last["how"], last["at"], last["what"], verdict, flush=True)
    print(f"{args.trials} trials, {kills} kills, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
