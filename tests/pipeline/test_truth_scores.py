"""Scores of the networks of a truth set: by supernets, untrained, and of short trainings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detnas_d2.data import register_datasets
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.evaluation.build import sequential_evaluator
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.pipeline import truth_run, truth_scores
from detnas_d2.pipeline.certificate import SHORT, UNTRAINED
from detnas_d2.pipeline.truth_scores import ScoreLog
from detnas_d2.pipeline.truth_training import Job, Outcome
from detnas_d2.search.truth import read_truth
from detnas_d2.search_space import get_space
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs
from tests.pipeline.test_truth import command, here, search_file  # noqa: F401

SMALL = "--networks", "6", "--band", "0", "--seeds", "2", "--force"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configs of the trainings, which are not done."""
    done: list[Any] = []

    def train(job: Job) -> Outcome:
        if job.measure:
            return Outcome({}, 1.0)
        done.append(job.configs[-1])
        path, seed = done[-1].MODEL.DETNAS.PATH, done[-1].SEED
        return Outcome({"bbox/AP": len(path) + 0.1 * (seed % 7)}, 1.0)

    monkeypatch.setattr(truth_run, "WorkerPool", here(train))
    return done


def test_supernets_score_all_networks_once(
    command: Callable[..., None],  # noqa: F811
    trained: list[Any],
    configs: Configs,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cfg = configs.search()
    first, second = cfg.MODEL.WEIGHTS, str(tmp_path / "second.pth")
    state = torch.load(first)
    state["model"] = {k: v * 1.5 if v.is_floating_point() else v for k, v in state["model"].items()}
    torch.save(state, second)
    command(*SMALL, "--supernet", first, "--supernet", second, "--record", "record.json")
    truth = read_truth("truth/truth.json")
    assert len(truth.networks) == 6 and len(trained) == 12
    assert all(n.others.keys() == {UNTRAINED, f"supernet {second}"} for n in truth.networks)
    register_datasets(cfg)
    alone = sequential_evaluator(EvaluationSettings.from_config(cfg), load_supernet(cfg))
    for network in truth.networks[:2]:
        path = get_space("detnas_tiny").path(network.path)
        assert network.supernet == pytest.approx(alone.evaluate(path).fitness, abs=1e-4)
    record = json.loads(Path("record.json").read_text())
    assert record["networks"] == 6 and record["seeds"] == 2
    report = Path("truth/report.md").read_text()
    assert "mean rank of the supernets" in report and Path("truth/report.svg").exists()

    # What is there is not computed again; nor is anything trained where the truth is given.
    monkeypatch.setattr(truth_scores, "load_supernet", None)
    monkeypatch.setattr(truth_scores, "relu_code_score", None)
    supernets = "--supernet", first, "--supernet", second
    command(*SMALL, *supernets)
    assert Path("truth/report.md").read_text() == report and len(trained) == 12
    Path("truth/truth.json").rename("given.json")
    Path("truth/truth.jsonl").unlink()
    command("--truth", "given.json", *supernets)
    assert Path("truth/report.md").read_text() == report and len(trained) == 12


def test_short_trainings_share_the_cost_of_the_supernet(
    command: Callable[..., None],  # noqa: F811
    trained: list[Any],
) -> None:
    command(*SMALL, "--short")
    short = trained[12:]
    # The supernet has 6 iterations and a network 2: half a training for each of six networks.
    assert [(cfg.SOLVER.MAX_ITER, cfg.SEED) for cfg in short] == [(1, 1000)] * 6
    assert [cfg.SOLVER.MAX_ITER for cfg in trained[:12]] == [2] * 12
    truth = read_truth("truth/truth.json")
    assert all(n.others[SHORT] == pytest.approx(len(n.path) + 0.6) for n in truth.networks)
    command(*SMALL, "--short", "--no-training")
    assert len(trained) == 18 and SHORT in Path("truth/report.md").read_text()


def test_report_without_training(
    command: Callable[..., None],  # noqa: F811
    trained: list[Any],
) -> None:
    with pytest.raises(InputError, match="truth: no training is finished, nothing to report"):
        command(*SMALL, "--no-training")
    with pytest.raises(InputError, match="--supernet gone.pth: no such file"):
        command(*SMALL, "--supernet", "gone.pth")
    assert not trained


def test_torn_and_damaged_scores(tmp_path: Path) -> None:
    path = get_space("detnas_tiny").first_path()
    log = ScoreLog(str(tmp_path))
    log.append("a", str(path), float("nan"))
    with open(log.file, "a") as file:
        file.write('{"by": "b"')
    again = ScoreLog(str(tmp_path))
    assert again.missing("a", [path]) == [] and again.of("a", [path]) == {}
    assert again.missing("b", [path]) == [path]
    with open(log.file, "a") as file:
        file.write("[]\n")
    with pytest.raises(InputError, match="scores.jsonl: a line is no score; delete the file"):
        ScoreLog(str(tmp_path))
