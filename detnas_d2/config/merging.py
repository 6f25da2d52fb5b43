"""Config files and overrides merged into a config, each mistake with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.config.compat import downgrade_config, guess_version, upgrade_config

from detnas_d2.config.reading import ConfigError, Tree, read_with_bases
from detnas_d2.config.renamed import new_name
from detnas_d2.utils.compat import decoded_value

COMMAND_LINE = "command line"
_MAY_BE_NONE = ("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY_BIAS")


def merge_file(cfg: CfgNode, file: str) -> Tree:
    """``CfgNode.merge_from_file`` for files that nobody has looked at; returns what was read.

    Raises:
        ConfigError: see :func:`read_with_bases`; or a key that does not exist, or a value of
            another type.
    """
    tree = read_with_bases(file)
    latest = cfg.VERSION
    loaded = CfgNode(tree.data)
    version = loaded.get("VERSION")
    if version is None:
        version = guess_version(loaded, file)
    if version not in range(1, latest + 1) or isinstance(version, bool):
        where = tree.place("VERSION", file)
        raise ConfigError(f"{where}: VERSION is {version!r}: expected {latest}, or 1 of old files")
    if version == latest:
        for key, value in _leaves(tree.data):
            _check(cfg, key, value, tree.place(key, file))
        _merge(file, cfg.merge_from_other_cfg, loaded)
    else:
        old = downgrade_config(cfg, to_version=version)
        _merge(file, old.merge_from_other_cfg, loaded)
        new = upgrade_config(old)
        cfg.clear()
        cfg.update(new)
    return tree


def merge_overrides(cfg: CfgNode, opts: Iterable[Any], where: str = COMMAND_LINE) -> list[str]:
    """``CfgNode.merge_from_list``; returns the keys.

    Raises:
        ConfigError: a key without value, one that does not exist, or a value of another type.
    """
    words = list(opts)
    words[::2] = [new_name(key, where) for key in words[::2]]
    if len(words) % 2:
        raise ConfigError(
            f"{where}: overrides are KEY VALUE pairs, got {len(words)} words; the last is "
            f"{words[-1]!r}"
        )
    keys = words[::2]
    for key, value in zip(keys, words[1::2], strict=True):
        if not isinstance(key, str):
            raise ConfigError(f"{where}: {key!r}: expected the name of a key")
        _check(cfg, key, value, where)
    _merge(where, cfg.merge_from_list, words)
    return keys


def _merge(where: str, merge: Any, content: Any) -> None:
    try:
        merge(content)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        text = error.args[0] if error.args else error
        raise ConfigError(f"{where}: {text}") from error


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check(cfg: CfgNode, key: str, value: Any, where: str) -> None:
    """Compares a key and the type of its value with the config's."""
    node: Any = cfg
    parts = key.split(".")
    for number, part in enumerate(parts):
        if not isinstance(node, CfgNode):
            parent = ".".join(parts[:number])
            raise ConfigError(f"{where}: {key}: {parent} is a value, it has no keys")
        if part not in node:
            raise ConfigError(f"{where}: {key}: no such key{_close(cfg, key)}")
        node = node[part]
    if isinstance(node, CfgNode):
        if value != {}:
            raise ConfigError(f"{where}: {key} is {value!r}: expected a mapping of keys")
        return
    try:
        found = decoded_value(value)
    except (MemoryError, RecursionError, TypeError, ValueError) as error:
        text = repr(value)[:60]
        raise ConfigError(f"{where}: {key} is {text}: cannot be read: {error}") from error
    if not _same_type(node, found) and not (found is None and key in _MAY_BE_NONE):
        raise ConfigError(
            f"{where}: {key} is {repr(found)[:60]}: expected {_kind(node)} like {node!r}"
        )


def _same_type(old: Any, new: Any) -> bool:
    if old is None or type(old) is type(new):
        return True
    return isinstance(old, (list, tuple)) and isinstance(new, (list, tuple))


def _kind(value: Any) -> str:
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a text"}
    return names.get(type(value), "a list")


def _close(cfg: CfgNode, key: str) -> str:
    """A hint: the existing keys that look like one."""
    known = {name.lower(): name for name in _all_keys(cfg)}
    close = difflib.get_close_matches(key.lower(), known, n=2, cutoff=0.8)
    return f"; did you mean {' or '.join(known[name] for name in close)}?" if close else ""


def _all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{key}.")
