"""Every door to training tells relaxed models from plain ones."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from detnas_d2.engine import Trainer, train_model
from detnas_d2.engine import prepare as prepare_run
from detnas_d2.utils.errors import InputError
from tests.engine.hit_runs import scene_config
from tests.engine.tiny_runs import write_config

PROJECTS = Path(__file__).parents[2] / "projects"
PRE_TRAINING = ("HIT_SEARCH.ARCH_START_ITER", -1, "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0)


def train_net(monkeypatch: pytest.MonkeyPatch, project: str, file: str, *opts: str) -> None:
    """Runs a project's train_net.py in this process."""
    # Detectron2's report of the environment takes seconds.
    monkeypatch.setitem(prepare_run.__globals__, "default_setup", lambda cfg, args: None)
    program = str(PROJECTS / project / "train_net.py")
    monkeypatch.setattr(sys, "argv", [program, "--config-file", file, *opts])
    torch.manual_seed(0)
    runpy.run_path(program)["main"]()


@pytest.mark.parametrize("project", ["DetNAS", "HitDetector"])
def test_a_relaxed_network_is_pre_trained_by_both_programs(
    project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = scene_config(tmp_path, "search.yaml", "out", *PRE_TRAINING)
    file = write_config(cfg, tmp_path / "relaxed.yaml")
    with pytest.raises(InputError, match="ARCH_START_ITER is 0: a training expects -1"):
        train_net(monkeypatch, project, file, "HIT_SEARCH.ARCH_START_ITER", "0")
    assert not list(tmp_path.glob("out/*.pth"))
    train_net(monkeypatch, project, file)
    state = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    alphas = [value for name, value in state.items() if name.endswith("alpha")]
    assert len(alphas) == 3 and not any(alpha.any() for alpha in alphas)
    weights = ("MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth"))
    with pytest.raises(InputError, match="holds all candidates at once"):
        train_net(monkeypatch, project, file, "--eval-only", *weights)


def test_plain_trainers_refuse_a_relaxed_network(tmp_path: Path) -> None:
    cfg = scene_config(tmp_path, "search.yaml", "out", *PRE_TRAINING)
    wrong = "backbone and neck and head of the model: relaxed"
    with pytest.raises(InputError, match=wrong):
        Trainer(cfg)
    model = Trainer.build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match=wrong):
        train_model(model, optimizer, lambda start: [], max_iter=1, output_dir=str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()
