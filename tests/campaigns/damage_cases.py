"""Ways to damage the folder of a run, and how the run has to end when it is started again.

SAME: with the outcome of a run that nothing happened to. Otherwise it is refused with one line,
which holds the text.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.reference import SAME

Lines = list[bytes]


@dataclass(frozen=True)
class Place:
    """The folder of the pipeline."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / "runs" / name

    def undone(self, *stages: str) -> None:
        for stage in stages:
            (self / f"{stage}/done.json").unlink()

    def half_trained(self) -> None:
        """As if killed after iteration 6 of 8 of the supernet."""
        for stage in ("search", "searched"):
            shutil.rmtree(self / stage)
        self.undone("supernet")
        for name in ("model_final.pth", "model_0000007.pth"):
            (self / f"supernet/{name}").unlink()
        # Of the two checkpoints that are kept, the newest is gone; make one to go back to.
        shutil.copy(self / "supernet/model_0000005.pth", self / "supernet/model_0000003.pth")
        (self / "supernet/last_checkpoint").write_text("model_0000005.pth")

    def half_searched(self, edit: Callable[[Lines], Lines] = lambda lines: lines) -> None:
        """As if killed after 8 of 12 candidates, with their lines edited."""
        shutil.rmtree(self / "searched")
        self.undone("search")
        (self / "search/best.yaml").unlink()
        file = self / "search/history.jsonl"
        file.write_bytes(b"".join(edit(file.read_bytes().splitlines(keepends=True)[:8])))


def history(edit: Callable[[Lines], Lines]) -> Callable[[Place], None]:
    return lambda place: place.half_searched(edit)


def field(line: int, **values: Any) -> Callable[[Place], None]:
    """Changes fields of one line of the history."""

    def edit(lines: Lines) -> Lines:
        changed = json.dumps({**json.loads(lines[line]), **values}).encode() + b"\n"
        return [*lines[:line], changed, *lines[line + 1 :]]

    return history(edit)


def training(name: str, spoil: Callable[[Path], object]) -> Callable[[Place], None]:
    """Spoils a file of a supernet that is half trained."""

    def damage(place: Place) -> None:
        place.half_trained()
        spoil(place / f"supernet/{name}")

    return damage


def searching(name: str, spoil: Callable[[Path], object]) -> Callable[[Place], None]:
    """Spoils a file of the runs when the search is half done."""

    def damage(place: Place) -> None:
        place.half_searched()
        spoil(place / name)

    return damage


def done(name: str, spoil: Callable[[Path], object]) -> Callable[[Place], None]:
    """Spoils a file of a run that is done."""
    return lambda place: spoil(place / name)


def data(spoil: Callable[[Path], object]) -> Callable[[Place], None]:
    """Spoils the data when the search is half done."""

    def damage(place: Place) -> None:
        place.half_searched()
        spoil(place.root)

    return damage


