"""The time that a whole pipeline still takes."""

from __future__ import annotations

import pytest

from detnas_d2.engine.outlook import Outlook, another_training, outlook_text, set_outlook, work_of
from tests.engine.tiny_runs import Configs


def test_later_stages_take_as_long_as_their_kind_or_as_this_one() -> None:
    outlook = Outlook(100.0, (("train", 50.0), ("search", 10.0)), {"search": 3.0})
    # 40 s for a fifth of 100 units: 2 s each.
    assert outlook.seconds_left(40.0, 0.2) == 40 + 50 * 2 + 10 * 3
    assert outlook.text(40.0, 0.2) == " (all stages about 0:02:50)"
    assert outlook.seconds_left(0.0, 0.0) == 30  # nothing left to measure by
    assert Outlook(100.0, ()).text(40.0, 0.2) == ""


def test_only_pipelines_tell_it() -> None:
    assert outlook_text(40.0, 0.2) == ""
    set_outlook(Outlook(100.0, (("train", 50.0),)))
    assert outlook_text(40.0, 0.2) == " (all stages about 0:02:20)"
    set_outlook(None)
    assert outlook_text(40.0, 0.2) == ""


def test_another_training_of_the_stage(configs: Configs) -> None:
    set_outlook(Outlook(100.0, (("train", 3 * 6 * 2 * 56**2 / 1e6),)))
    with another_training(configs()):  # of as much work as the stage after it
        assert outlook_text(40.0, 1.0) == " (all stages about 0:01:20)"
    assert outlook_text(100.0, 1.0) == " (all stages about 0:01:40)"
    set_outlook(None)
    with another_training(configs()):
        assert outlook_text(40.0, 1.0) == ""


def test_work(configs: Configs) -> None:
    cfg = configs()
    # Six iterations of two images of 48 to 64 pixels, forward and backward.
    assert work_of(cfg, "train") == pytest.approx(3 * 6 * 2 * 56**2 / 1e6)
    cfg = configs.search()
    # Three generations of four, 4 images to calibrate and 4 to score.
    assert work_of(cfg, "search") == pytest.approx(3 * 4 * (4 + 4) * 48**2 / 1e6)
    cfg = configs("classifier")
    assert work_of(cfg, "train") == pytest.approx(3 * 6 * 2 * 32**2 / 1e6)
