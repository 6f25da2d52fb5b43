"""Configs at a resolution: what follows it, and configs that cannot."""

from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import CfgNode

from detnas_d2.config.resolutions import (
    at_own_resolution,
    at_resolution,
    check_resizable,
    cost_input,
    resolutions_of,
)
from detnas_d2.config.tools import changed_keys, load_config
from detnas_d2.utils.errors import InputError

BASE = ("INPUT.MIN_SIZE_TRAIN", (640, 800), "SEARCH.RESOLUTIONS", [480, 800, 1000])


def config(*opts: Any) -> CfgNode:
    return load_config("", [*BASE, *opts])


def sizes(cfg: CfgNode) -> tuple[Any, ...]:
    images = cfg.INPUT
    return (
        images.MIN_SIZE_TEST,
        images.MAX_SIZE_TEST,
        images.MIN_SIZE_TRAIN,
        images.MAX_SIZE_TRAIN,
    )


def test_sizes_follow_in_proportion() -> None:
    cfg = config()
    assert sizes(cfg) == (800, 1333, (640, 800), 1333)
    assert sizes(at_resolution(cfg, 480)) == (480, 800, (384, 480), 800)
    assert sizes(at_resolution(cfg, 1000)) == (1000, 1666, (800, 1000), 1666)
    assert cost_input(cfg) == cost_input(cfg, 800) == (224, 224)
    assert cost_input(config("SEARCH.MAX_MACS_INPUT", [800, 1216]), 480) == (480, 730)
    assert sizes(cfg) == (800, 1333, (640, 800), 1333)


def test_at_its_own_resolution_a_config_stays() -> None:
    own, plain = at_resolution(config(), 800), load_config("", BASE[:2])
    assert changed_keys(own) == changed_keys(plain) == changed_keys(at_own_resolution(config()))
    assert resolutions_of(config()) == (480, 800, 1000) and resolutions_of(plain) == ()


@pytest.mark.parametrize("value", ["[160, 128]", "[128, 128]", "[0, 128]", "[128.5]", "['128']"])
def test_values_that_are_no_resolutions(value: str) -> None:
    expected = r"SEARCH.RESOLUTIONS is \[.*\]: expected rising positive integers, or \[\]"
    with pytest.raises(InputError, match=expected):
        load_config("", ["SEARCH.RESOLUTIONS", value])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("INPUT.MIN_SIZE_TEST", 600),
            r"SEARCH.RESOLUTIONS \[480, 800, 1000\]: INPUT.MIN_SIZE_TEST 600, .* is none of them",
        ),
        (("INPUT.MIN_SIZE_TEST", 0), r"INPUT.MIN_SIZE_TEST is 0, images keep their size"),
        (
            ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"),
            r"INPUT.CROP.TYPE is 'absolute', a size in pixels; expected 'relative'",
        ),
        (("MODEL.META_ARCHITECTURE", "ImageClassifier"), r"is ImageClassifier, .* a detector"),
    ],
)
def test_configs_whose_images_cannot_follow(opts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolutions_of(config(*opts))
    assert resolutions_of(config(*opts, "SEARCH.RESOLUTIONS", [])) == ()


def test_relative_crops_follow() -> None:
    check_resizable(config("INPUT.CROP.ENABLED", True), "a test")
