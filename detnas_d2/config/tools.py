"""Reading configs, comparing them, and writing the short YAML of what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from detnas_d2.config.hit_config import add_hit_detector_config
from detnas_d2.config.merging import COMMAND_LINE, merge_file, merge_overrides
from detnas_d2.config.values import check_values


def base_config() -> CfgNode:
    """Detectron2's defaults with this package's keys."""
    cfg = get_cfg()
    add_hit_detector_config(cfg)
    return cfg


def load_config(
    config_file: str,
    opts: Iterable[Any] = (),
    *,
    fragments: Iterable[str] = (),
    place: str = COMMAND_LINE,
) -> CfgNode:
    """A checked config from a file, from config fragments merged into it, and overrides.

    Args:
        opts: KEY, VALUE, ...; the last to be merged.
        place: where they stand, for error messages.

    Raises:
        ConfigError: naming the file with its line, or ``place``, the key and the value.
    """
    cfg = base_config()
    places: dict[str, str] = {}
    for file in (config_file, *fragments):
        if file:
            places.update(merge_file(cfg, file).places)
    places.update(dict.fromkeys(merge_overrides(cfg, opts, place), place))
    check_values(cfg, places, config_file or place)
    return cfg


def flatten(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """A config as one dict of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def changed_keys(cfg: CfgNode) -> dict[str, Any]:
    """The dotted keys that differ from :func:`base_config`, sorted, with their values."""
    defaults, flat = flatten(base_config()), flatten(cfg)
    return {k: flat[k] for k in sorted(flat) if k not in defaults or defaults[k] != flat[k]}


def is_under(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``names`` or below one that is a node."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


FREE_KEYS = ("OUTPUT_DIR", "DATASETS.CACHE_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")
"""Keys that say where and on what a run works, and do not alter what it does."""


def differing_keys(old: CfgNode, new: CfgNode, ignore: Iterable[str] = ()) -> list[str]:
    """Texts "KEY: old -> new", sorted, of the dotted keys in which two configs differ.

    Tuples and lists are the same, and so is any order of a mapping's keys, as they are in a config
    that was written and read again.
    """
    before, after, ignored = flatten(old), flatten(new), tuple(ignore)

    def plain(value: Any) -> str:
        return json.dumps(value, default=str, sort_keys=True)

    return [
        f"{key}: {before.get(key, 'nothing')!r} -> {after.get(key, 'nothing')!r}"
        for key in sorted({*before, *after})
        if plain(before.get(key)) != plain(after.get(key)) and not is_under(key, ignored)
    ]


def fingerprint(cfg: CfgNode, ignore: Iterable[str] = ()) -> str:
    """SHA-256 of what a config changes, without the dotted keys and nodes in ``ignore``.

    A key that is new in a later version and left at its default does not alter it.
    """
    ignored = tuple(ignore)
    flat = {k: v for k, v in changed_keys(cfg).items() if not is_under(k, ignored)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()


def short_yaml(cfg: CfgNode) -> str:
    """YAML of the keys that differ from :func:`base_config`; loads back to ``cfg``."""
    tree = nested(changed_keys(cfg)) | {"VERSION": cfg.VERSION}
    return yaml.safe_dump(tree, sort_keys=True, width=100)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML tree of dotted keys, as :func:`flatten` gives them."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return tree
