"""Mistakes of any stage are found before the first one starts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from detnas_d2.pipeline.checks import check_stages
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.search_space import get_space
from tests.campaigns.tiny import detnas_pipeline, hit_pipeline
from tests.engine.tiny_runs import arguments


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("plans")
    return {"detnas": detnas_pipeline(root / "detnas"), "hit": hit_pipeline(root / "hit")}


def _changed(file: Path, stage: str, opts: list[Any], **keys: Any) -> str:
    data = yaml.safe_load(file.read_text())
    (entry,) = (entry for entry in data["STAGES"] if entry["NAME"] == stage)
    entry["OPTS"] = [*entry.get("OPTS", []), *opts]
    entry.update(keys)
    new = file.with_name("changed.yaml")
    new.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(new)


@pytest.mark.parametrize("kind", ["detnas", "hit"])
def test_good_pipelines_pass_in_seconds(kind: str, roots: dict[str, Path]) -> None:
    start = time.process_time()
    check_stages(read_pipeline(str(roots[kind])), set())
    assert time.process_time() - start < 60


def test_the_number_of_classes_is_filled_in(roots: dict[str, Path], tmp_path: Path) -> None:
    opts = ("MODEL.ROI_HEADS.NUM_CLASSES", "80", "OUTPUT_DIR", str(tmp_path))
    pipeline = read_pipeline(str(roots["detnas"]), opts)
    check_stages(pipeline, set())
    # A finished stage's data are not looked at; what it has filled in is in its folder.
    supernet = pipeline.stage("supernet")
    cfg = pipeline.config_of(supernet)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    folder = Path(pipeline.folder("supernet"))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    check_stages(pipeline, {"supernet"})


@pytest.mark.parametrize(
    ("stage", "opts", "message"),
    [
        ("searched", ["MODEL.BACKBONE.NAME", "build_detnas_fpn_backbon"], "did you mean build_det"),
        ("searched", ["MODEL.BACKBONE.NAME", "build_detnas_supernet_fpn_backbone"], "a supernet"),
        ("searched", ["MODEL.FPN.NORM", "XN"], "MODEL: the model cannot be built: .*XN"),
        ("searched", ["MODEL.DETNAS.SPACE", "detnas_small"], "WEIGHTS .supernet.: .* do not fit"),
        ("searched", ["MODEL.DETNAS.SPACE", "x"], "SPACE is .x.: expected one of .*detnas_tiny"),
        ("search", ["MODEL.DETNAS.SPACE", "x"], "SPACE is .x.: expected one of .*detnas_tiny"),
        ("searched", ["MODEL.FPN.OUT_CHANNELS", "32"], "WEIGHTS 'supernet': .*in part only"),
        ("searched", ["MODEL.ROI_HEADS.NUM_CLASSES", "5"], "NUM_CLASSES is 5, dataset"),
        ("searched", ["MODEL.DEVICE", "cuda:77"], "MODEL.DEVICE is 'cuda:77': this machine"),
        ("search", ["MODEL.FPN.OUT_CHANNELS", "32"], "WEIGHTS 'supernet': .*in part only"),
        ("search", ["MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone"], "NAME .*needs a path"),
        ("search", ["SEARCH.CALIBRATION.IMAGES", "1000000"], "IMAGES is 1000000: expected at most"),
        ("search", ["SEARCH.POPULATION", "100000"], "POPULATION 100000: the space has 1024 paths"),
        ("search", ["SEARCH.METRIC", "bbox/AP51"], "SEARCH.METRIC 'bbox/AP51'"),
        ("search", ["SEARCH.VAL", "nope"], "'nope' is neither in DATASETS.REGISTER nor"),
        ("supernet", ["TEST.PRECISE_BN.ENABLED", "True"], "PRECISE_BN.ENABLED: a supernet"),
    ],
)
def test_detnas_mistakes(stage: str, opts: list[str], message: str, roots: dict[str, Path]) -> None:
    file = _changed(roots["detnas"], stage, opts)
    with pytest.raises(PipelineError, match=rf"changed\.yaml: stage '{stage}': .*{message}"):
        check_stages(read_pipeline(file), set())


@pytest.mark.parametrize(
    ("stage", "opts", "message"),
    [
        ("screen_head", ["HIT_SEARCH.SCREENING.KEEP", "100"], "SCREENING.KEEP 100"),
        ("search", ["HIT_SEARCH.ARCH_START_ITER", "100"], "ARCH_START_ITER 100"),
        ("search", ["MODEL.HIT.SEARCHABLE_PARTS", "['spine']"], "SEARCHABLE_PARTS is 'spine'"),
        ("search", ["HIT_SEARCH.ARCH_TRAIN", "()"], "ARCH_TRAIN"),
        ("search", ["MODEL.HIT.NETWORK", "hit_huge"], "HIT.NETWORK is 'hit_huge'"),
        ("searched", ["MODEL.HIT.NORM", "XN"], "XN"),
    ],
)
def test_hit_mistakes(stage: str, opts: list[str], message: str, roots: dict[str, Path]) -> None:
    file = _changed(roots["hit"], stage, opts)
    with pytest.raises(PipelineError, match=rf"stage '{stage}': .*{message}"):
        check_stages(read_pipeline(file), set())


def test_weights_are_compared_with_the_path_that_is_written(roots: dict[str, Path]) -> None:
    """Not with a stand-in for it."""
    file = roots["detnas"]
    pipeline = read_pipeline(str(file))
    cfg = pipeline.config_of(pipeline.stage("random_1"))
    space = get_space(cfg.MODEL.DETNAS.SPACE)
    cfg.MODEL.DETNAS.PATH, cfg.MODEL.DEVICE = str(space.uniform_path("7x7")), "cpu"
    weights = str(file.with_name("path.pth"))
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    for path in (cfg.MODEL.DETNAS.PATH, "uniform 7x7"):
        changed = _changed(file, "random_1", [], PATH=path, WEIGHTS=weights)
        check_stages(read_pipeline(changed), set())
    changed = _changed(file, "random_1", [], PATH="uniform 3x3", WEIGHTS=weights)
    with pytest.raises(PipelineError, match=rf"WEIGHTS '{weights}': .*do not fit"):
        check_stages(read_pipeline(changed), set())


def _other_classes(file: Path, names: str) -> list[Any]:
    """Overrides that put data with other classes in the place of a stage's."""
    data = json.loads((file.parent / "shapes.json").read_text())
    data["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    annotations = file.with_name(f"{names}.json")
    annotations.write_text(json.dumps(data))
    entry = {"NAME": names, "FORMAT": "coco", "IMAGES": str(file.with_name("shapes"))}
    return [
        *("DATASETS.REGISTER", [{**entry, "ANNOTATIONS": str(annotations)}]),
        *("DATASETS.TRAIN", (f"{names}@search_train",), "DATASETS.TEST", (f"{names}@search_val",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", len(names)),
    ]


def test_class_lists_of_stages_are_compared(
    roots: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = roots["detnas"]
    four = _changed(file, "searched", _other_classes(file, "abcd"))
    check_stages(read_pipeline(four), set())
    (text,) = [r.getMessage() for r in caplog.records if "has the classes" in r.getMessage()]
    assert (
        "changed.yaml: stage 'searched': retrain.yaml: DATASETS.TRAIN 'abcd@search_train'" in text
    )
    assert "[a, b, c, d] (4), but train.yaml of stage 'supernet', which it starts from: " in text
    assert "DATASETS.TRAIN 'shapes@search_train' has the classes [a, b, c] (3)" in text
    # A search scores with the last layers as they are, which would take a for b.
    swapped = [*_other_classes(file, "bac"), "SEARCH.VAL", "bac@search_val"]
    with pytest.raises(PipelineError, match=r"'search': search.yaml: .*\[b, a, c\].*\[a, b, c\]"):
        check_stages(read_pipeline(_changed(file, "search", swapped)), set())


def test_nothing_is_written_but_the_traceback(roots: dict[str, Path]) -> None:
    file = _changed(roots["detnas"], "searched", ["MODEL.FPN.NORM", "XN"])
    runs = roots["detnas"].parent / "runs"
    with pytest.raises(PipelineError) as caught:
        run_pipeline(arguments(file))
    assert caught.value.log_file == str(runs / "log.txt")
    assert [path.name for path in runs.iterdir()] == ["log.txt"]
    assert "norm 'XN'" in (runs / "log.txt").read_text()
