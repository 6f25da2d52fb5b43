"""What a stage of a pipeline tells while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from detnas_d2.engine.outlook import Ahead, Outlook
from detnas_d2.engine.supernet_check import scores
from detnas_d2.engine.telling import (
    PROGRESS_FILE,
    Teller,
    afterwards,
    outlook_text,
    tell,
    tell_part,
    telling,
)
from detnas_d2.engine.trainers.progress import Events, TellProgress, ToldLoader
from detnas_d2.utils.screen import Line
from tests.engine.tiny_runs import Configs
from tests.helpers import scalars_in

LATER = (Ahead("train", "retrain.yaml", 50.0),)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def teller_of(
    folder: Path, clock: Clock, outlook: Outlook | None = None, line: Line | None = None
) -> Teller:
    outlook = outlook or Outlook(Ahead("train", "supernet.yaml", 100.0), LATER)
    return Teller("[1/2] supernet", str(folder), outlook, line, clock)


def test_line(tmp_path: Path, clock: Clock) -> None:
    teller = teller_of(tmp_path, clock)
    assert teller.text() == "[1/2] supernet: begins"
    teller.tell("iterations", 0, 9000)
    assert teller.text() == "[1/2] supernet: 0 % of 9,000 iterations"
    clock.now += 60.0
    teller.tell("iterations", 900, 9000, note="loss 0.532")
    # A minute for a tenth: nine for the rest, five for half as much work.
    assert teller.text() == (
        "[1/2] supernet: 10 % of 9,000 iterations | ETA 9 min, all stages about 14 min | loss 0.532"
    )
    clock.now += 60.0
    assert "| ETA 8 min, all stages about 13 min |" in teller.text()
    teller.tell("iterations", 1000, 9000, eta=30.0)
    assert teller.text().startswith("[1/2] supernet: 11 % of 9,000 iterations | ETA 30 s, all")


def test_what_was_done_before_this_start_took_no_time(tmp_path: Path, clock: Clock) -> None:
    teller = teller_of(tmp_path, clock)
    teller.tell("iterations", 50, 100)
    clock.now += 10.0
    teller.tell("iterations", 60, 100)
    assert teller.status()["eta_seconds"] == 40.0
    assert teller.status()["all_seconds"] == 40.0 + 50.0  # 1 s per unit


def test_parts(tmp_path: Path, clock: Clock) -> None:
    teller = teller_of(tmp_path, clock)
    teller.tell_part("checking 4 fixed paths: inference", 2, 8)
    assert teller.text() == "[1/2] supernet: checking 4 fixed paths: inference 25 %"
    teller.tell("iterations", 0, 100)
    clock.now += 10.0
    teller.tell("iterations", 50, 100, note="loss 1.000")
    teller.tell_part("evaluating", 1, 5)
    clock.now += 2.0
    teller.tell_part("evaluating", 2, 5)
    # Of the ten seconds of training two are over by the clock; six of the evaluation are left.
    assert teller.text() == (
        "[1/2] supernet: 50 % of 100 iterations, evaluating 40 % | ETA 14 s, all stages about 24 s "
        "| loss 1.000"
    )
    teller.tell("iterations", 51, 100, eta=9.0)
    assert teller.status()["part"] == ""


def test_an_evaluation_is_all_of_its_stage(tmp_path: Path, clock: Clock) -> None:
    teller = teller_of(tmp_path, clock, Outlook(Ahead("evaluate", "x", 0.0), LATER))
    teller.tell_part("evaluating", 1, 9)
    clock.now += 1.0
    teller.tell_part("evaluating", 3, 9)
    assert teller.text().startswith("[1/2] supernet: 33 % of 9 batches, evaluating | ETA 3 s, all")


def test_an_evaluation_of_several_networks_counts_them(tmp_path: Path, clock: Clock) -> None:
    teller = teller_of(tmp_path, clock, Outlook(Ahead("evaluate", "x", 0.0), LATER))
    teller.tell("members", 0, 4)
    clock.now += 2.0
    teller.tell("members", 1, 4)
    teller.tell_part("evaluating", 3, 9)
    assert teller.text().startswith(
        "[1/2] supernet: 25 % of 4 members, evaluating 33 % | ETA 6 s, all"
    )


def test_file(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / PROGRESS_FILE
    with telling(teller_of(tmp_path, clock)):
        tell("iterations", 1, 4, note="loss 1.000")
        clock.now += 1.0
        tell("iterations", 2, 4, note="loss 1.000")
        assert json.loads(file.read_text())["done"] == 1  # not at once
        clock.now += 1.0
        tell("iterations", 3, 4, note="loss 0.500")
        read = json.loads(file.read_text())
        assert read.pop("time") > 0
        assert read == {
            "what": "iterations",
            "done": 3,
            "total": 4,
            "part": "",
            "note": "loss 0.500",
            "eta_seconds": 1.0,
            "all_seconds": 1.0 + 50 * 0.04,  # 1 s for a quarter of 100 units
            "all_measured": True,
        }
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="full"), telling(teller_of(tmp_path, clock)):
        tell("iterations", 3, 4)
        raise OSError("full")
    assert file.exists()  # how far it came


def test_nobody_listens_outside_a_pipeline() -> None:
    tell("iterations", 1, 2)
    tell_part("evaluating", 1, 2)
    with afterwards("one path alone"):
        assert outlook_text(40.0, 0.2) == ""


def test_text_of_detectron2s_line(tmp_path: Path, clock: Clock) -> None:
    with telling(teller_of(tmp_path, clock)):
        assert outlook_text(40.0, 0.2) == " (all stages about 2 min 20 s)"
    assert outlook_text(40.0, 0.2) == ""


def test_what_comes_after_the_main_part(tmp_path: Path, clock: Clock) -> None:
    outlook = Outlook(Ahead("train", "supernet.yaml", 100.0), LATER, rest=25.0)
    with telling(teller := teller_of(tmp_path, clock, outlook)):
        tell("iterations", 0, 100)
        clock.now += 50.0
        tell("iterations", 50, 100)
        assert teller.status()["eta_seconds"] == 50 + 25
        assert teller.status()["all_seconds"] == 50 + 25 + 50
        with afterwards("one path alone"):
            tell("iterations", 0, 20, eta=40.0)
            assert teller.status()["eta_seconds"] == 40
            # 40 s for 25 units.
            assert teller.status()["all_seconds"] == 40 + 50 * 1.6
            assert teller.text().startswith("[1/2] supernet, one path alone: 0 % of 20")
        assert teller.title == "[1/2] supernet"


class Trainer:
    start_iter, iter, max_iter = 2, 2, 6

    def __init__(self, storage: EventStorage) -> None:
        self.storage = storage


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What is told, by a teller that only listens."""
    calls: list[tuple[Any, ...]] = []

    class Listener(Teller):
        def tell(self, *args: Any, **keys: Any) -> None:
            calls.append((*args, *keys.values()))

        def tell_part(self, *args: Any) -> None:
            calls.append(args)

    with telling(Listener("", ".", Outlook(Ahead("train", "", 1.0)))):
        yield calls


