"""The manifest of an output folder, and the report after every stage."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from detnas_d2.pipeline import run as run_module
from detnas_d2.pipeline import shown
from detnas_d2.pipeline.experiment import read_experiment
from detnas_d2.pipeline.manifest import MANIFEST_FILE, write_manifest
from detnas_d2.report import try_report
from detnas_d2.report.found import read_folder
from tests.engine.tiny_runs import Configs, arguments, write_config


def write_pipeline(folder: Path, configs: Configs, *lines: str) -> str:
    write_config(configs("faster", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()), folder / "train.yaml")
    network = configs("faster", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    network.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    write_config(network, folder / "net.yaml")
    text = "\n".join(
        [
            f"OUTPUT_DIR: {folder / 'out'}",
            "STAGES:",
            "  - {NAME: supernet, KIND: train, CONFIG: train.yaml}",
            "  - {NAME: net, KIND: train, CONFIG: net.yaml, PATH: uniform 3x3}",
            "  - {NAME: any, KIND: train, CONFIG: net.yaml, PATH: random 1, FOLDER: below/any}",
            *lines,
        ]
    )
    (folder / "pipeline.yaml").write_text(text + "\n")
    return str(folder / "pipeline.yaml")


def test_a_manifest_tells_stages_rows_and_seeds(configs: Configs, tmp_path: Path) -> None:
    file = write_pipeline(tmp_path, configs, "TABLE: [net, any]", "SEEDS: [0, 3]")
    experiment = read_experiment(file)
    for number in range(3):
        for folder, pipelines in experiment.folders.items():
            write_manifest(folder, pipelines, 1 + number)
    for folder, pipelines in experiment.folders.items():  # planned anew, not started
        write_manifest(folder, pipelines, None)
    found = read_folder_begun(tmp_path / "out", "seed3/below/any")
    assert [stage.title for stage in found.stages] == [
        f"seed {seed}: {name}" for seed in (0, 3) for name in ("supernet", "net", "any")
    ]
    assert [stage.origin for stage in found.stages[:3]] == ["given", "given", "random"]
    assert found.stages[-1].folder == str(tmp_path / "out" / "seed3" / "below" / "any")
    assert found.table == ("net", "any") and found.compare == ("net",)
    assert found.pipeline == file and [start["processes"] for start in found.starts] == [1, 2, 3]
    last = found.starts[-1]
    assert last["versions"]["PyTorch"] and last["machine"]["cores"] and last["command"]


def read_folder_begun(folder: Path, stage: str):
    (folder / stage).mkdir(parents=True)
    (folder / stage / "config.yaml").write_text("")
    return read_folder(str(folder))


def test_pipelines_of_a_file_have_folders_of_their_own(configs: Configs, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_pipeline(tmp_path / "one", configs)
    (tmp_path / "all.yaml").write_text("SEEDS: [1, 2]\nPIPELINES: {a: one/pipeline.yaml}\n")
    folders = read_experiment(str(tmp_path / "all.yaml"), ("OUTPUT_DIR", str(tmp_path))).folders
    assert list(folders) == [str(tmp_path / f"seed{seed}" / "a") for seed in (1, 2)]
    for folder, pipelines in folders.items():
        write_manifest(folder, pipelines, 1)
    told = json.loads((tmp_path / "seed2" / "a" / MANIFEST_FILE).read_text())
    assert told["runs"] == [{"seed": 2, "folder": "."}]


def test_the_report_comes_after_every_stage_and_never_ends_a_pipeline(
    configs: Configs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[tuple[str, int]] = []
    ran: list[str] = []

    def run_stage(pipeline, stage, args, shown) -> None:
        ran.append(stage.name)
        if stage.name == "any":
            raise RuntimeError("out of luck")

    monkeypatch.setattr(shown, "run_stage", run_stage)
    args = arguments(write_pipeline(tmp_path, configs))
    args.verbose = True  # warnings go where logging sends them
    with pytest.raises(RuntimeError, match="out of luck"):
        run_module.run_pipeline(args, after_stage=lambda folder: told.append((folder, len(ran))))
    assert told == [(str(tmp_path / "out"), number) for number in (1, 2, 3)]
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="out of luck"):
        run_module.run_pipeline(args, after_stage=try_report)
    assert sum("no report could be written" in text for text in caplog.messages) == 3
