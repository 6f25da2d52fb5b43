"""Keys of the last release, read under their new names until the next."""

from __future__ import annotations

import logging
from typing import Any

RENAMED = {"MODEL.HIT.SEARCHED_PARTS": "MODEL.HIT.SEARCHABLE_PARTS"}

logger = logging.getLogger(__name__)


def new_name(key: Any, where: str) -> Any:
    """Today's name of a key; a warning names the place of an old one."""
    if not isinstance(key, str) or key not in RENAMED:
        return key
    logger.warning("%s: %s is called %s now", where, key, RENAMED[key])
    return RENAMED[key]


def rename_keys(data: dict[str, Any], places: dict[str, str], file: str) -> None:
    """Gives old keys of a file's content, and of the places they stand in, today's names."""
    for old in RENAMED:
        *parents, last = old.split(".")
        node: Any = data
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            where = places.get(old, file)
            new = new_name(old, where)
            node.setdefault(new.rpartition(".")[2], node.pop(last))
            places.setdefault(new, where)
