"""Worker processes: results, failures, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from detnas_d2.utils.workers import WorkerError, WorkerPool


def build() -> Callable[[Any], Any]:
    return act


def act(value: Any) -> Any:
    """Does what it is told."""
    if value == "fail":
        raise MemoryError("too much\nof it")
    if value == "break":
        raise KeyError("category 17")
    if value == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if value == "sleep":
        time.sleep(60)
    return os.getpid(), value


def broken() -> Callable[[Any], Any]:
    raise FileNotFoundError("no annotations.json")


def dying() -> Callable[[Any], Any]:
    os._exit(7)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(build, 2)
    yield made
    made.close()


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends within the time."""
    for _ in range(int(seconds * 20)):
        if not running(pid):
            return True
        time.sleep(0.05)
    return False


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_results_come_from_other_processes(pool: WorkerPool) -> None:
    results = [pool.submit("a", i) for i in range(20)]
    assert [f.result()[1] for f in results] == list(range(20))
    assert {f.result()[0] for f in results} <= set(pool.pids) and os.getpid() not in pool.pids


def test_failures_name_the_call_and_leave_the_worker_alive(pool: WorkerPool) -> None:
    before = pool.pids
    failed, wrong, fine = (pool.submit(f"path {v}", v) for v in ("fail", "break", "go"))
    with pytest.raises(RuntimeError, match="^MemoryError: too much, at path fail$"):
        failed.result()
    with pytest.raises(WorkerError, match="(?s)Traceback.*KeyError: 'category 17'.*at path break"):
        wrong.result()
    assert fine.result()[1] == "go" and pool.pids == before


def test_death_fails_one_call_and_the_worker_is_replaced(pool: WorkerPool) -> None:
    before = pool.pids
    jobs = [pool.submit(f"path {i}", v) for i, v in enumerate((1, "die", 2, 3))]
    with pytest.raises(RuntimeError, match=r"worker process died \(exit code -9\) at path 1"):
        jobs[1].result()
    assert [jobs[i].result()[1] for i in (0, 2, 3)] == [1, 2, 3]
    assert len(set(before) & set(pool.pids)) == 1


def test_death_while_idle_fails_nothing(pool: WorkerPool) -> None:
    assert [pool.submit("warm", i).result()[1] for i in range(6)] == list(range(6))
    before = pool.pids
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
    assert [pool.submit("later", i).result()[1] for i in range(6)] == list(range(6))
    assert set(before) - set(pool.pids)


def test_workers_that_cannot_start() -> None:
    for make, message in (
        (broken, "could not start.*no annotations.json"),
        (dying, "died 3 times while starting, with exit code 7"),
    ):
        unable = WorkerPool(make, 1)
        with pytest.raises(WorkerError, match=f"(?s){message}"):
            unable.submit("a", 1).result()
        unable.close(wait=False)


def test_interrupts_wait_from_the_first_moment_of_a_worker() -> None:
    """Not only when it has imported what ignores them."""
    held = 1 << (signal.SIGINT - 1)
    hurried = WorkerPool(build, 1)
    status = Path(f"/proc/{hurried.pids[0]}/status")
    masks = dict(line.split(":\t") for line in status.read_text().splitlines() if "Sig" in line)
    hurried.close(wait=False)
    assert int(masks["SigBlk"], 16) & held
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_closing_without_waiting() -> None:
    hurried = WorkerPool(build, 1)
    hurried.submit("warm", 1).result()
    pid = hurried.pids[0]
    busy, waiting = hurried.submit("busy", "sleep"), hurried.submit("waiting", 1)
    while not busy.running():
        time.sleep(0.01)
    hurried.close(wait=False)
    assert gone(pid)
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(RuntimeError, match="died"):
        busy.result()


PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from detnas_d2.utils.workers import WorkerPool
from tests.utils.test_workers import build

if __name__ == "__main__":
    pool = WorkerPool(build, 1)
    pool.submit("a", 1).result()
    pool.submit("b", "sleep")
    print(pool.pids[0], flush=True)
    time.sleep(60)
"""


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(root=str(Path(__file__).resolve().parents[2])))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.kill()
    assert gone(pid)


LEAVES = """
import multiprocessing, sys
sys.path.insert(0, {root!r})
from detnas_d2.utils.workers import WorkerPool

kept = []

def build():
    kept.append(multiprocessing.RLock())  # as tqdm does; a file of the system's
    return abs

if __name__ == "__main__":
    pool = WorkerPool(build, 2)
    print([pool.submit("a", -n).result() for n in (1, 2)])
    pool.end()
"""


def test_workers_that_end_by_themselves_leave_nothing(tmp_path: Path) -> None:
    file = tmp_path / "leaves.py"
    file.write_text(LEAVES.format(root=str(Path(__file__).parents[2])))
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1, 2]\n", "")
