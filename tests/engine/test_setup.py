"""What is checked before a run begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from detnas_d2.data import DatasetError
from detnas_d2.engine import prepare
from detnas_d2.engine.setup import training_images_tested
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
    with pytest.raises(ValueError, match="ROI_HEADS.NUM_CLASSES is 3, data set 'more' has 4"):
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
