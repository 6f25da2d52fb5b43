"""What was recognised, kept until a file changes. Nothing is written beside the user's data."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from detnas_d2 import __version__
from detnas_d2.data.checks.tracked import tracked_state
from detnas_d2.data.recognition.tree import Tree
from detnas_d2.utils.io import digest, file_name_of, write_json

_VERSION = 2
_RESULT = "recognised.json"


def default_cache() -> str:
    """Folder of a user's derived files where no config names one (DATASETS.CACHE_DIR): below the
    user's cache, or where nothing can be written there, as in some containers, below the system's
    temporary folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(base, "detnas_d2")
    try:
        os.makedirs(folder, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    return os.path.join(tempfile.gettempdir(), f"detnas_d2-{os.getuid()}")


class Memory:
    """The memory of one folder, below ``cache_dir``.

    It holds as long as names, sizes and times of all files below the folder are the same, and of
    those elsewhere that were read.
    """

    def __init__(self, cache_dir: str, tree: Tree) -> None:
        # Relative paths of YOLO files may start there.
        place = [tree.root, tree.only, os.getenv("DETECTRON2_DATASETS", "")]
        name = file_name_of(os.path.basename(tree.root))[:60]
        self.tree = tree
        self.folder = os.path.abspath(
            os.path.join(cache_dir, "recognised", f"{name}-{digest(place)}")
        )

    def recall(self) -> dict[str, Any] | None:
        try:
            with open(os.path.join(self.folder, _RESULT), encoding="utf-8") as file:
                kept = json.load(file)
        except (OSError, ValueError):
            return None
        if kept.get("version") != [_VERSION, __version__] or kept["state"] != self.tree.state:
            return None
        return (
            kept["result"] if tracked_state(kept["elsewhere"]) == kept["elsewhere_state"] else None
        )

    def keep(self, result: dict[str, Any], tracked: Sequence[tuple[str, list[str]]]) -> None:
        """``tracked``: (folder, paths) of all files that the result depends on."""
        elsewhere = [found for base, paths in tracked if (found := self._elsewhere(base, paths))[1]]
        write_json(
            os.path.join(self.folder, _RESULT),
            {
                "version": [_VERSION, __version__],
                "state": self.tree.state,
                "elsewhere": elsewhere,
                "elsewhere_state": tracked_state(elsewhere),
                "result": result,
            },
        )

    def _elsewhere(self, base: str, paths: list[str]) -> tuple[str, list[str]]:
        top = self.tree.root + os.sep
        inside = f"{os.path.abspath(base)}{os.sep}".startswith(top)
        if inside and not any(path.startswith(("..", os.sep)) for path in paths):
            return base, []
        rest = (path for path in paths if not path.startswith(top) or ".." in path)
        full = (os.path.abspath(os.path.join(base, path)) for path in rest)
        return "", [path for path in full if not f"{path}{os.sep}".startswith(top)]
