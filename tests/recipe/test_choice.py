"""What is chosen from data, machine and budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from detnas_d2.recipe.amounts import Budget, millions, read_budget, read_seconds
from detnas_d2.recipe.choice import anchors, choose, macs_range, sides_up_to
from detnas_d2.search_space.space import SPACES
from detnas_d2.utils.errors import InputError
from tests.recipe.values import CELLS, CPU, GPU


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("300M", Budget(macs=300_000_000)),
        ("1.3G", Budget(macs=1_300_000_000)),
        ("24 M", Budget(macs=24_000_000)),
        ("23.75M", Budget(macs=23_750_000)),
        ("1234567", Budget(macs=1_234_567)),
        ("1.234567891G", Budget(macs=1_234_567_891)),
        ("15ms", Budget(milliseconds=15)),
        ("12.3456ms", Budget(milliseconds=12.3456)),
    ],
)
def test_budgets_keep_all_digits(text: str, budget: Budget) -> None:
    assert read_budget(text) == budget
    assert read_budget(str(budget)) == budget


def test_texts_of_budgets() -> None:
    texts = ["300M", "1300M", "23.75M", "1.234567M", "15ms", "12.5ms"]
    assert [str(read_budget(text)) for text in texts] == texts
    assert str(read_budget("1.3G")) == "1300M"


@pytest.mark.parametrize("text", ["300", "0M", "-3M", "300m", "15 s", "M", "1e9M"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--budget .*: expected multiply-adds of the backbone"):
        read_budget(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("1h30m", 5400), ("90min", 5400), ("1.5h", 5400), ("45s", 45), ("1d 2h", 93600)],
)
def test_times(text: str, seconds: float) -> None:
    assert read_seconds(text) == seconds


@pytest.mark.parametrize("text", ["2", "h", "0s", "2 hours", "-1h", "2h x"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--time .*: expected hours, minutes or seconds"):
        read_seconds(text)


def test_amounts_for_people() -> None:
    assert [millions(m) for m in (8_373_120, 300e6, 1.3e9)] == ["8.37M", "300M", "1300M"]


def test_small_objects_decide_the_size_of_images() -> None:
    recipe = choose(CELLS, CPU, "detnas")
    # 16 pixels for objects of 40 in 480: 192, a size of the ladder.
    assert (recipe.side, recipe.longest) == (192, 256)
    assert choose(replace(CELLS, small=39), CPU, "detnas").side == 224
    assert choose(replace(CELLS, small=400), CPU, "detnas").side == 128
    assert choose(replace(CELLS, small=5), CPU, "detnas").side == 384
    # No larger than the images are, no smaller than is usual on a GPU.
    assert choose(replace(CELLS, small=5, short=300, long=400), CPU, "detnas").side == 256
    assert choose(CELLS, GPU, "detnas").side == 480
    assert choose(replace(CELLS, short=1080, small=8), GPU, "detnas").side == 800
    assert sides_up_to(recipe) == [192, 160, 128]
    assert choose(CELLS, CPU, "detnas", side=160).side == 160


def test_anchors_span_the_objects() -> None:
    # sqrt(160 / 10) = 4 = 2 ** 2: levels a factor of 2 apart.
    assert anchors(10, 160) == (10, 20, 40, 80, 160)
    # Objects of one size: a factor of 2.5 around it.
    assert anchors(100, 100) == (63, 80, 100, 126, 158)
    assert anchors(1, 2)[0] == 8
    scaled = choose(CELLS, CPU, "detnas").anchors
    assert scaled[0] == round(43 * 192 / 480) and scaled[-1] == round(167 * 192 / 480)


def test_shapes_and_numbers_of_objects() -> None:
    assert choose(CELLS, CPU, "detnas").ratios == (1.0,)
    assert choose(replace(CELLS, aspects=(0.4, 1.1)), CPU, "detnas").ratios == (0.5, 1.0, 2.0)
    recipe = choose(CELLS, CPU, "detnas")
    assert (recipe.detections, recipe.proposals) == (40, 60)
    crowded = choose(replace(CELLS, crowd=400), CPU, "detnas")
    assert (crowded.detections, crowded.proposals) == (100, 300)


def test_images_that_score_are_kept_from_the_supernet() -> None:
    recipe = choose(CELLS, CPU, "detnas")
    assert (recipe.validation, recipe.scoring, recipe.calibration) == (58, 58, 64)
    few = choose(replace(CELLS, train=12), CPU, "detnas")
    assert (few.validation, few.calibration) == (4, 8)
    assert choose(replace(CELLS, train=9000), CPU, "detnas").validation == 200
    own = choose(replace(CELLS, val=50), CPU, "detnas")
    assert (own.validation, own.scoring) == (0, 50)
    # So many that every candidate would take minutes.
    assert choose(replace(CELLS, val=5000), CPU, "detnas").validation == 58
    assert choose(CELLS, CPU, "hit").validation == 146


def test_batch_and_rate_follow_the_processes() -> None:
    one = choose(CELLS, CPU, "detnas")
    assert (one.batch, one.rate, one.network_rate) == (4, 0.003, 0.006)
    three = choose(CELLS, replace(CPU, processes=3), "detnas")
    assert three.batch == 6 and three.rate == pytest.approx(0.003 * 1.5**0.5)
    eight = choose(CELLS, replace(GPU, processes=8), "detnas")
    assert eight.batch == 64 and eight.rate == pytest.approx(0.08)
    assert eight.network_rate == pytest.approx(0.04)
    assert choose(CELLS, replace(GPU, memory=8.0), "detnas").batch == 4


@pytest.mark.parametrize(
    ("macs", "space"),
    [
        (None, "detnas_demo"),
        (30_000_000, "detnas_demo"),
        (300_000_000, "detnas_small"),
        (150_000_000, "detnas_small_elastic"),
        (1_300_000_000, "detnas_large"),
    ],
)
def test_the_budget_chooses_the_space(macs: int | None, space: str) -> None:
    recipe = choose(CELLS, CPU, "detnas", macs=macs)
    assert recipe.space == space and recipe.max_macs == (macs or 48_000_000)
    low, high = macs_range(SPACES[space])
    assert low <= recipe.max_macs <= high


@pytest.mark.parametrize("macs", [1_000_000, 700_000_000, 10_000_000_000])
def test_a_budget_outside_every_space_names_the_ranges(macs: int) -> None:
    with pytest.raises(InputError) as error:
        choose(CELLS, CPU, "detnas", macs=macs)
    assert "detnas_demo 14.8M to 98.5M" in str(error.value)
    assert "detnas_small 237M to 365M" in str(error.value) and "\n" not in str(error.value)


def test_hit_detector() -> None:
    assert choose(CELLS, CPU, "hit").space == "hit_tiny"
    assert choose(CELLS, GPU, "hit").space == "hit"
