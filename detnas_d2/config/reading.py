"""YAML that people write: read without running code, with the line of every key.

Stricter than Detectron2's reader, which constructs Python objects that a file names and fetches a
``_BASE_`` from anywhere: plain values only, every key once, ``_BASE_`` a local file, bounded sizes.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from detnas_d2.config.renamed import rename_keys
from detnas_d2.utils.errors import InputError

BASE = "_BASE_"
MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
"""Values of a file with all aliases written out."""

_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool")}
_PLAIN |= {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}
_MERGE = "tag:yaml.org,2002:merge"
# Of YAML 1.1, written without a tag: unquoted dates, and "=".
_IMPLICIT = {"tag:yaml.org,2002:timestamp": "a date", "tag:yaml.org,2002:value": "a default value"}


class ConfigError(InputError):
    """A config file or override that does not say what it should."""


@dataclass
class Tree:
    """A file's content, ``_BASE_`` resolved.

    Attributes:
        data: what the file and those below it say.
        places: dotted key -> "file:line" that set it.
    """

    data: Any
    places: dict[str, str] = field(default_factory=dict)

    def place(self, key: str, file: str) -> str:
        """Place where a dotted key, or the node that holds it, was set; ``file`` if nowhere."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, file)


def read_yaml(file: str | os.PathLike[str]) -> Tree:
    """The content of a YAML file of plain values.

    Raises:
        ConfigError: naming the file, the line and the key: not YAML or not UTF-8, too large, a tag,
            a key that is twice there or no text, an alias inside itself or to too much.
    """
    file = os.fspath(file)
    return copy.deepcopy(_parsed(file, _text(file)))


@functools.lru_cache(maxsize=128)  # the stages of a pipeline share most of their files
def _parsed(file: str, text: str) -> Tree:
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        places = _checked(file, node) if node is not None else {}
        return Tree(loader.construct_document(node) if node is not None else None, places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(text for text in (error.context, error.problem) if text)
        raise ConfigError(f"{file}{line}: not YAML: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply; expected a few levels of keys") from None
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file}: a value cannot be read: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_with_bases(file: str | os.PathLike[str]) -> Tree:
    """A mapping whose ``_BASE_`` (a local file or a list of them, relative to the file) it alters.

    Raises:
        ConfigError: see :func:`read_yaml`; or no mapping, a ``_BASE_`` that is no local file, or
            one that leads back to itself.
    """
    return _with_bases(os.fspath(file), ())


def _with_bases(file: str, above: tuple[str, ...]) -> Tree:
    if not os.path.isfile(file):
        raise ConfigError(f"config file {file!r} does not exist")
    tree = read_yaml(file)
    if not isinstance(tree.data, dict):
        raise ConfigError(f"{file}: expected a mapping of keys, got {_short(tree.data)}")
    rename_keys(tree.data, tree.places, file)
    if BASE not in tree.data:
        return tree
    where, names = tree.place(BASE, file), tree.data.pop(BASE)
    chain = (*above, os.path.realpath(file))
    merged = Tree({})
    for name in names if isinstance(names, list) else [names]:
        base = _base_file(where, name, file)
        if os.path.realpath(base) in chain:
            shown = " -> ".join(os.path.basename(f) for f in (*chain, base))
            raise ConfigError(f"{where}: {BASE} leads back to a file above it: {shown}")
        below = _with_bases(base, chain)
        _merge(below.data, merged.data, file)
        merged.places.update(below.places)
    _merge(tree.data, merged.data, file, tree)
    merged.places.update(tree.places)
    return merged


def _base_file(where: str, name: Any, file: str) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: {BASE} is {_short(name)}: expected the name of a config file")
    if "://" in name:
        raise ConfigError(
            f"{where}: {BASE} is {name!r}: a base is read from local files only; download it and "
            "name the file"
        )
    base = os.path.join(os.path.dirname(file), os.path.expanduser(name))
    if not os.path.isfile(base):
        raise ConfigError(f"{where}: {BASE} is {name!r}: no such file")
    return base


def _merge(
    new: Mapping[str, Any], old: dict[str, Any], file: str, tree: Tree | None = None, at: str = ""
) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in old:
            if not isinstance(old[key], dict):
                where = tree.place(at + key, file) if tree else file
                raise ConfigError(f"{where}: {at}{key} is a mapping, in the {BASE} a value")
            _merge(value, old[key], file, tree, f"{at}{key}.")
        else:
            old[key] = value


def _text(file: str) -> str:
    try:
        with open(file, "rb") as data:
            content = data.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_BYTES >> 20} MiB, expected a config file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}:{line}: not UTF-8 text; save the file as UTF-8") from error


def _checked(file: str, root: yaml.Node) -> dict[str, str]:
    """The line of every dotted key. Raises ConfigError for what is not plain."""
    places: dict[str, str] = {}
    count = 0
    for node, key, above in _nodes(root):
        where = f"{file}:{node.start_mark.line + 1}"
        name = f" {key}:" if key else ""
        count += 1
        if count > MAX_VALUES:
            raise ConfigError(
                f"{where}:{name} more than {MAX_VALUES} values with all aliases (&, *) written out"
            )
        if any(node is other for other in above):
            raise ConfigError(f"{where}:{name} an alias (*) of a node inside that node")
        _check_tag(where, name, node)
        if isinstance(node, yaml.MappingNode):
            for part, _ in node.value:
                at = f"{key}.{part.value}" if key else str(part.value)
                line = f"{file}:{part.start_mark.line + 1}"
                if part.tag == _MERGE:
                    continue
                if part.tag != "tag:yaml.org,2002:str":
                    raise ConfigError(
                        f"{line}:{name} the key {_short(part.value)} is not a text; quote it"
                    )
                places.setdefault(at, line)
            _check_unique(file, name, node)
    return places


def _check_unique(file: str, name: str, node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for part, _ in node.value:
        line = part.start_mark.line + 1
        if part.tag != _MERGE and part.value in lines:
            raise ConfigError(
                f"{file}:{line}:{name} the key {part.value} is there twice, also in line "
                f"{lines[part.value]}; keep one of them"
            )
        lines[part.value] = line


def _check_tag(where: str, name: str, node: yaml.Node) -> None:
    if node.tag in _PLAIN:
        return
    if node.tag in _IMPLICIT:
        raise ConfigError(
            f"{where}:{name} {_short(node.value)} reads as {_IMPLICIT[node.tag]}; put it in quotes"
        )
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise ConfigError(
        f"{where}:{name} the tag {tag} is refused: files hold plain values and never run code; "
        "write the value itself"
    )


def _nodes(root: yaml.Node) -> Iterator[tuple[yaml.Node, str, tuple[yaml.Node, ...]]]:
    """(node, dotted key, nodes around it) of all nodes, aliases written out; keys are not nodes."""
    stack: list[tuple[yaml.Node, str, tuple[yaml.Node, ...]]] = [(root, "", ())]
    while stack:
        node, key, above = stack.pop()
        yield node, key, above
        inside = (*above, node)
        if isinstance(node, yaml.MappingNode):
            for part, value in reversed(node.value):
                stack.append((value, f"{key}.{part.value}" if key else part.value, inside))
        elif isinstance(node, yaml.SequenceNode):
            stack += [(value, key, inside) for value in reversed(node.value)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
