"""A few cases of the campaigns of bad input, so that they keep running."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import checkpoints, malformed
from tests.campaigns.malformed_case import CASES

MALFORMED = (
    "config: !!python/object/apply in the _BASE_",
    "config: _BASE_ cycle of two",
    "config: duplicate key",
    "stage R: FOLDER ../../escape",
    "stage R: NAME ../../evil",
    "pipeline: --machine-rank 3",
    "R MODEL.BACKBONE.NAME = 'build_detnas_supernet_fpn_backbone'",
    "H HIT_SEARCH.SCREENING.KEEP = '100'",
)
CHECKPOINTS = ("cut to a half", "code", "code in .pyth", "half of the neck", "module.")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    malformed.make_base(folder)
    return folder


@pytest.mark.parametrize("title", MALFORMED)
def test_malformed_input_is_named(title: str, base: Path, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.title == title)
    root = tmp_path / "cases"
    root.mkdir()
    kind, outcome = malformed.run_case(case, base, root)
    assert kind == "named", outcome.text


@pytest.mark.parametrize("title", CHECKPOINTS)
def test_bad_weights_are_named(title: str, base: Path, tmp_path: Path) -> None:
    cases = {t: (s, w, used) for used in (False, True) for t, s, w in _cases(used)}
    suffix, write, used = cases[title]
    state = checkpoints.supernet_state(base)
    outcome = checkpoints.run_case(write, suffix, "search", state, base, tmp_path)
    assert checkpoints.kind_of(outcome, used=used) == ("right" if used else "named"), outcome.text


def _cases(used: bool) -> list[tuple[str, str, checkpoints.Write]]:
    return checkpoints.USED if used else checkpoints.REFUSED
