"""Data that changed after stages were done: said before anything goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.checks import validation
from detnas_d2.data.datasets import catalog
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from tests.engine.tiny_runs import Configs, arguments, write_config


def run(file: Path) -> bool:
    """As a new process does it."""
    forget()
    return run_pipeline(arguments(str(file)))


def forget() -> None:
    """Removes what this process knows of the datasets."""
    validation._CONTENT_FILES.clear()
    for kept in (catalog._ORIGINALS, catalog._DECLARED, catalog._INSTALLED):
        kept.clear()
    for registry in (DatasetCatalog, MetadataCatalog):
        for name in [name for name in registry if name.startswith(("shapes", "apart"))]:
            registry.pop(name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pipeline whose stages are done: a supernet, and a path that is tested on data apart."""
    root = tmp_path_factory.mktemp("finished")
    cfg = Configs(root)("faster", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    write_config(cfg, root / "train.yaml")
    shutil.copytree(root / "shapes", root / "apart")
    data = json.loads((root / "shapes.json").read_text())
    (root / "apart.json").write_text(json.dumps(data))
    paths = {"IMAGES": str(root / "apart"), "ANNOTATIONS": str(root / "apart.json")}
    cfg.DATASETS.REGISTER.append({"NAME": "apart", "FORMAT": "coco", **paths})
    cfg.DATASETS.TEST = ("apart",)
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    write_config(cfg, root / "retrain.yaml")
    stages = [
        {"NAME": "supernet", "KIND": "train", "CONFIG": "train.yaml"},
        {"NAME": "net", "KIND": "train", "CONFIG": "retrain.yaml", "PATH": "uniform 3x3"},
    ]
    stages[1]["WEIGHTS"] = "supernet"
    file = root / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"OUTPUT_DIR": str(root / "runs"), "STAGES": stages}))
    run(file)
    yield file
    forget()


def test_the_same_data_pass(finished: Path) -> None:
    run(finished)


def test_learned_annotations(finished: Path) -> None:
    annotations = finished.with_name("shapes.json")
    text = annotations.read_text()
    annotations.write_text(text.replace('"category_id": 1', '"category_id": 2'))
    with pytest.raises(PipelineError) as caught:
        run(finished)
    runs = finished.with_name("runs")
    assert str(caught.value) == (
        f"{finished}: data changed since stages were done: annotations of 'shapes@search_train' "
        "(stage supernet, net); restore the data, use another OUTPUT_DIR, or delete "
        f"{runs / 'supernet'}, {runs / 'net'}"
    )
    annotations.write_text(text)
    run(finished)


def test_tested_images(finished: Path) -> None:
    """The network is tested anew without being trained anew."""
    one, other = finished.with_name("apart") / "1.png", finished.with_name("apart") / "3.png"
    before = one.read_bytes()
    shutil.copy(other, one)
    done = finished.with_name("runs") / "net" / "done.json"
    with pytest.raises(PipelineError, match=rf"images of 'apart' \(stage net\); .* delete {done}$"):
        run(finished)
    weights = done.with_name("model_final.pth")
    trained, data = weights.stat().st_mtime_ns, json.loads(done.read_text())["data"]
    done.unlink()
    run(finished)
    assert weights.stat().st_mtime_ns == trained
    assert json.loads(done.read_text())["data"]["apart"] != data["apart"]
    one.write_bytes(before)
    done.unlink()
    run(finished)


def test_data_that_are_gone_are_warned_of(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = finished.with_name("apart.json")
    annotations.rename(annotations.with_suffix(".away"))
    run(finished)
    assert (
        "stage 'net' is done; whether its data changed since cannot be told: "
        in capsys.readouterr().err
    )
    annotations.with_suffix(".away").rename(annotations)


def test_a_done_stage_tells_its_classes(finished: Path) -> None:
    for name in ("supernet", "net"):
        kept = json.loads((finished.with_name("runs") / name / "done.json").read_text())
        listed = ["ROI_HEADS", "DATASETS.TRAIN", "shapes@search_train", ["a", "b", "c"]]
        assert kept["classes"] == listed
