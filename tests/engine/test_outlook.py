"""The time that a whole pipeline still takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from detnas_d2.engine.outlook import Ahead, Outlook, steps_of, work_of, works_of
from tests.engine.tiny_runs import Configs

SUPERNET = Ahead("train", "supernet.yaml", 100.0)
SEARCH = Ahead("search", "search.yaml", 10.0)
NETWORK = Ahead("train", "retrain.yaml", 50.0)


def left(outlook: Outlook, eta: float, share: float) -> tuple[float, bool]:
    outlook.measure(eta, share)
    return outlook.seconds_left(eta)


def test_later_stages_take_as_long_as_their_like() -> None:
    # 40 s for a fifth of 100 units: 2 s each.
    of_kind = Outlook(SUPERNET, (NETWORK,))
    assert left(of_kind, 40.0, 0.2) == (40 + 50 * 2, True)
    of_finished_kind = Outlook(SUPERNET, (NETWORK,), [(Ahead("train", "x", 10.0), 30.0)])
    assert left(of_finished_kind, 40.0, 0.2) == (40 + 50 * 3, True)
    done = [(Ahead("train", "x", 10.0), 30.0), (Ahead("train", "retrain.yaml", 25.0), 100.0)]
    of_config = Outlook(SUPERNET, (NETWORK,), done)
    assert left(of_config, 40.0, 0.2) == (40 + 50 * 4, True)


def test_a_kind_that_was_not_measured_is_a_guess() -> None:
    outlook = Outlook(SUPERNET, (NETWORK, SEARCH), [(Ahead("screen", "x", 100.0), 400.0)])
    # 400 s and 200 s for 100 units each.
    assert left(outlook, 40.0, 0.2) == (40 + 50 * 2 + 10 * 3, False)
    assert outlook.text(40.0, 0.2) == "all stages about 2 min 50 s at a guess"
    nothing = Ahead("evaluate", "x", 0.0)
    assert left(Outlook(SUPERNET, (NETWORK, nothing)), 40.0, 0.2) == (140, True)


def test_what_was_measured_last_counts_at_the_end_of_a_stage() -> None:
    outlook = Outlook(SUPERNET, (NETWORK,), rest=20.0)
    assert left(outlook, 0.0, 0.0) == (0.0, False)  # nothing to measure by
    assert left(outlook, 40.0, 0.2) == (40 + 20 * 2 + 50 * 2, True)
    assert left(outlook, 0.0, 0.0) == (20 * 2 + 50 * 2, True)
    assert outlook.stage_left(40.0) == 40 + 20 * 2


def test_estimates_are_corrected_by_what_was_measured() -> None:
    begun = Outlook(SUPERNET, (NETWORK, SEARCH), estimated=True)
    assert left(begun, 0.0, 1.0) == (60.0, True)
    assert left(begun, 150.0, 1.0) == (150 + 60 * 1.5, True)
    search = Outlook(NETWORK, (SEARCH,), [(SUPERNET, 300.0)], estimated=True)
    assert left(search, 50.0, 1.0)[0] == pytest.approx(50 + 10 * 350 / 150)


def test_the_last_stage_has_nothing_to_add() -> None:
    assert Outlook(SUPERNET).text(40.0, 0.2) == ""


def test_work(configs: Configs) -> None:
    cfg = configs()
    cfg.SUPERNET.CHECK.PATHS = 0
    # Six iterations of two images of 48 to 64 pixels, forward and backward.
    steps = 3 * 2 * 56**2 / 1e6
    assert works_of(cfg, "train") == (pytest.approx(6 * steps), 0)
    # Of four operations each; the path alone gets a quarter of the updates, or all.
    cfg.SUPERNET.CHECK.PATHS = 2
    operations = 4
    assert works_of(cfg, "train") == pytest.approx((6 * steps, round(6 / operations) * steps))
    cfg.SUPERNET.PATH_SAMPLING = "fair"
    assert works_of(cfg, "train") == pytest.approx((6 * operations * steps, 6 * steps))
    cfg.SUPERNET.PATH_SAMPLING, cfg.SUPERNET.CHECK.STANDALONE = "sandwich", 5
    cfg.MODEL.DETNAS.SPACE = "detnas_demo"  # one with a smallest and a largest path
    assert works_of(cfg, "train") == pytest.approx((6 * 4 * steps, 5 * steps))
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    assert works_of(cfg, "train") == (pytest.approx(6 * steps), 0)
    assert work_of(cfg, "evaluate") == 0
    cfg = configs.search()
    # Three generations of four, 4 images to calibrate and 4 to score.
    assert work_of(cfg, "search") == pytest.approx(3 * 4 * (4 + 4) * 48**2 / 1e6)
    cfg = configs("classifier")
    cfg.SUPERNET.CHECK.PATHS = 0
    assert work_of(cfg, "train") == pytest.approx(3 * 6 * 2 * 32**2 / 1e6)


def test_iterations_in_which_the_architecture_learns_count_twice(configs: Configs) -> None:
    cfg = configs()
    cfg.HIT_SEARCH.ARCH_START_ITER = 2
    assert steps_of(cfg, 6) == 6  # nothing is relaxed
    cfg.MODEL.HIT.SEARCHABLE_PARTS = ["head"]
    assert [steps_of(cfg, i) for i in (1, 2, 3, 6)] == [1, 2, 4, 10]
    assert works_of(cfg, "gradient") == (pytest.approx(10 * 3 * 2 * 56**2 / 1e6), 0)


def test_stages_side_by_side_count_once() -> None:
    network = replace(NETWORK, beside=True)
    finished = [(NETWORK, 50.0)]
    one_by_one = left(Outlook(SUPERNET, (SEARCH, *[NETWORK] * 3), finished), 40.0, 0.2)[0]
    beside = Outlook(SUPERNET, (SEARCH, *[network] * 3), finished, jobs=2)
    assert left(beside, 40.0, 0.2)[0] == one_by_one - 50
