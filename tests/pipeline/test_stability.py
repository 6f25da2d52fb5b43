"""Calibration stability and the command that prints it."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest
import torch

from detnas_d2.engine import prepare, search
from detnas_d2.evaluation.recalibration import BNStatistics, Moments
from detnas_d2.pipeline.stability import calibration_stability, statistics_distance
from detnas_d2.search import History
from tests.engine.tiny_runs import Configs, arguments, write_config

ARGS = arguments()
COMMAND = str(Path(__file__).parents[2] / "projects" / "DetNAS" / "diagnose.py")


def statistics(**channels: list[tuple[float, float]]) -> BNStatistics:
    """Name -> (mean, variance) of each channel, of 1001 samples."""
    moments = {}
    for name, values in channels.items():
        mean, variance = torch.tensor(values, dtype=torch.float64).T
        moments[name] = Moments(1001, mean, 1000 * variance)
    return BNStatistics(moments)


def test_statistics_distance() -> None:
    reference = statistics(a=[(0.0, 4.0), (1.0, 1.0)], b=[(5.0, 9.0)])
    other = statistics(a=[(1.0, 4.0), (1.0, math.e**2)], b=[(2.0, 9.0)])
    # Shifts of 1/2, 0 and 1 deviations; log ratios of 0, 1 and 0.
    mean, deviation = statistics_distance(other, reference)
    assert mean == pytest.approx(0.5, abs=1e-4)
    assert deviation == pytest.approx(1 / 3, abs=1e-4)
    assert statistics_distance(reference, reference) == (0.0, 0.0)
    with pytest.raises(ValueError, match="same path"):
        statistics_distance(statistics(a=[(0.0, 1.0)]), reference)


def test_larger_calibration_sets_come_closer(configs: Configs) -> None:
    cfg = configs.search()
    prepare(cfg, ARGS)
    rows = calibration_stability(cfg, sizes=[8, 2, 4], num_paths=3)
    assert [row["images"] for row in rows] == [2, 4, 8]
    assert all(len(row["fitness"]) == 3 for row in rows)
    small, middle, full = rows
    assert small["mean_distance"] > middle["mean_distance"] > full["mean_distance"] == 0
    assert small["std_distance"] > middle["std_distance"] > full["std_distance"] == 0
    assert full["largest_change"] == 0
    values = set(full["fitness"].values())
    assert len(values) == 1 or full["kendall"] == pytest.approx(1)
    assert calibration_stability(cfg, sizes=[2, 8], num_paths=3)[0] == small


@pytest.mark.parametrize(("sizes", "paths"), [([4, 4], 3), ([2, 4], 1)])
def test_too_little_to_compare(configs: Configs, sizes: list[int], paths: int) -> None:
    with pytest.raises(ValueError, match="at least two"):
        calibration_stability(configs(), sizes=sizes, num_paths=paths)


def test_commands(configs: Configs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = configs.search("SEARCH.GENERATIONS", 2)
    config = write_config(cfg, tmp_path / "search.yaml")
    prepare(cfg, ARGS)
    search(cfg, resume=False)
    diagnose = runpy.run_path(COMMAND)["main"]
    json_file, plot = tmp_path / "out.json", tmp_path / "out.png"
    files = ["--json", str(json_file), "--plot", str(plot)]

    diagnose(["choices", cfg.OUTPUT_DIR, *files])
    frequencies = json.loads(json_file.read_text())
    assert list(frequencies) == ["1", "2"]
    assert all(sum(layer.values()) == pytest.approx(1) for layer in frequencies["1"])
    assert plot.read_bytes().startswith(b"\x89PNG")

    capsys.readouterr()
    diagnose(["history", cfg.OUTPUT_DIR, "--cost", "params", *files])
    told = json.loads(json_file.read_text())
    best = History.read(cfg.OUTPUT_DIR).best()[0]
    assert [len(values) for values in told["generations"].values()] == [4, 4]
    assert told["front"][-1] == {"params": best.params, "fitness": best.fitness, "path": best.path}
    assert best.path in capsys.readouterr().out

    capsys.readouterr()
    arguments = ["--config-file", config, "--sizes", "2", "4", "--paths", "2", *files]
    diagnose(["calibration", *arguments, "OUTPUT_DIR", str(tmp_path / "calibration")])
    assert [row["images"] for row in json.loads(json_file.read_text())] == [2, 4]
    assert "mean_distance" in capsys.readouterr().out
