"""Runs the pipeline on file systems that lack something, are full or read-only.

    python tests/campaigns/filesystems.py [--trials N] [--seed S] [--only TEXT] [--folder FOLDER]

What a file system lacks is played by system calls that fail; disks of a size are real (tmpfs), for
which one must be root. The exit status is 1 if a case did not end as it should.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tests.campaigns.reference import SAME, Reference, campaign
from tests.campaigns.runner import message, run

Change = Callable[[], object]


def failing(owner: object, name: str, number: int) -> Change:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return lambda: setattr(owner, name, fail)


def folders_without_fsync(number: int) -> Change:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    return lambda: setattr(os, "fsync", fsync)


def clock_that_goes_back() -> Change:
    real, calls = time.time, iter(range(10**9))
    return lambda: setattr(time, "time", lambda: real() - 3600.0 * next(calls))


def limit(kind: int, value: int) -> Change:
    return lambda: resource.setrlimit(kind, (value, value))


LACKING: dict[str, tuple[Change, str]] = {
    "fsync of folders: EINVAL": (folders_without_fsync(errno.EINVAL), SAME),
    "fsync of folders: ENOTSUP": (folders_without_fsync(errno.ENOTSUP), SAME),
    # Detectron2's writer of metrics.json wants it for files.
    "fsync of anything: ENOSYS": (failing(os, "fsync", errno.ENOSYS), "Function not implemented"),
    "flock: ENOLCK": (failing(fcntl, "flock", errno.ENOLCK), SAME),
    "flock: ENOTSUP": (failing(fcntl, "flock", errno.EOPNOTSUPP), SAME),
    "chmod: EPERM": (failing(os, "chmod", errno.EPERM), SAME),
    "symlink: EPERM": (failing(os, "symlink", errno.EPERM), SAME),
    "mmap: ENODEV": (failing(np, "memmap", errno.ENODEV), SAME),
    "a clock that goes back": (clock_that_goes_back(), SAME),
    "fsync: EIO": (failing(os, "fsync", errno.EIO), "Input/output error"),
    "files of 200 KiB": (limit(resource.RLIMIT_FSIZE, 200 * 1024), "File too large"),
}
SIZES = ("300k", "2m", "4m", "6m", "8m", "12m")


def lacking(reference: Reference, name: str) -> tuple[bool, str]:
    """Runs the pipeline from its start; whether it ended as it should, and how."""
    change, expected = LACKING[name]
    reference.restore(finished=False)
    good, ended = reference.verdict(expected, before=change)
    if expected != SAME and good:  # and once the disk is mended it goes on
        good, later = reference.verdict(SAME)
        ended = f"{ended}; then {later}"
    return good, ended


@contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def small(reference: Reference, size: str, *, check: bool) -> tuple[bool, str]:
    """A disk that fills up: refused at the start, or failed with one line; then it is made larger.

    Args:
        check: let the pipeline look at the free space; else it finds out.
    """
    reference.restore(finished=False)
    with disk(reference.runs, size):
        blind = failing(os, "statvfs", errno.ENOSYS)
        code, text = run(reference.file, reference.root / "log", before=None if check else blind)
        line = message(text)
        if code == 0:
            return not reference.differences(), SAME
        named = "GiB are free" in line if check else "No space left" in line
        begun = list(reference.runs.rglob("*.pth"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(reference.runs)], check=True)
        good, later = reference.verdict(SAME)
        good = good and code == 1 and named and not (check and begun)
        return good, f"exit {code}: {line[:200]}; then {later}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10**6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--folder", type=Path, help="where the reference stays; default: nowhere")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        reference = Reference((args.folder or Path(scratch)).resolve() / "damage")
        cases: dict[str, Callable[[], tuple[bool, str]]] = {
            name: (lambda name=name: lacking(reference, name)) for name in LACKING
        }
        for size in SIZES if os.geteuid() == 0 else ():
            for check in (True, False):
                title = f"disk of {size}, {'told' if check else 'found out'}"
                cases[title] = lambda size=size, check=check: small(reference, size, check=check)
        names = [name for name in cases if args.only in name]
        wrong = campaign(names, lambda name: cases[name](), args.trials, args.seed)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
