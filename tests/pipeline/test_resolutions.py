"""A pipeline whose search has resolutions: every stage that takes its result has its images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.report import network_cost
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import Stage
from detnas_d2.report import write_report
from detnas_d2.search import History
from detnas_d2.search_space import SPACES
from tests.engine.tiny_runs import arguments
from tests.pipeline.test_inherited_stages import INHERITED, TUNED, written

TINY = SPACES["detnas_tiny"]
KEYS = ("SEARCH.RESOLUTIONS", "[32, 48, 64]")
ONE_STEP = {"KIND": "train", "CONFIG": "retrain.yaml", "OPTS": ["SOLVER.MAX_ITER", 1]}
EQUAL = {"NAME": "equal", **ONE_STEP, "PATH": "random", "LIKE": "search", "REPEAT": 2}
BY_HAND = {"NAME": "plain", **ONE_STEP, "PATH": "uniform 3x3"}


def test_stages_have_the_images_of_what_was_found(tmp_path: Path) -> None:
    file, runs = written(tmp_path, INHERITED, TUNED, EQUAL, BY_HAND), tmp_path / "runs"
    assert not run_pipeline(arguments(file, *KEYS, dry_run=True))
    assert run_pipeline(arguments(file, *KEYS))
    best = History.read(runs / "search").best()[0]
    size, path = best.resolution, TINY.path(best.path)
    done = json.loads((runs / "inherited" / "done.json").read_text())
    assert done["results"]["bbox/AP"] == pytest.approx(best.fitness, abs=1e-6)
    assert done["path"] == best.path
    pipeline = read_pipeline(file, KEYS)
    proposals = Proposals.from_config(pipeline.config_of(pipeline.known_stage("search")))
    for name in ("inherited", "tuned", "equal_1", "equal_2"):
        cfg = load_config(str(runs / name / "config.yaml"))
        assert size == cfg.INPUT.MIN_SIZE_TEST
        assert (size, round(size * 64 / 48)) == cfg.INPUT.MIN_SIZE_TRAIN
        drawn = TINY.path(cfg.MODEL.DETNAS.PATH)
        assert (drawn == path.at(None)) == (name in ("inherited", "tuned"))
        macs = proposals.costs_at(size).macs.total(drawn.choices)
        assert 0.95 * best.macs <= macs <= 1.05 * best.macs
        told = json.loads((runs / name / "done.json").read_text())["path"]
        assert told == str(drawn.at(size))
        assert network_cost(cfg, told, pipeline.limits_for(cfg)).macs == macs
    assert load_config(str(runs / "plain" / "config.yaml")).INPUT.MIN_SIZE_TEST == 48
    rows = json.loads((runs / "table.json").read_text())["rows"]
    assert rows["inherited"]["macs"] == rows["tuned"]["macs"] == best.macs
    page = Path(write_report(str(runs))).read_text()
    assert f"@{size}" in page and f"{size} px" in page

    # Random networks without a model are candidates of the search.
    stage = pipeline.known_stage("plain")
    drawn = {
        pipeline.path_of(_random(stage, number), pipeline.config_of(stage)).resolution
        for number in range(1, 9)
    }
    assert drawn <= {32, 48, 64} and len(drawn) > 1


def _random(stage: Stage, number: int) -> Stage:
    return replace(stage, path=f"random {number}")
