"""Scores that another search has found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from detnas_d2.evaluation import Evaluation
from detnas_d2.search import History, HistoryError
from detnas_d2.search.known_scores import KnownScores, known_scores
from tests.helpers import candidate_record

FINGERPRINT = {
    "space": {"name": "toy", "depths": (1, 2)},
    "checkpoint_sha256": "abc",
    "searcher": {"strategy": "nsga2"},
    "limits": {"max_macs": 100},
    "latency_table_sha256": "",
    "data": {"scenes": "123"},
}


def search(folder: Path, **changed: Any) -> str:
    """A search of two candidates, of which one has failed."""
    history = History.open(folder, {**FINGERPRINT, **changed}, resume=False)
    history.append(
        candidate_record(0, fitness=0.1 + 0.2, metrics={"bbox/AP": 0.1 + 0.2, "s": None})
    )
    history.append(candidate_record(1, fitness=None, error="out of memory"))
    return str(folder)


def test_scores_of_searches_that_score_alike(tmp_path: Path) -> None:
    other = {"strategy": "random"}
    found = known_scores(
        [str(tmp_path / "none"), search(tmp_path / "a", searcher=other, limits={})], FINGERPRINT
    )
    assert list(found) == ["path 0"]  # a failure may not repeat
    assert found["path 0"].fitness == 0.1 + 0.2
    assert found["path 0"].metrics["bbox/AP"] == 0.1 + 0.2
    assert math.isnan(found["path 0"].metrics["s"]) and found["path 0"].seconds == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"checkpoint_sha256": "abd"},
        {"data": {"scenes": "124"}},
        {"space": {"name": "toy", "depths": [1, 3]}},
        {"resolutions": [96]},
    ],
)
def test_another_supernet_or_other_data_score_otherwise(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    assert known_scores([search(tmp_path / "a", **changed)], FINGERPRINT) == {}


def test_damaged_files(tmp_path: Path) -> None:
    folder = search(tmp_path / "a")
    lines = Path(folder, "history.jsonl")
    lines.write_text("{}\n" + lines.read_text())
    with pytest.raises(HistoryError, match=r"history.jsonl, line 1"):
        known_scores([folder], FINGERPRINT)
    Path(folder, "search.json").write_text("{")
    assert known_scores([folder], FINGERPRINT) == {}


def test_only_what_is_not_known_is_evaluated() -> None:
    calls = []

    class Counting:
        def evaluate_many(self, paths: Any) -> Any:
            calls.append(list(paths))
            for path in reversed(paths):
                yield path, Evaluation(float(path))

    evaluator = KnownScores(Counting(), {"2": Evaluation(20.0), "4": Evaluation(40.0)})
    found = [(path, outcome.fitness) for path, outcome in evaluator.evaluate_many([1, 2, 3, 4])]
    assert found == [(2, 20.0), (4, 40.0), (3, 3.0), (1, 1.0)]
    assert [path for path, _ in evaluator.evaluate_many([4, 2])] == [4, 2]
    assert calls == [[1, 3]]
