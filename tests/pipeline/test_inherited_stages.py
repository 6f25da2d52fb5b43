"""Stages that evaluate or fine-tune what a search found, with the supernet's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.engine.proposals import Proposals
from detnas_d2.pipeline import stage_run
from detnas_d2.pipeline.checks import check_stages
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.pipeline.state import DONE, OUTDATED, STOPPED
from detnas_d2.pipeline.status import stage_state
from detnas_d2.search import History
from tests.campaigns.tiny import detnas_pipeline
from tests.engine.tiny_runs import arguments

FOUND = {"CONFIG": "retrain.yaml", "WEIGHTS": "search", "PATH": "search"}
INHERITED = {"NAME": "inherited", "KIND": "evaluate", **FOUND}
TUNED = {
    "NAME": "tuned",
    "KIND": "train",
    **FOUND,
    "OPTS": ["SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 1e-9],
}

EQUAL = {
    "NAME": "equal",
    "KIND": "train",
    "CONFIG": "retrain.yaml",
    "PATH": "random",
    "LIKE": "search",
    "REPEAT": 4,
}


def compare_random_networks_of_equal_cost(file: str, best: Any) -> None:
    drawn = []
    for opts in ((), (), ("SEED", "8")):
        pipeline = read_pipeline(file, opts)
        stages = [pipeline.stage(f"equal_{number}") for number in range(1, 5)]
        assert all(pipeline.stage("search") in pipeline.sources_of(s) for s in stages)
        configs = [pipeline.config_of(stage) for stage in stages]
        drawn.append([cfg.MODEL.DETNAS.PATH for cfg in configs])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 4 and best.path not in drawn[0]
    proposals = Proposals.from_config(pipeline.config_of(pipeline.stage("search")))
    paths = map(proposals.space.path, drawn[0])
    macs = [proposals.costs.macs.total(path.choices) for path in paths]
    assert all(0.95 * best.macs <= cost <= 1.05 * best.macs for cost in macs)


def written(root: Path, *stages: dict[str, Any]) -> str:
    """A pipeline of a supernet, a search and ``stages``, which are the rows of its table."""
    file = detnas_pipeline(root, networks=0, generations=1, scoring_workers=0)
    return rewritten(file, *stages)


def rewritten(file: Path, *stages: dict[str, Any]) -> str:
    data = yaml.safe_load(file.read_text())
    data["STAGES"][2:] = stages
    data["TABLE"] = [stage["NAME"] for stage in stages]
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(file)


def test_inherited_and_tuned_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = written(tmp_path, INHERITED, TUNED, EQUAL), tmp_path / "runs"
    assert not run_pipeline(arguments(file, dry_run=True))
    rewritten(Path(file), INHERITED, TUNED)
    assert not (runs / "supernet").exists()
    assert run_pipeline(arguments(file))
    best = History.read(runs / "search").best()[0]
    done = json.loads((runs / "inherited" / "done.json").read_text())
    # retrain.yaml has the search's validation images and test-time settings.
    assert done["results"]["bbox/AP"] == pytest.approx(best.fitness, abs=1e-6)
    assert done["path"] == best.path and list(done["data"]) == ["shapes@search_val"]
    assert not list((runs / "inherited").glob("*.pth"))
    rows = json.loads((runs / "table.json").read_text())["rows"]
    assert [row["paths"] for row in rows.values()] == 2 * [[best.path]]
    compare_random_networks_of_equal_cost(rewritten(Path(file), INHERITED, TUNED, EQUAL), best)
    rewritten(Path(file), INHERITED, TUNED)
    weights = runs / "search" / "best_inherited.pth"
    inherited = read_checkpoint(str(weights))["model"]
    tuned = read_checkpoint(str(runs / "tuned" / "model_final.pth"))["model"]
    assert tuned.keys() == inherited.keys()
    for key, value in inherited.items():
        if key.endswith("weight"):  # after one step of a rate of 1e-9
            torch.testing.assert_close(tuned[key], value, atol=1e-6, rtol=0)

    # The file is a product of the search: without it the search is asked for it again, in seconds.
    weights.unlink()
    pipeline = read_pipeline(file)
    states = [stage_state(pipeline, stage) for stage in pipeline.stages]
    assert states == [DONE, STOPPED, DONE, DONE]
    assert run_pipeline(arguments(file))
    again = read_checkpoint(str(weights))["model"]
    assert all(torch.equal(again[key], value) for key, value in inherited.items())

    def fail(args: object) -> None:
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr(stage_run, "_run_stage", fail)
    assert run_pipeline(arguments(file))
    # An evaluation has no schedule that could be another one.
    stages = ({**INHERITED, "OPTS": ["SOLVER.BASE_LR", 0.5]}, {**TUNED, "OPTS": []})
    pipeline = read_pipeline(rewritten(Path(file), *stages))
    states = [stage_state(pipeline, stage) for stage in pipeline.stages]
    assert states == [DONE, DONE, DONE, OUTDATED]


def check(file: str) -> None:
    check_stages(read_pipeline(file), set())


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"WEIGHTS": "supernet"}, "WEIGHTS 'supernet' are a supernet's, whose BatchNorm"),
        ({"OPTS": ["MODEL.FPN.OUT_CHANNELS", 32]}, "WEIGHTS 'search': .*in part only"),
        ({"OPTS": ["DATASETS.TEST", "()"]}, "DATASETS.TEST is empty"),
        ({"OPTS": ["DATASETS.TEST", "('nothing',)"]}, "'nothing' is neither in"),
        (
            {"OPTS": ["MODEL.BACKBONE.NAME", "build_detnas_supernet_fpn_backbone"]},
            "PATH 'search', but .* is a supernet",
        ),
    ],
)
def test_mistakes_of_an_evaluation_are_found_first(
    stage: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = written(tmp_path, {**INHERITED, **stage})
    with pytest.raises(PipelineError, match=f"stage 'inherited': .*{message}"):
        check(file)


def test_files_are_evaluated_too(tmp_path: Path) -> None:
    weights = str(tmp_path / "weights.pth")
    stage = {**INHERITED, "PATH": "uniform 3x3", "WEIGHTS": weights}
    Path(weights).touch()
    file = written(tmp_path / "tiny", stage)
    cfg = read_pipeline(file).config_of(read_pipeline(file).known_stage("inherited"))
    cfg.MODEL.DEVICE = "cpu"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    check(file)
    cfg.MODEL.BACKBONE.NAME = "build_detnas_supernet_fpn_backbone"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    with pytest.raises(PipelineError, match="are a supernet's"):
        check(file)
