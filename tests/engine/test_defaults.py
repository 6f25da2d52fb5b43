"""What is checked before a run begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image

from detnas_d2.config.tools import base_config, load_config
from detnas_d2.data import DatasetError
from detnas_d2.engine import prepare
from detnas_d2.engine.checks.data import identical_image_warnings, training_images_tested
from tests.engine.tiny_runs import Configs, arguments

ARGS = arguments()


@pytest.fixture(autouse=True)
def short_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Detectron2's report of the environment, which takes seconds."""
    monkeypatch.setitem(prepare.__globals__, "default_setup", lambda cfg, args: None)


def test_data_of_architecture_parameters_is_checked_too(configs: Configs) -> None:
    cfg = configs()
    cfg.HIT_SEARCH.ARCH_START_ITER = 0
    (shapes,) = cfg.DATASETS.REGISTER
    more = {**shapes, "NAME": "more", "CLASSES": ["a", "b", "c", "d"]}
    cfg.DATASETS.REGISTER = [shapes, {**shapes, "NAME": "others"}, more]
    cfg.HIT_SEARCH.ARCH_TRAIN = ("more",)
    with pytest.raises(ValueError, match="ROI_HEADS.NUM_CLASSES is 3, dataset 'more' has 4"):
        prepare(cfg.clone(), ARGS)
    cfg.HIT_SEARCH.ARCH_TRAIN = ("others",)
    prepare(cfg.clone(), ARGS)
    assert len(DatasetCatalog.get("others")) == 12
    cfg.HIT_SEARCH.ARCH_TRAIN = ("other",)
    with pytest.raises(DatasetError, match="'other' is neither .* did you mean others"):
        prepare(cfg.clone(), ARGS)
    Path(shapes["IMAGES"], "3.png").unlink()
    cfg.HIT_SEARCH.ARCH_TRAIN = ("others",)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    with pytest.raises(DatasetError, match=r"missing_image.*3\.png"):
        prepare(cfg.clone(), ARGS)


@pytest.mark.parametrize("kind", ["faster", "retinanet", "classifier"])
def test_the_number_of_classes_is_filled_in(configs: Configs, kind: str) -> None:
    cfg = configs(kind)
    node = {"faster": "ROI_HEADS", "retinanet": "RETINANET", "classifier": "CLASSIFIER"}[kind]
    cfg.MODEL[node].NUM_CLASSES = base_config().MODEL[node].NUM_CLASSES
    prepare(cfg, ARGS)
    assert cfg.MODEL[node].NUM_CLASSES == 3 and cfg.is_frozen()
    log = Path(cfg.OUTPUT_DIR, "log.txt").read_text()
    assert f"MODEL.{node}.NUM_CLASSES is set to 3" in log
    written = load_config(str(Path(cfg.OUTPUT_DIR, "config.yaml")))
    assert written.MODEL[node].NUM_CLASSES == 3


@pytest.mark.parametrize("kind", ["faster", "retinanet", "classifier"])
def test_class_numbers_are_compared(configs: Configs, kind: str) -> None:
    cfg = configs(kind)
    node = {"faster": "ROI_HEADS", "retinanet": "RETINANET", "classifier": "CLASSIFIER"}[kind]
    cfg.MODEL[node].NUM_CLASSES = 4
    with pytest.raises(ValueError, match=f"MODEL.{node}.NUM_CLASSES is 4.*has 3 classes: a, b, c"):
        prepare(cfg, ARGS)


def test_training_images_among_those_of_the_test_are_warned_of(configs: Configs) -> None:
    assert training_images_tested(configs()) == []  # two halves
    for train, test in (("shapes", "shapes"), ("shapes@search_train", "shapes")):
        (text,) = training_images_tested(
            configs("faster", "DATASETS.TRAIN", (train,), "DATASETS.TEST", ("other", test))
        )
        assert f"DATASETS.TEST {test!r} shares images with DATASETS.TRAIN {train!r}" in text


def declare_copies(configs: Configs, **changes: dict) -> CfgNode:
    """A config whose REGISTER has copies of "shapes" under new names; a change is of its JSON."""
    cfg = configs()
    (shapes,) = cfg.DATASETS.REGISTER
    register = [shapes]
    for name, change in changes.items():
        data = json.loads(Path(shapes["ANNOTATIONS"]).read_text()) | change
        file = configs.root / f"{name}.json"
        file.write_text(json.dumps(data))
        register.append({**shapes, "NAME": name, "ANNOTATIONS": str(file)})
    cfg.DATASETS.REGISTER = register
    return cfg


