"""diagnose.py resolutions, from a history alone; scores of a supernet: tests/engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from detnas_d2.config.tools import load_config, short_yaml
from detnas_d2.programs.diagnose import main
from detnas_d2.search.history import History
from detnas_d2.search_space import SPACES
from detnas_d2.search_space.candidates import Candidates
from detnas_d2.utils.errors import InputError
from tests.helpers import candidate_record

TINY = SPACES["detnas_tiny"]
SIZES = (96, 128)
A, B = TINY.uniform_path("3x3"), TINY.uniform_path("7x7")
FITNESS = {A.at(96): 31.0, A.at(128): 33.5, B.at(96): 30.25, B.at(128): None}


def folder(
    path: Path,
    sizes: tuple[int, ...] = SIZES,
    wanted: Any = tuple(FITNESS),
    known: Mapping[Any, float | None] = FITNESS,
) -> str:
    """A search that has evaluated ``wanted``, with the fitness ``known``."""
    opts = ["SEARCH.RESOLUTIONS", list(sizes), "INPUT.MIN_SIZE_TEST", sizes[0] if sizes else 96]
    cfg = load_config("", [*opts, "MODEL.DETNAS.SPACE", "detnas_tiny"])
    path.mkdir()
    (path / "config.yaml").write_text(short_yaml(cfg), encoding="utf-8")
    history = History.open(path, {"any": "search"}, resume=False)
    candidates = Candidates(TINY, sizes)
    for index, found in enumerate(wanted):
        fitness = known[found]
        history.append(
            candidate_record(
                index,
                path=str(found),
                choices=candidates.genes(found),
                fitness=fitness,
                error=None if fitness is not None else "out of memory",
                macs=10 * found.resolution,
            )
        )
    return str(path)


def test_best_path_of_each_size_at_all_sizes(tmp_path: Path, capsys: Any) -> None:
    main(["resolutions", folder(tmp_path / "s"), "--json", str(tmp_path / "r.json")])
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["best", "at", "evaluated", "macs", "at", "96", "at", "128", "path"]
    assert first.split() == ["96", "2", "960", "31.000", "33.500", *str(A).split()]
    assert second.split() == ["128", "2", "1280", "31.000", "33.500", *str(A).split()]
    assert rest == []  # everything is known
    told = json.loads((tmp_path / "r.json").read_text())
    assert [row["fitness"] for row in told] == [{"96": 31.0, "128": 33.5}] * 2
    assert [row["path"] for row in told] == [str(A)] * 2


def test_what_was_not_evaluated_is_left_open(tmp_path: Path, capsys: Any) -> None:
    main(["resolutions", folder(tmp_path / "s", wanted=(B.at(96), A.at(128)))])
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:5] == ["96", "1", "960", "30.250", "-"]
    assert out.splitlines()[2].split()[:5] == ["128", "1", "1280", "-", "33.500"]
    assert out.endswith("-: not among the candidates of the search; --evaluate scores them\n")


def test_searches_without_an_answer(tmp_path: Path) -> None:
    for name, sizes, wanted, message in (
        ("plain", (), (), r"config.yaml: SEARCH.RESOLUTIONS is \[\]: .* images of one size"),
        ("empty", SIZES, (), "no candidate has a fitness yet"),
    ):
        with pytest.raises(InputError, match=message):
            main(["resolutions", folder(tmp_path / name, sizes, wanted)])
    with pytest.raises(InputError, match="no config.yaml; expected the output folder of a search"):
        main(["resolutions", str(tmp_path)])
