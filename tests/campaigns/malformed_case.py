"""Cases of the campaign of malformed input: what is put where in a tiny pipeline."""

from __future__ import annotations

from typing import Any, NamedTuple

MARK = "/tmp/detnas_d2_malformed_EXECUTED"
"""The file that the code in hostile input makes."""


class Case(NamedTuple):
    """``change`` has "stage" (S, Q, R: supernet, search, searched; H, G, T: of Hit-Detector) with
    "opts", "text" or "edit", or "pipeline" and "cli". One of ``words`` must be told.
    """

    title: str
    change: dict[str, Any]
    words: tuple[str, ...]


CASES: list[Case] = []


def add(title: str, change: dict[str, Any], *words: str) -> None:
    CASES.append(Case(title, change, words))


def _opt(stage: str, key: str, value: Any, *words: str) -> None:
    shown = f"{stage} {key} = {str(value)[:40]!r}"
    told = (key.split(".")[-1], str(value), str(value).strip("()[],'\""), *words)
    add(shown, {"stage": stage, "opts": [key, value]}, *told)


def S(key: str, value: Any, *words: str) -> None:
    """A value in the stage of the supernet."""
    _opt("S", key, value, *words)


def Q(key: str, value: Any, *words: str) -> None:
    """A value in the search."""
    _opt("Q", key, value, *words)


def R(key: str, value: Any, *words: str) -> None:
    """A value in the last stage."""
    _opt("R", key, value, *words)


def H(key: str, value: Any, *words: str) -> None:
    """A value in Hit-Detector's search, or its screening where it is one of that."""
    _opt("H", key, value, *words)


def cfgtext(title: str, text: str | bytes, *words: str) -> None:
    """Another text of the supernet's config file."""
    add(f"config: {title}", {"stage": "S", "text": text}, *words)


def pipe(title: str, text: str | bytes | None, *words: str, cli: tuple[str, ...] = ()) -> None:
    """Another text of the pipeline file, or other words behind it."""
    add(f"pipeline: {title}", {"pipeline": text, "cli": list(cli)}, *words)


def edit(title: str, stage: str, changes: dict[str, Any], *words: str) -> None:
    """Other keys of a stage."""
    add(f"stage {stage}: {title}", {"stage": stage, "edit": changes}, *words)
