"""Configs and record of a run: written, read again, compared, edited."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from detnas_d2.config.tools import load_config
from detnas_d2.recipe.inputs import Settings
from detnas_d2.recipe.rates import Rates
from detnas_d2.recipe.record import read_record
from detnas_d2.recipe.refitting import Change
from detnas_d2.recipe.schedule import Schedule
from detnas_d2.recipe.weights import Start
from detnas_d2.recipe.writing import texts_of, write_files
from detnas_d2.utils.errors import InputError
from tests.recipe.values import CPU, DATA, GPU, RATES, SCHEDULE, plan, record_of


def test_a_record_reads_back(tmp_path: Path) -> None:
    written = record_of(tmp_path)
    assert read_record(str(tmp_path)) == written
    assert read_record(str(tmp_path / "other")) is None
    start = Start(supernet="/s.pth", space="detnas_demo", text="a supernet")
    other = record_of(tmp_path / "b", settings=Settings(str(tmp_path / "b"), start=start))
    assert read_record(str(tmp_path / "b")) == other


def test_changes_read_back_also_those_that_do_not_tell_the_time_of_the_run(tmp_path: Path) -> None:
    change = Change("supernet", 120, 1200, 400, 3.0, kept=True, worked=100.0, at=120.0)
    written = record_of(tmp_path, changes=(change,))
    assert read_record(str(tmp_path)) == written
    file = Path(written.folder, "recipe.json")
    value = json.loads(file.read_text())
    del value["changes"][0]["at"]
    file.write_text(json.dumps(value))
    assert read_record(str(tmp_path)) == replace(written, changes=(replace(change, at=None),))


def test_what_was_given_up_reads_back_also_from_a_number(tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, given_up=("shufflenetv2", "random_2"))
    written = record_of(tmp_path, schedule=schedule, plan=replace(plan(), jobs=2))
    assert read_record(str(tmp_path)) == written
    pipeline = yaml.safe_load(Path(written.pipeline_file).read_text())
    names = [stage["NAME"] for stage in pipeline["STAGES"]]
    assert names == ["supernet", "search", "inherited", "searched", "random_1"]
    assert pipeline["TABLE"] == ["searched", "random", "inherited"]
    file = Path(written.folder, "recipe.json")
    value = json.loads(file.read_text())
    del value["schedule"]["given_up"], value["plan"]["jobs"]
    for compared, given_up in ((1, ("random_1", "random_2")), (None, ())):
        value["schedule"]["compared"] = compared
        file.write_text(json.dumps(value))
        assert read_record(str(tmp_path)) == replace(
            written, plan=plan(), schedule=replace(SCHEDULE, given_up=given_up)
        )


def test_other_options_are_refused(tmp_path: Path) -> None:
    written = record_of(tmp_path)
    written.check_asked({"data": "/i", "budget": "", "time": 600.0})
    with pytest.raises(InputError) as error:
        written.check_asked({"data": "/i", "budget": "24M", "time": None})
    assert "--budget none then, 24M now; --time 10 min then, none now" in str(error.value)


def test_a_record_of_something_else_is_one_line(tmp_path: Path) -> None:
    written = record_of(tmp_path)
    file = Path(written.folder, "recipe.json")
    for content in ("{", "[]", json.dumps({"version": 0}), json.dumps({"version": 1, "x": 1})):
        file.write_text(content)
        with pytest.raises(InputError, match="recipe.json: not what detnas search wrote"):
            read_record(str(tmp_path))


def test_edits_are_noticed(tmp_path: Path) -> None:
    written = record_of(tmp_path)
    assert not written.is_edited()
    # Of the schedule of a later replanning, which is known.
    shorter = replace(written, schedule=replace(SCHEDULE, tuning=100, networks=0)).written()
    assert not shorter.is_edited() and written.is_edited()
    assert "MAX_ITER: 100" in Path(written.folder, "finetune.yaml").read_text()
    file = Path(written.folder, "finetune.yaml")
    file.write_text(file.read_text() + "SEED: 1\n")
    assert shorter.is_edited()
    file.unlink()
    assert shorter.is_edited()


def test_files_of_begun_stages_stay_as_they_are(tmp_path: Path) -> None:
    written = record_of(tmp_path)
    times = {file.name: file.stat().st_mtime_ns for file in Path(written.folder).iterdir()}
    replace(written, schedule=replace(SCHEDULE, tuning=100)).written()
    changed = {
        file.name
        for file in Path(written.folder).iterdir()
        if file.stat().st_mtime_ns != times[file.name]
    }
    assert changed == {"finetune.yaml", "recipe.json"}


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_keys_of_detnas(tmp_path: Path, machine) -> None:
    write_files(str(tmp_path), texts_of(plan(machine=machine), SCHEDULE, DATA, Settings("/out")))
    supernet, search, tuned = (
        load_config(str(tmp_path / f"{name}.yaml")) for name in ("supernet", "search", "finetune")
    )
    assert supernet.DATASETS.TRAIN == ("cells_train@search_train",)
    assert search.SEARCH.VAL == supernet.DATASETS.TEST[0] == "cells_train@search_val"
    assert supernet.DATASETS.SEARCH_SPLIT.SIZE == 58
    assert tuned.DATASETS.TRAIN == ("cells_train",) and tuned.DATASETS.TEST == ("cells_test",)
    assert (supernet.SOLVER.MAX_ITER, tuned.SOLVER.MAX_ITER) == (1200, 200)
    factor = 2 if machine is CPU else 0.5
    assert pytest.approx(factor * supernet.SOLVER.BASE_LR) == tuned.SOLVER.BASE_LR
    assert (search.SEARCH.POPULATION, search.SEARCH.GENERATIONS) == (10, 6)
    assert tuned.MODEL.ROI_HEADS.NUM_CLASSES == 3
    small = machine is CPU
    assert (48_000_000 if small else 300_000_000) == search.SEARCH.MAX_MACS
    assert ("AdamW" if small else "SGD") == tuned.SOLVER.OPTIMIZER
    assert tuned.TEST.PRECISE_BN.ENABLED is small and not supernet.TEST.PRECISE_BN.ENABLED
    assert (192 if small else 480) == tuned.INPUT.MIN_SIZE_TEST


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_keys_of_hit_detector(tmp_path: Path, machine) -> None:
    own = plan("hit", machine)
    write_files(str(tmp_path), texts_of(own, Schedule(500, 0, 0, 500, 1), DATA, Settings("/out")))
    search, tuned = (load_config(str(tmp_path / f"{name}.yaml")) for name in ("search", "finetune"))
    assert search.HIT_SEARCH.ARCH_TRAIN == ("cells_train@search_val",)
    assert search.DATASETS.SEARCH_SPLIT.FRACTION == 0.5
    assert search.HIT_SEARCH.ARCH_START_ITER == 250
    assert search.MODEL.HIT.SEARCHABLE_PARTS == ["backbone", "neck", "head"]
    assert tuned.MODEL.HIT.SEARCHABLE_PARTS == []
    assert pytest.approx(search.SOLVER.BASE_LR) == tuned.SOLVER.BASE_LR
    pipeline = (tmp_path / "pipeline.yaml").read_text()
    assert ("handmade" in pipeline) is (machine is CPU)


def test_a_baseline_takes_the_time_of_a_network(tmp_path: Path) -> None:
    own = replace(plan(), rates=replace(RATES, baseline=0.8))  # ten times a network's
    settings = Settings("/out", start=Start(resnet="/r50.pth"))
    write_files(str(tmp_path), texts_of(own, replace(SCHEDULE, tuning=400), DATA, settings))
    cfg = load_config(str(tmp_path / "resnet50.yaml"))
    assert cfg.SOLVER.MAX_ITER == 40 and cfg.MODEL.WEIGHTS == "/r50.pth"
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert "resnet50" in own.stages(SCHEDULE)
    assert own.seconds_of("resnet50", SCHEDULE) == own.seconds_of("searched", SCHEDULE)
    assert Rates(1, 2, 3, 4, 5, 6).times(2) == Rates(2, 4, 6, 8, 10, 12)