def write(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(text)


def cut(share: float) -> Callable[[Path], object]:
    return lambda file: os.truncate(file, int(file.stat().st_size * share))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def without(key: str) -> Callable[[Path], object]:
    def spoil(file: Path) -> None:
        content = torch.load(file, weights_only=True)
        del content[key]
        torch.save(content, file)

    return spoil


def exchange_images(root: Path) -> None:
    for one, other in (("1.png", "3.png"), ("2.png", "4.png")):
        shutil.copy(root / "shapes" / other, root / "shapes" / one)


def exchange_labels(file: Path) -> None:
    file.write_text(file.read_text().replace('"category_id": 1', '"category_id": 2'))


def forget_times(root: Path) -> None:
    for file in root.rglob("*"):
        os.utime(file, (0, 0))


LINE = "line, or one before it, was changed"
CASES: dict[str, tuple[Callable[[Place], None], str]] = {
    "history: last line torn": (history(lambda t: [*t[:-1], t[-1][:-40]]), SAME),
    "history: no newline at the end": (history(lambda t: [*t[:-1], t[-1][:-1]]), SAME),
    "history: garbage at the end": (history(lambda t: [*t, b"garbage\n"]), SAME),
    "history: zeros at the end": (history(lambda t: [*t, b"\0" * 300]), SAME),
    "history: CRLF": (history(lambda t: [x.replace(b"\n", b"\r\n") for x in t]), SAME),
    "history: first line torn": (history(lambda t: [t[0][:50] + b"\n", *t[1:]]), "line 1: "),
    "history: empty line": (history(lambda t: [*t[:2], b"\n", *t[2:]]), "line 3: "),
    "history: a line twice": (history(lambda t: [*t, t[3]]), LINE),
    "history: a line missing": (history(lambda t: [*t[:3], *t[4:]]), LINE),
    "history: lines exchanged": (history(lambda t: [t[1], t[0], *t[2:]]), LINE),
    "history: fitness edited": (field(0, fitness=99.0), LINE),
    "history: last fitness edited": (field(7, fitness=0.0001), LINE),
    "history: cost edited": (field(2, macs=5), LINE),
    "history: fitness NaN": (field(2, fitness=float("nan")), "line 3: NaN is not allowed"),
    "history: fitness a text": (field(2, fitness="high"), "line 3: key 'fitness'"),
    "history: foreign field": (field(2, note="mine"), "unknown keys ['note']"),
    "history: deleted": (searching("search/history.jsonl", Path.unlink), SAME),
    "history: emptied after the search": (done("search/history.jsonl", write("")), SAME),
    "header: deleted": (searching("search/search.json", Path.unlink), "cannot tell what it"),
    "header: torn": (searching("search/search.json", cut(0.5)), "not the header of a search"),
    "generations: garbage": (searching("search/generations.json", write("x")), SAME),
    "best.yaml deleted": (done("search/best.yaml", Path.unlink), SAME),
    "image cache: garbage": (searching("search/images.cache", write("x" * 99)), SAME),
    "image cache: a folder": (searching("search/images.cache", folder), SAME),
    "done.json empty": (done("supernet/done.json", write("")), SAME),
    "done.json torn": (done("supernet/done.json", cut(0.6)), SAME),
    "done.json a list": (done("searched/done.json", write("[1]")), SAME),
    "lock torn": (training("running.lock", cut(0.5)), SAME),
    "lock a list": (training("running.lock", write("[1]")), SAME),
    "lock deleted": (training("running.lock", Path.unlink), SAME),
    "lock a folder": (training("running.lock", folder), "running.lock: Is a directory"),
    "failed.json garbage": (training("failed.json", write("x")), SAME),
    "metrics.json garbage": (training("metrics.json", write("x")), SAME),
    "leftover of a write": (training(".partial-1.pth", write("half")), SAME),
    "checkpoint cut": (training("model_0000005.pth", cut(0.5)), SAME),
    "checkpoint empty": (training("model_0000005.pth", write("")), SAME),
    "checkpoint: bit flipped": (training("model_0000005.pth", flip), SAME),
    "checkpoint deleted": (training("model_0000005.pth", Path.unlink), SAME),
    "last_checkpoint empty": (training("last_checkpoint", write("")), SAME),
    "last_checkpoint wrong": (training("last_checkpoint", write("model_0009999.pth")), SAME),
    "last_checkpoint elsewhere": (training("last_checkpoint", write("../../x.pth")), SAME),
    "last_checkpoint deleted": (training("last_checkpoint", Path.unlink), SAME),
    "supernet cut": (searching("supernet/model_final.pth", cut(0.5)), SAME),
    "supernet deleted": (searching("supernet/model_final.pth", Path.unlink), SAME),
    "supernet: bit flipped": (searching("supernet/model_final.pth", flip), "checkpoint_sha256"),
    "detector deleted": (done("searched/model_final.pth", Path.unlink), SAME),
    "labels exchanged": (data(lambda r: exchange_labels(r / "shapes.json")), "annotations"),
    "images exchanged": (data(exchange_images), "images"),
    "times of all files reset": (data(forget_times), SAME),
    "derived data deleted": (data(lambda r: shutil.rmtree(r / "cache")), SAME),
}
