"""Search spaces that a config declares (``MODEL.DETNAS.SPACES``), and the space that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.search_space.operations import OperationError
from detnas_d2.search_space.shuffle_ops import check_op, shuffle_op
from detnas_d2.search_space.space import SKIP, SPACES, PathError, SearchSpace
from detnas_d2.utils.errors import InputError

_KEY = "MODEL.DETNAS.SPACES"
_SPACE_KEYS = ("NAME", "STEM", "LAST", "STAGES", "OPS")
_STAGE_KEYS = ("CHANNELS", "DEPTH", "OPS")


def spaces_of(cfg: CfgNode) -> dict[str, SearchSpace]:
    """All spaces that ``cfg`` knows by name: those built in, and those that it declares.

    Raises:
        InputError: a malformed declaration, or a name that is taken.
    """
    spaces = dict(SPACES)
    for position, entry in enumerate(cfg.MODEL.DETNAS.SPACES):
        space = parse_space(entry, position)
        if space.name in spaces:
            what = "is built in" if space.name in SPACES else "is declared before"
            raise InputError(f"{_KEY}[{position}].NAME: {space.name!r} {what}; expected a new name")
        spaces[space.name] = space
    return spaces


def space_of(cfg: CfgNode) -> SearchSpace:
    """The search space ``MODEL.DETNAS.SPACE``.

    Raises:
        PathError: no space of that name.
        InputError: see :func:`spaces_of`.
    """
    spaces, name = spaces_of(cfg), cfg.MODEL.DETNAS.SPACE
    if name not in spaces:
        raise PathError(f"MODEL.DETNAS.SPACE is {name!r}: expected one of {', '.join(spaces)}")
    return spaces[name]


def parse_space(entry: Any, position: int) -> SearchSpace:
    """Reads one entry of ``MODEL.DETNAS.SPACES``; the config key's comment has its form.

    Raises:
        InputError: naming the key that is unknown, missing or malformed.
    """
    place = f"{_KEY}[{position}]"
    _check_keys(entry, place, _SPACE_KEYS, optional=("OPS",))
    name = entry["NAME"]
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{place}.NAME is {name!r}: expected a text")
    place = f"{place} ({name!r})"
    stages = entry["STAGES"]
    if not isinstance(stages, (list, tuple)) or not stages:
        raise InputError(f"{place}.STAGES is {stages!r}: expected a list of stages, not empty")
    stem = _even(entry["STEM"], f"{place}.STEM")
    last = _positive(entry["LAST"], f"{place}.LAST")
    shared = _ops(entry["OPS"], f"{place}.OPS") if "OPS" in entry else ()
    channels, depths, ops = [stem], [], []
    for number, stage in enumerate(stages):
        where = f"{place}.STAGES[{number}]"
        _check_keys(stage, where, _STAGE_KEYS, optional=("OPS",))
        candidates = _ops(stage["OPS"], f"{where}.OPS") if "OPS" in stage else shared
        if not candidates:
            raise InputError(f"{where}: key OPS is missing, here or once in {place}")
        width = _even(stage["CHANNELS"], f"{where}.CHANNELS")
        if width <= channels[-1] and any(shuffle_op(op) is not None for op in candidates):
            raise InputError(
                f"{where}.CHANNELS is {width}: expected more than the {channels[-1]} before, which "
                "a shuffle block of stride 2 passes on"
            )
        channels.append(width)
        depths.append(_positive(stage["DEPTH"], f"{where}.DEPTH"))
        ops.append(candidates)
    return SearchSpace(name, stem, tuple(channels[1:]), tuple(depths), last, tuple(ops))


def declaration(space: SearchSpace) -> dict[str, Any]:
    """The entry of ``MODEL.DETNAS.SPACES`` that :func:`parse_space` reads as a space."""
    stages = [
        {"CHANNELS": channels, "DEPTH": depth, "OPS": list(ops)}
        for channels, depth, ops in zip(
            space.stage_channels, space.stage_depths, space.stage_ops, strict=True
        )
    ]
    return {
        "NAME": space.name,
        "STEM": space.stem_channels,
        "LAST": space.last_channels,
        "STAGES": stages,
    }


def scaled(space: SearchSpace, width: float, op: str) -> SearchSpace:
    """The space of one network: ``op`` in every layer, stages ``width`` times as wide.

    Channels are rounded to even numbers; the stem and the last convolution stay as they are.
    """
    channels = tuple(2 * max(1, round(width * wide / 2)) for wide in space.stage_channels)
    name = f"{space.name}_{op}_x{width:g}"
    return replace(space, name=name, stage_channels=channels, ops=(op,))


def _check_keys(
    value: Any, place: str, keys: tuple[str, ...], *, optional: tuple[str, ...]
) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{place} is {value!r}: expected a mapping of {', '.join(keys)}")
    for key in value:
        if key not in keys:
            raise InputError(f"{place}: unknown key {key!r}; expected {', '.join(keys)}")
    for key in keys:
        if key not in value and key not in optional:
            raise InputError(f"{place}: key {key} is missing; expected {', '.join(keys)}")


def _positive(value: Any, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{place} is {value!r}: expected an integer of 1 or more")
    return value


def _even(value: Any, place: str) -> int:
    number = _positive(value, place)
    if number % 2:
        raise InputError(f"{place} is {number}: expected an even number, as blocks halve channels")
    return number


def _ops(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{place} is {value!r}: expected a list of operations, not empty")
    for op in value:
        if not isinstance(op, str):
            raise InputError(f"{place}: {op!r}: expected the name of an operation")
        try:
            check_op(op)
        except OperationError as error:
            raise InputError(f"{place}: {error}") from None
    if len(set(value)) != len(value):
        raise InputError(f"{place} is {list(value)}: an operation is named twice")
    if set(value) == {SKIP}:
        raise InputError(
            f"{place} is {list(value)}: expected an operation besides {SKIP!r}, which layers of "
            "stride 2 cannot have"
        )
    return tuple(value)
