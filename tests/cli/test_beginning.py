"""``detnas search`` given twice, at the same time, for one folder."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from detnas_d2.cli import beginning
from detnas_d2.cli.main import main
from detnas_d2.recipe import decide
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.locks import LOCK_FILE, exclusive
from tests.recipe.values import record_of


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "measure", lambda *_: pytest.fail("measured"))


def test_while_one_decides_the_other_is_refused(
    images: Path, tmp_path: Path, unmeasured: None
) -> None:
    output = tmp_path / "out"
    with exclusive(str(output)), pytest.raises(InputError, match="out is in use: process"):
        main(["search", "--data", str(images), "--output", str(output)])
    assert os.listdir(output) == [LOCK_FILE]
    beginning.check_empty(str(output))


def test_what_was_decided_meanwhile_holds(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unmeasured: None
) -> None:
    asked = {"data": str(images), "like": ""}

    @contextlib.contextmanager
    def late(folder: str) -> Iterator[None]:
        record_of(Path(folder), asked=asked)
        yield

    monkeypatch.setattr(beginning, "exclusive", late)
    args = argparse.Namespace(jobs="", num_gpus=1, export="")
    output = str(tmp_path / "out")
    assert beginning.begin(asked, output, args, 0.0).settings.output == output
    with pytest.raises(InputError, match="begun with other options"):
        beginning.begin({**asked, "seed": 1}, output, args, 0.0)
