"""State of a pipeline stage, read from the files in its folder.

``done.json`` is written at the end, ``failed.json`` by an error. Who runs a stage holds the lock of
its folder (:mod:`detnas_d2.utils.locks`): a stage that was killed reads "stopped". So does one that
is done but whose products, e.g. its weights, are gone or cut off: it runs again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from detnas_d2.utils.io import write_text
from detnas_d2.utils.locks import LOCK_FILE, exclusive, is_held

DONE_FILE, FAILED_FILE = "done.json", "failed.json"

NOT_STARTED, RUNNING, STOPPED = "not started", "running", "stopped"
FAILED, DONE, OUTDATED = "failed", "done", "outdated"
"""OUTDATED: run with another config, its own or that of a stage before it."""


@contextlib.contextmanager
def running(folder: str, fingerprint: str) -> Iterator[None]:
    """Marks the stage in ``folder`` as running; an error in the body leaves ``failed.json``.

    Args:
        fingerprint: of the stage's config; kept in the lock's file.

    Raises:
        FolderBusy: naming the process that runs it already.
    """
    with exclusive(folder, fingerprint=fingerprint):
        failed = os.path.join(folder, FAILED_FILE)
        if os.path.exists(failed):
            os.remove(failed)
        try:
            yield
        except Exception as error:
            last = str(error).strip().splitlines()[-1:] or [""]
            report = {"error": f"{type(error).__name__}: {last[0]}", "time": time.time()}
            with contextlib.suppress(OSError):  # a full disk is what the error itself tells
                write_text(failed, json.dumps(report, indent=1))
            raise


def read_json(folder: str, name: str) -> dict[str, Any]:
    """A state file of a stage; empty if there is none, or a torn one, or another value in it."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as text:
            value = json.load(text)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_done(folder: str, products: Iterable[str]) -> dict[str, Any]:
    """``done.json`` of a finished stage; empty unless that and its products are whole."""
    done = read_json(folder, DONE_FILE)
    types = {"fingerprint": str, "results": dict, "path": str}
    if not all(isinstance(done.get(key), kind) for key, kind in types.items()):
        return {}
    return {} if missing_products(folder, products) else done


def missing_products(folder: str, products: Iterable[str]) -> list[str]:
    """Those of a stage's files that are not there, or empty or cut off."""
    return [name for name in products if not _is_whole(os.path.join(folder, name))]


def _is_whole(path: str) -> bool:
    """Whether a file is there and not cut off, as far as a glance at it tells."""
    try:
        return os.path.getsize(path) > 0 and (not path.endswith(".pth") or zipfile.is_zipfile(path))
    except OSError:
        return False


def state_of(folder: str, products: Iterable[str] = ()) -> str:
    """NOT_STARTED, RUNNING, STOPPED, FAILED or DONE, whatever the config it was done with.

    Args:
        products: names of the files that a finished stage has in its folder.
    """
    if is_held(folder):
        return RUNNING
    if read_done(folder, products):
        return DONE
    for name, state in ((FAILED_FILE, FAILED), (DONE_FILE, STOPPED), (LOCK_FILE, STOPPED)):
        if os.path.exists(os.path.join(folder, name)):
            return state
    return NOT_STARTED
