"""Stages that are ended because they would take too long, and go on with another length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from detnas_d2.engine.keeping_time import Allowance, Expected, Late
from detnas_d2.pipeline import adoption
from detnas_d2.pipeline.adoption import adopt, is_of_this_config, start_over
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.planning import Planner
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.pipeline.state import running
from detnas_d2.pipeline.status import stage_state
from detnas_d2.utils.locks import FolderBusy
from tests.engine.tiny_runs import Configs, arguments, write_config


class Shortens(Planner):
    """Gives a stage no time at first, and fewer iterations when it is late."""

    def __init__(self, file: str, *, adopts: bool = True) -> None:
        self.file, self.adopts = file, adopts
        self.lates: list[tuple[str, Late]] = []
        self.ends: list[str] = []

    def allowance(self, stage: str) -> Allowance | None:
        return None if self.lates else Allowance(Expected(0.0, 1e-9, 0.0))

    def late(self, stage: str, late: Late) -> None:
        self.lates.append((stage, late))
        config = Path(self.file).with_name("train.yaml")
        tree = yaml.safe_load(config.read_text())
        tree["SOLVER"]["MAX_ITER"] = 7
        config.write_text(yaml.safe_dump(tree))
        pipeline_file = Path(self.file)
        tree = yaml.safe_load(pipeline_file.read_text())
        tree["STAGES"][0]["ROW"] = "shorter"
        pipeline_file.write_text(yaml.safe_dump(tree))
        if self.adopts:
            pipeline = read_pipeline(self.file)
            adopt(pipeline, pipeline.known_stage(stage))

    def done(self, stage: str) -> bool:
        self.ends.append(stage)
        return False


@pytest.fixture
def file(configs: Configs, tmp_path: Path) -> str:
    """A pipeline of a supernet of 12 iterations."""
    cfg = configs("faster", "SOLVER.MAX_ITER", 12, "SOLVER.STEPS", (), "SUPERNET.CHECK.PATHS", 0)
    write_config(cfg, tmp_path / "train.yaml")
    stages = [{"NAME": "base", "KIND": "train", "CONFIG": "train.yaml"}]
    content = {"OUTPUT_DIR": str(tmp_path / "runs"), "STAGES": stages}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "pipeline.yaml")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_late_stage_goes_on_from_its_checkpoint(
    processes: int, file: str, tmp_path: Path
) -> None:
    planner, args = Shortens(file), arguments(file)
    args.num_gpus = processes
    assert run_pipeline(args, planner=planner)
    ((stage, late),) = planner.lates
    assert (stage, late.done) == ("base", 4) and late.slowness > 1
    assert planner.ends == ["base"]
    folder = tmp_path / "runs" / "base"
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    log = (folder / "log.txt").read_text()
    assert "Starting training from iteration 4" in log and "ended after 4" in log
    assert "Exception" not in log and not (folder / "late.json").exists()
    assert not (folder / "failed.json").exists()
    lines = (folder / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] == 6
    manifest = json.loads((tmp_path / "runs" / "pipeline.json").read_text())
    assert manifest["stages"][0]["row"] == "shorter" and len(manifest["starts"]) == 1


class Drops(Planner):
    """Leaves out what comes after a stage that has ended."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def done(self, stage: str) -> bool:
        tree = yaml.safe_load(self.file.read_text())
        del tree["STAGES"][1:]
        self.file.write_text(yaml.safe_dump(tree))
        return True


def test_what_comes_after_a_stage_knows_the_plan_from_then_on(file: str, tmp_path: Path) -> None:
    tree = yaml.safe_load(Path(file).read_text())
    tree["STAGES"].append({**tree["STAGES"][0], "NAME": "more"})
    Path(file).write_text(yaml.safe_dump(tree))
    told: list[list[str]] = []

    def after_stage(folder: str) -> None:
        manifest = json.loads((Path(folder) / "pipeline.json").read_text())
        told.append([stage["name"] for stage in manifest["stages"]])

    assert run_pipeline(arguments(file), planner=Drops(file), after_stage=after_stage)
    assert told == [["base"]] and not (tmp_path / "runs" / "more").exists()


def test_another_length_without_adoption_is_another_config(file: str) -> None:
    with pytest.raises(PipelineError, match="SOLVER.MAX_ITER: 12 -> 7"):
        run_pipeline(arguments(file), planner=Shortens(file, adopts=False))
    pipeline = read_pipeline(file)
    base = pipeline.known_stage("base")
    assert stage_state(pipeline, base) == "outdated" and not is_of_this_config(pipeline, base)
    adopt(pipeline, base)
    assert stage_state(pipeline, base) == "stopped" and is_of_this_config(pipeline, base)
    assert run_pipeline(arguments(file))


def test_starting_over_removes_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "model_0000003.pth").write_text("weights")
    with running(str(folder), "mark"), pytest.raises(FolderBusy):
        start_over(str(folder))
    assert (folder / "model_0000003.pth").exists()

    def killed(*_: object, **__: object) -> None:
        if folder.exists() and not list(tmp_path.glob("*.removed")):
            return  # the first call, which finds nothing
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(adoption.shutil, "rmtree", killed)
        start_over(str(folder))
    assert not folder.exists()
    for _ in range(2):
        start_over(str(folder))
        assert list(tmp_path.iterdir()) == []
