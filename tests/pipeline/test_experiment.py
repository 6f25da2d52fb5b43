"""Running several pipelines: what is started, what a failure holds up, what a killed run leaves."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from detnas_d2.engine import PathTrainer
from detnas_d2.pipeline import stage_run
from detnas_d2.pipeline.experiment import read_experiment
from detnas_d2.pipeline.run import list_runs, run_pipeline
from detnas_d2.pipeline.state import DONE, STOPPED
from detnas_d2.pipeline.status import stage_fingerprint, stage_state
from tests.engine.tiny_runs import Configs, arguments
from tests.pipeline.test_tables import write_table


def fail_once(monkeypatch: pytest.MonkeyPatch, failing: Path) -> list[str]:
    """Makes stages end at once, that in a folder with an error at first; the folders as begun."""
    started: list[str] = []

    def fake(args: argparse.Namespace) -> None:
        folder = args.pipeline.folder(args.stage.name)
        started.append(folder)
        if folder == os.path.normpath(failing) and started.count(folder) == 1:
            raise FloatingPointError("Loss became infinite or NaN at iteration=7!")
        cfg = args.pipeline.config_of(args.stage)
        done = {
            "fingerprint": stage_fingerprint(args.pipeline, args.stage),
            "results": {"bbox/AP": 30.0},
            "path": cfg.MODEL.DETNAS.PATH,
        }
        Path(folder, "done.json").write_text(json.dumps(done))
        torch.save({}, Path(folder, "model_final.pth"))

    monkeypatch.setattr(stage_run, "_run_stage", fake)
    return started


def test_failure_holds_up_only_what_starts_from_it(
    configs: Configs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_table(tmp_path, configs, SEEDS=[0])
    started = fail_once(monkeypatch, tmp_path / "runs" / "seed0" / "shared" / "base")
    assert not run_pipeline(arguments(file))
    lines = capsys.readouterr().out.splitlines()
    why = "FloatingPointError: Loss became infinite or NaN at iteration=7!"
    assert f"seed 0, one: base     failed: {why}" in lines
    assert "seed 0, one: large    not started" in lines
    assert "seed 0, two: small_2  done" in lines
    assert "7 runs: 1 failed, 4 not started, 2 done" in lines
    text = (tmp_path / "runs" / "table.md").read_text()
    assert text.startswith("Test table\n\n| network | top-1, paper |")
    first, started[:] = list(started), started[:1]
    assert run_pipeline(arguments(file))
    assert sorted(first[1:] + started[1:]) == sorted({*first, *started})
    started.clear()
    # Done with another config: neither run again nor taken for done.
    assert not run_pipeline(arguments(file, "SOLVER.BASE_LR", "0.5"))
    assert not started
    assert "7 runs: 7 outdated" in capsys.readouterr().out


def test_pipeline_with_tables_goes_on(
    configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with the first failure without them."""
    write_table(tmp_path, configs)
    file = tmp_path / "pipeline.yaml"
    table = {"COLUMNS": [{"NAME": "AP", "METRIC": "bbox/AP"}], "ROWS": [{"NAME": "a"}]}
    data = {**yaml.safe_load(file.read_text()), "TABLE": ["large"], "TABLES": [table]}
    runs = tmp_path / "runs"
    data["OUTPUT_DIR"] = str(runs)
    file.write_text(yaml.safe_dump(data))
    started = fail_once(monkeypatch, runs / ".." / "shared" / "base")
    assert not run_pipeline(arguments(str(file)))
    assert [Path(folder).name for folder in started] == ["base", "small_2"]
    text = "\n\n| network | AP |\n| --- | --- |\n| a | not built |\n"
    assert (runs / "table.md").read_text() == f"{file}{text}"
    assert run_pipeline(arguments(str(file)))
    head = "| network | bbox/AP | MACs (M) | params (M) |\n|---|---|---|---|\n| large | 30.00 |"
    found = (runs / "table.md").read_text()
    assert found.startswith(head) and found.endswith(text)
    del data["TABLES"]
    data["OUTPUT_DIR"] = str(tmp_path / "others" / "runs")
    file.write_text(yaml.safe_dump(data))
    started = fail_once(monkeypatch, tmp_path / "others" / "shared" / "base")
    with pytest.raises(FloatingPointError):
        run_pipeline(arguments(str(file)))
    assert len(started) == 1


def test_several_machines_are_refused(configs: Configs, tmp_path: Path) -> None:
    args = arguments(write_table(tmp_path, configs))
    args.num_machines = 2
    with pytest.raises(ValueError, match="--num-machines: several pipelines run on one machine"):
        run_pipeline(args)


def _run_until_killed(args: argparse.Namespace) -> None:
    run_step = PathTrainer.run_step

    def killed(self: PathTrainer) -> None:
        if self.iter == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        run_step(self)

    PathTrainer.run_step = killed
    run_pipeline(args)


def test_killed_run_is_told_and_resumed(configs: Configs, tmp_path: Path) -> None:
    columns = [{"NAME": "AP", "PIPELINE": "one", "METRIC": "bbox/AP"}]
    rows = [{"NAME": "large", "ROW": "large"}]
    pipelines = {"one": "pipeline.yaml"}
    content = {"SEEDS": [0], "PIPELINES": pipelines, "COLUMNS": columns, "ROWS": rows}
    file = write_table(tmp_path, configs, stages=2, **content)
    args = arguments(file)
    process = multiprocessing.get_context("fork").Process(target=_run_until_killed, args=(args,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    experiment = read_experiment(file)
    states = [stage_state(run.pipeline, run.stage) for run in experiment.runs()]
    assert states[0] == STOPPED and set(states[1:]) == {"not started"}
    assert list_runs(experiment).splitlines()[0] == "seed 0, one: base   stopped"
    folder = Path(experiment.runs()[0].folder)
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    assert run_pipeline(args)
    assert {stage_state(run.pipeline, run.stage) for run in experiment.runs()} == {DONE}
    assert "Starting training from iteration 2" in (folder / "log.txt").read_text()
