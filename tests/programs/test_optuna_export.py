"""diagnose.py optuna: a study that says what the history does."""

from __future__ import annotations

import builtins
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from detnas_d2.programs.diagnose import main
from detnas_d2.programs.optuna_export import export_history, parameter_names
from detnas_d2.search.history import History
from detnas_d2.search_space import get_space
from detnas_d2.search_space.hit_network import get_hit_network
from detnas_d2.search_space.hit_space import HitSpace
from detnas_d2.utils.errors import InputError
from tests.helpers import candidate_record, detector_config

SPACE = get_space("detnas_tiny")
CHOICES = [(0, 0, 0, 0, 0), (2, 1, 3, 2, 1), (1, 1, 1, 1, 1), (3, 3, 3, 3, 3)]
FITNESS = [1.5, 3.25, None, 2.0]


def record(index: int):
    failed = FITNESS[index] is None
    path = SPACE.path(CHOICES[index])
    return candidate_record(
        index,
        path=str(path),
        choices=path.choices,
        fitness=FITNESS[index],
        error="RuntimeError: out of memory" if failed else None,
        macs=1000 + index,
        metrics={} if failed else {"bbox/AP50": 9.0, "bbox/APl": None, "bbox/AP-cat": 7.0},
        seconds={"recalibrate": 2.0, "infer": 3.0},
        finished="2026-01-02T03:04:05+00:00",
    )


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """The folder of a search with three candidates."""
    folder = tmp_path / "run" / "search"
    history = History.open(folder, {"seed": 1}, resume=False)
    for index in range(3):
        history.append(record(index))
    (folder / "config.yaml").write_text(detector_config().dump(), encoding="utf-8")
    return folder


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="the export needs Optuna")


def test_candidates_become_trials(optuna, search: Path, storage: str, capsys) -> None:
    main(["optuna", str(search), "--storage", storage])
    assert "study 'run/search' has 3 candidates, 3 of them new" in capsys.readouterr().out
    study = optuna.load_study(study_name="run/search", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    states = optuna.trial.TrialState
    assert [t.state for t in study.trials] == [states.COMPLETE, states.COMPLETE, states.FAIL]
    best = study.best_trial
    assert best.number == 1 and best.value == 3.25
    assert list(best.params.values()) == list(SPACE.path(CHOICES[1]).ops)
    assert set(best.params) == set(parameter_names(SPACE))
    choices = best.distributions["stage 3, layer 02"].choices
    assert choices == ("3x3", "5x5", "7x7", "xception")
    assert best.user_attrs["macs"] == 1001 and best.user_attrs["bbox/AP50"] == 9.0
    assert not {"bbox/APl", "bbox/AP-cat", "latency_ms"} & set(best.user_attrs)
    failed = study.trials[2]
    assert failed.value is None and failed.user_attrs["error"] == "RuntimeError: out of memory"
    done = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).astimezone().replace(tzinfo=None)
    assert best.datetime_complete == done
    assert best.datetime_complete - best.datetime_start == timedelta(seconds=5)


def test_again_adds_what_is_new(optuna, search: Path, storage: str) -> None:
    assert export_history(str(search), storage, "s") == (3, 3)
    assert export_history(str(search), storage, "s") == (0, 3)
    History.open(search, {"seed": 1}, resume=True).append(record(3))
    assert export_history(str(search), storage, "s") == (1, 4)
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert [t.user_attrs["index"] for t in trials] == [0, 1, 2, 3]


def test_study_of_another_search_is_refused(optuna, search: Path, storage: str) -> None:
    export_history(str(search), storage, "s")
    (search / "search.json").write_text('{"version": 2, "fingerprint": {"seed": 2}}')
    with pytest.raises(InputError, match="'s' of sqlite.* is of another search; choose another"):
        export_history(str(search), storage, "s")
    study = optuna.create_study(study_name="own", storage=storage)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(InputError, match="'own' of sqlite.* is of another search"):
        export_history(str(search), storage, "own")


@pytest.mark.parametrize("url", ["sqlite:////no/such/folder/x.db", "foo://x", "mysql://x/y"])
def test_storage_that_cannot_be_used(optuna, search: Path, url: str) -> None:
    with pytest.raises(InputError, match=f"--storage {url}: ") as caught:
        export_history(str(search), url, "s")
    assert "\n" not in str(caught.value)


def test_what_is_no_search(optuna, search: Path, storage: str) -> None:
    with pytest.raises(InputError, match="'study.db': expected a URL, e.g. sqlite:///study.db"):
        export_history(str(search), "study.db", "s")
    (search / "search.json").write_text("{}")
    with pytest.raises(InputError, match="search.json: not the header of a search"):
        export_history(str(search), storage, "s")
    (search / "search.json").unlink()
    with pytest.raises(InputError, match="search.json is missing: expected the output folder"):
        export_history(str(search), storage, "s")


def test_without_optuna(search: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="needs Optuna: pip install optuna"):
        export_history(str(search), storage, "s")


def test_parameters_of_a_hit_space() -> None:
    space = HitSpace.of_network(get_hit_network("hit"), [("neck", ("skip",)), ("head", ("skip",))])
    names = parameter_names(space)
    assert len(set(names)) == 12
    assert names[0] == "neck 00" and names[-1] == "head 03"
    names = parameter_names(get_space("detnas_large"))
    assert names == sorted(names) and len(set(names)) == 40