def categories(*names: str) -> dict:
    return {"categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)]}


@pytest.mark.parametrize(
    "key", ["DATASETS.TEST", "SEARCH.VAL", "SEARCH.CALIBRATION.DATASET", "HIT_SEARCH.ARCH_TRAIN"]
)
@pytest.mark.parametrize("names", ["bac", "abC", "axc"])
def test_class_names_are_compared(configs: Configs, key: str, names: str) -> None:
    cfg = declare_copies(configs, other=categories(*names))
    cfg.HIT_SEARCH.ARCH_START_ITER = 0
    cfg.HIT_SEARCH.ARCH_TRAIN = cfg.DATASETS.TRAIN
    cfg.merge_from_list([key, "other" if key.startswith("SEARCH") else ("other",)])
    texts = (
        f"{key} 'other' has the classes .{', '.join(names)}. .*'shapes.*has the classes .a, b, c."
    )
    with pytest.raises(ValueError, match=texts):
        prepare(cfg, ARGS)


@pytest.mark.parametrize("policy", ["error", "ignore"])
def test_declared_classes_map_by_name(configs: Configs, policy: str) -> None:
    """The remedy that the error names; nothing checks the names for "ignore" but this."""
    cfg = declare_copies(configs, other=categories("b", "a", "c"))
    cfg.DATASETS.INVALID = policy
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes",), ("other",)
    with pytest.raises(ValueError, match="write the same CLASSES into both declarations"):
        prepare(cfg.clone(), ARGS)
    if policy == "ignore":
        return
    cfg.DATASETS.REGISTER[1] |= {"NAME": "mapped", "CLASSES": ["a", "b", "c"]}
    cfg.DATASETS.TEST = ("mapped",)
    prepare(cfg, ARGS)
    first = {name: DatasetCatalog.get(name)[0]["annotations"] for name in ("shapes", "mapped")}
    swapped = {0: 1, 1: 0, 2: 2}
    assert [swapped[a["category_id"]] for a in first["mapped"]] == [
        a["category_id"] for a in first["shapes"]
    ]


def test_class_names_of_classification_folders_are_compared(configs: Configs) -> None:
    cfg = configs("classifier")
    (colors,) = cfg.DATASETS.REGISTER
    other = configs.root / "others"
    shutil.copytree(colors["ROOT"], other)
    (other / "b").rename(other / "0")  # which is the first now
    cfg.DATASETS.REGISTER = [colors, {**colors, "NAME": "others", "ROOT": str(other)}]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("colors",), ("others",)
    with pytest.raises(ValueError, match="'others' has the classes .0, a, c. .*'colors'"):
        prepare(cfg, ARGS)


def test_long_lists_of_classes_show_where_they_differ(configs: Configs) -> None:
    many = [f"c{i}" for i in range(40)]
    cfg = declare_copies(
        configs, one=categories(*many), other=categories(*many[:30], "x", *many[31:])
    )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 40
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("one",), ("other",)
    with pytest.raises(ValueError, match=r"\[\.\.\., c28, c29, x, .*\.\.\., c28, c29, c30, "):
        prepare(cfg, ARGS)


def test_identical_images_are_warned_of(configs: Configs) -> None:
    """Whatever their names: between two datasets, and between the halves of one."""
    cfg = declare_copies(configs, other={}, unlike={})
    images = Path(cfg.DATASETS.REGISTER[0]["IMAGES"])
    for name, files in (("other", ["3.png", "5.png"]), ("unlike", [])):
        folder = configs.root / name
        folder.mkdir()
        for number in range(1, 13):
            pixels = np.asarray(Image.open(images / f"{number}.png"))
            Image.fromarray(pixels ^ 1).save(folder / f"{number}.png")
        for file in files:
            shutil.copy(images / file, folder / file)
        (entry,) = [e for e in cfg.DATASETS.REGISTER if e["NAME"] == name]
        entry["IMAGES"] = str(folder)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes",), ("other", "unlike")
    prepare(cfg, ARGS)
    (text,) = identical_image_warnings(cfg)
    assert text.startswith("2 image(s) of DATASETS.TEST 'other' are byte by byte those of ")
    assert "DATASETS.TRAIN 'shapes'" in text
    assert f"{configs.root}/other/3.png = {images}/3.png" in text


@pytest.mark.parametrize("kind", ["halves", "parts"])
def test_identical_images_in_two_parts_are_warned_of(configs: Configs, kind: str) -> None:
    cfg = configs()
    if kind == "parts":
        cfg.DATASETS.REGISTER[0]["SPLITS"] = {"first": 0.5, "second": 0.5}
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("first",), ("second",)
    prepare(cfg, ARGS)
    assert identical_image_warnings(cfg) == []
    halves = [DatasetCatalog.get(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    by_size = [{(d["width"], d["height"]): d["file_name"] for d in dicts} for dicts in halves]
    (size, one) = next(iter(by_size[0].items()))
    shutil.copy(by_size[1][size], one)
    prepare(cfg, ARGS)
    (text,) = identical_image_warnings(cfg)
    assert text.startswith(f"1 image(s) of DATASETS.TEST {cfg.DATASETS.TEST[0]!r} are byte by byte")
    assert f"{by_size[1][size]} = {one}" in text


def test_a_resumed_run_tells_what_has_changed(configs: Configs) -> None:
    cfg = configs("faster")
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    log = Path(cfg.OUTPUT_DIR) / "log.txt"
    for rate, told in ((0.02, 0), (0.02, 0), (0.005, 1), (0.005, 1)):
        again = cfg.clone()
        again.SOLVER.BASE_LR = rate
        prepare(again, arguments(resume=True))
        (log.parent / "config.yaml").write_text(again.dump())  # as default_setup does
        texts = [line for line in log.read_text().splitlines() if "Resumed with other" in line]
        assert len(texts) == told
    assert texts[0].endswith("than it was begun with: SOLVER.BASE_LR: 0.02 -> 0.005")
