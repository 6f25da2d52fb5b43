"""A pipeline whose supernet did not learn stops, says so again, and goes on when it is told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from detnas_d2.engine.supernet_check import hook, standalone
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.status import stage_state
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, arguments, write_config


def test_a_supernet_at_chance_stops_the_pipeline(
    configs: Configs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = configs("faster", "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", ())
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.9  # nothing is found
    cfg.SUPERNET.CHECK.PATHS, cfg.SUPERNET.CHECK.CALIBRATION_IMAGES = 2, 2
    write_config(cfg, tmp_path / "train.yaml")
    stages = [
        {"NAME": "one", "KIND": "train", "CONFIG": "train.yaml"},
        {
            "NAME": "two",
            "KIND": "train",
            "CONFIG": "train.yaml",
            "OPTS": ["SUPERNET.CHECK.PATHS", 0],
        },
    ]
    file = str(tmp_path / "pipeline.yaml")
    text = yaml.safe_dump({"OUTPUT_DIR": str(tmp_path / "runs"), "STAGES": stages})
    Path(file).write_text(text)
    folder = tmp_path / "runs" / "one"
    with pytest.raises(InputError, match=f"{folder}: the supernet has not learned") as first:
        run_pipeline(arguments(file))
    assert (folder / "model_final.pth").exists() and not (folder / "done.json").exists()
    assert "one path alone 0.00 after 1 updates" in str(first.value)
    pipeline = read_pipeline(file)
    assert stage_state(pipeline, pipeline.stages[0]) == "failed"

    def computed(*args: Any) -> None:
        raise AssertionError("computed again")

    for module in (hook, standalone):
        monkeypatch.setattr(module, "score_paths", computed)
    with pytest.raises(InputError) as second:
        run_pipeline(arguments(file))
    assert str(second.value) == str(first.value)
    assert run_pipeline(arguments(file, "SUPERNET.CHECK.REQUIRED", "False"))
    done = json.loads((folder / "done.json").read_text())
    expected = {"chance": 0.0, "score_mean": 0.0, "score_min": 0.0, "score_max": 0.0}
    assert done["results"] == {
        f"supernet/{key}": value for key, value in {**expected, "standalone": 0.0}.items()
    }
    line = (
        "one: supernet bbox/AP 0.00 (0.00-0.00), mean and range of 2 fixed paths, chance 0.00, one "
        "path alone 0.00 after 1 updates, NOT above chance"
    )
    assert (tmp_path / "runs" / "table.md").read_text() == f"{line}\n"
    capsys.readouterr()
    # It stays done: what is checked does not alter what was trained.
    assert run_pipeline(arguments(file))
    assert f"\n{line}\n" in capsys.readouterr().out