def step(hook: TellProgress, clock: Clock, seconds: float, **scalars: float) -> None:
    hook.trainer.storage.put_scalars(**scalars, smoothing_hint=False)
    clock.now += seconds
    hook.after_step()
    hook.trainer.iter += 1


def hook_of(cfg: CfgNode, clock: Clock) -> TellProgress:
    hook = TellProgress(cfg, clock)
    hook.trainer = Trainer(EventStorage(2))
    hook.before_train()
    return hook


def test_training_tells(configs: Configs, clock: Clock, told: list[tuple[Any, ...]]) -> None:
    hook = hook_of(configs(), clock)
    step(hook, clock, 30.0, total_loss=2.0)  # a first iteration takes longer
    step(hook, clock, 3.0, **{"total_loss": 1.0, "bbox/AP": 31.416, "supernet/score_mean": 7.0})
    step(hook, clock, 5.0, total_loss=1.0)
    assert told == [
        ("iterations", 2, 6, None, ""),
        ("iterations", 3, 6, None, "loss 2.000"),
        ("iterations", 4, 6, 6.0, "loss 1.500, fixed paths 7.00, bbox/AP 31.42"),
        ("iterations", 5, 6, 4.0, "loss 1.000, fixed paths 7.00, bbox/AP 31.42"),
    ]


def test_gradient_search_tells(configs: Configs, clock: Clock, told: list[tuple[Any, ...]]) -> None:
    cfg = configs()
    cfg.MODEL.HIT.SEARCHABLE_PARTS, cfg.HIT_SEARCH.ARCH_START_ITER = ["head"], 4
    hook = hook_of(cfg, clock)
    for _ in range(2):
        step(hook, clock, 2.0, **{"arch/expected_gmacs": 3.456})
    assert told[-1] == ("iterations", 4, 6, 8.0, "expected 3.46 GMACs")  # two, of two steps each


def test_checking_a_supernet_tells(told: list[tuple[Any, ...]]) -> None:
    scores._passed("inference", 4, 1, 8)
    assert told == [("checking 4 fixed paths: inference", 1, 8)]


def test_events_of_a_resumed_training(tmp_path: Path) -> None:
    """Killed after iteration 5, it goes on with 3: every point once."""
    for first, last in ((0, 5), (3, 7)):
        events = Events(str(tmp_path), lambda first=first: first)
        with EventStorage(first) as storage:
            for storage.iter in range(first, last + 1):
                storage.put_scalar("total_loss", 10.0 * first + storage.iter, smoothing_hint=False)
                events.write()
        events.close()
    losses = [0.0, 1.0, 2.0, 33.0, 34.0, 35.0, 36.0, 37.0]
    assert scalars_in(tmp_path) == {"total_loss": list(enumerate(losses))}


def test_reading_test_images_tells(told: list[tuple[Any, ...]]) -> None:
    loader = ToldLoader(["a", "b"])
    assert len(loader) == 2 and list(loader) == ["a", "b"]
    assert told == [("evaluating", 1, 2), ("evaluating", 2, 2)]
