#!/usr/bin/env python3
"""Install Detectron2 into the running Python, which must have torch and pip < 26.

An importable Detectron2 is used as it is.  Otherwise a commit of the official repository is tried,
and where it cannot be reached or built, the source distribution of v0.6 on the package registry is
patched (:mod:`detectron2_patches`) and installed.  Nothing of a download runs before its hash was
compared with the one here, and nothing comes with it: its requirements must be installed already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from detectron2_patches import apply_patches

OFFICIAL = "https://github.com/facebookresearch/detectron2.git"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"  # of its main branch
REACH_SECONDS = 15  # to find out whether the official repository answers
SDIST = (
    "pb1-detectron2==0.6"
    " --hash=sha256:5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
)


def say(message: str) -> None:
    print(f"  detectron2: {message}", flush=True)


def importable() -> bool:
    """Whether ``import detectron2`` works, seen from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "import detectron2; print(detectron2.__version__)"],
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        say(f"{done.stdout.strip()} is installed")
    return done.returncode == 0


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def git(*arguments: str, quiet: bool = False, timeout: float | None = None) -> str:
    """Run git, without ever asking for a password; what it prints, ``quiet``: its errors unseen."""
    done = subprocess.run(
        ["git", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout,
        check=True,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
    )
    return done.stdout.strip()


def check_out(folder: Path, repository: str = OFFICIAL, commit: str = COMMIT) -> None:
    """Check a commit out; git compares what it fetches with the hash that names the commit.

    Not pip's git+URL@COMMIT, which would take a branch of that name for it.

    Raises:
        subprocess.CalledProcessError: the repository does not have the commit; git has said so.
        ValueError: something else was checked out.
    """
    git("init", "-q", str(folder))
    git("-C", str(folder), "fetch", "-q", "--depth", "1", repository, commit)
    git("-C", str(folder), "checkout", "-q", "FETCH_HEAD")
    found = git("-C", str(folder), "rev-parse", "HEAD")
    if found != commit:
        raise ValueError(f"{repository}: {found} was checked out, expected {commit}")


def install_official() -> bool:
    try:
        git("ls-remote", OFFICIAL, "HEAD", quiet=True, timeout=REACH_SECONDS)
    except (OSError, subprocess.SubprocessError):
        say("the official repository does not answer")
        return False
    say(f"building commit {COMMIT} of the official repository (several minutes)")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            check_out(Path(scratch))
            pip("install", "-q", "--no-build-isolation", "--no-deps", scratch)
        except subprocess.CalledProcessError:
            say("the official repository did not build (messages above)")
            return False
    return True


def download(requirement: str, scratch: Path) -> Path:
    """Download a source distribution, given with its hash; the file.

    pip runs its setup.py to learn its name and version, but not before it has compared the hash,
    which it takes from a file of requirements only.

    Raises:
        subprocess.CalledProcessError: there is none, or its hash is another; pip has said so.
    """
    requirements, folder = scratch / "requirements.txt", scratch / "download"
    requirements.write_text(requirement + "\n")
    pip(
        *("download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"),
        *("--require-hashes", "-r", str(requirements), "-d", str(folder)),
    )
    (archive,) = folder.iterdir()
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a source distribution; the one folder it holds."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:  # Python 3.10 and 3.11 before their security releases; the hash was compared
            tar.extractall(folder)
    (source,) = (entry for entry in folder.iterdir() if entry.is_dir())
    return source


def install_patched() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        archive = download(SDIST, Path(scratch))
        source = unpack(archive, Path(scratch, "source"))
        say(f"{archive.name} verified, {apply_patches(source)} patches applied")
        pip("install", "-q", "--no-build-isolation", "--no-deps", str(source))


def main() -> int:
    if importable():
        return 0
    if not install_official():
        install_patched()
    if not importable():
        say("installed, but it cannot be imported:")
        return subprocess.run([sys.executable, "-c", "import detectron2"]).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
