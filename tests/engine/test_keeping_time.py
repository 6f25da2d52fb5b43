"""Stages that would take too long are ended where they can go on, and only then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

from detnas_d2.engine import prepare, train
from detnas_d2.engine.keeping_time import (
    Allowance,
    Expected,
    KeepTime,
    Late,
    OutOfTime,
    Watch,
    current_watch,
    typical,
    watching,
)
from detnas_d2.engine.trainers.trainer import Trainer
from tests.engine.tiny_runs import Configs, arguments
from tests.helpers import detector_config

ARGS = arguments()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def looked(watch: Watch, share: float, slowness: float) -> Late | None:
    try:
        watch.look(share, Late(7, slowness))
    except OutOfTime as out:
        return out.late
    return None


def test_a_stage_may_take_a_quarter_longer() -> None:
    clock = Clock()
    watch = Watch(Allowance(Expected(10.0, 80.0, 10.0)), clock)
    watch.begin(0.0)
    clock.now += 50.0  # of 100, half of the loop done: 50 are left, 75 allowed
    assert looked(watch, 0.5, 1.0) is None and looked(watch, 0.5, 1.4) is None
    assert looked(watch, 0.5, 1.6) == Late(7, 1.6)
    clock.now += 30.0  # a pause: at the planned pace it is late, too
    assert looked(watch, 0.5, 1.0) == Late(7, 1.0)
    assert looked(watch, 0.9, 1.0) is None


def test_what_was_done_before_this_start_is_not_expected_again() -> None:
    clock = Clock()
    watch = Watch(Allowance(Expected(10.0, 80.0, 10.0)), clock)
    watch.begin(0.75)  # 40 s are expected, 50 allowed
    clock.now += 30.0
    assert looked(watch, 0.9, 1.0) is None and looked(watch, 0.9, 1.2) == Late(7, 1.2)


def test_late_stages_are_left_alone_near_the_end_and_while_there_is_time() -> None:
    clock = Clock()
    watch = Watch(Allowance(Expected(0.0, 10.0, 0.0), until=0.5), clock)
    watch.begin(0.0)
    assert looked(watch, 0.49, 9.0) == Late(7, 9.0) and looked(watch, 0.5, 9.0) is None
    # Given all the time that is left it may still get quicker.
    watch = Watch(Allowance(Expected(0.0, 10.0, 0.0), given=60.0), clock)
    watch.begin(0.0)
    clock.now += 54.0
    assert looked(watch, 0.5, 20.0) is None
    clock.now += 2.0
    assert looked(watch, 0.5, 0.1) == Late(7, 0.1)


def test_only_within_the_block() -> None:
    assert current_watch() is None
    with watching(Allowance(Expected(0.0, 1.0, 0.0))):
        assert current_watch() is not None
    with watching(None):
        assert current_watch() is None


def ended(
    allowance: Allowance, seconds: list[float], cfg: CfgNode | None = None, start: int = 0
) -> Late | None:
    """How a training of iterations of these seconds is ended; each is followed by one second of
    evaluation.
    """
    clock, cfg = Clock(), cfg or detector_config()
    cfg.SOLVER.CHECKPOINT_PERIOD = 10
    hook = KeepTime(Watch(allowance, clock), cfg)
    with EventStorage(start) as storage:
        hook.trainer = SimpleNamespace(
            storage=storage, start_iter=start, max_iter=start + len(seconds), iter=start
        )
        hook.before_train()
        for number, second in enumerate(seconds, start=start):
            storage.iter = hook.trainer.iter = number
            if number - start >= 2:  # as Detectron2's timer
                storage.put_scalar("time", second)
            clock.now += second + 1.0
            try:
                hook.after_step()
            except OutOfTime as out:
                return out.late
    return None


def test_a_training_is_ended_after_a_checkpoint() -> None:
    slow = [1.0] * 10 + [9.0] * 50
    allowance = Allowance(Expected(60.0, 60.0, 0.0))
    assert ended(allowance, [1.0] * 60) is None
    assert ended(allowance, slow) == Late(20, 9.0)
    assert ended(Allowance(Expected(60.0, 90.0, 0.0)), slow, start=30) == Late(50, 9.0)
    # Where nothing is kept, at any time; and a busy second is no pace.
    often, one = Allowance(Expected(60.0, 60.0, 0.0), every=5), [1.0] * 7 + [20.0] + [1.0] * 52
    assert ended(often, [9.0] * 60) == Late(5, 9.0)
    assert ended(often, one) is None


def test_a_busy_second_is_no_pace_a_busy_machine_is() -> None:
    assert typical([3.0]) == 3.0
    assert typical([1.0, 50.0, 3.0]) == 2.0
    assert typical([1.0] * 19 + [50.0]) == 1.0
    assert typical([1.0, 3.0] * 10) == pytest.approx(34 / 18)


def test_an_iteration_with_two_steps_counts_as_two(configs: Configs) -> None:
    cfg = SimpleNamespace(SOLVER=SimpleNamespace(CHECKPOINT_PERIOD=10))
    steps = lambda cfg, done: done + max(0, done - 30)  # noqa: E731
    allowance = Allowance(Expected(60.0, 90.0, 0.0))  # 30 of one second, 30 of two
    for factor, expected in ((1.0, None), (2.0, Late(10, 2.0))):
        seconds = [factor] * 30 + [2 * factor] * 30
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("detnas_d2.engine.keeping_time.steps_of", steps)
            found: Any = cfg
            assert ended(allowance, seconds, found) == expected


class Interrupt(HookBase):
    """Stops a training as a kill does, before an iteration."""

    def before_step(self) -> None:
        if self.trainer.iter == 7:
            raise KeyboardInterrupt


def shortened(configs: Configs, folder: Path, *, killed: bool) -> dict[str, Any]:
    """The final checkpoint of a training that is ended after 4 of 12 iterations, and then has 9."""
    cfg = configs("faster", "SOLVER.MAX_ITER", 12, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")
    cfg.OUTPUT_DIR = str(folder)
    prepare(cfg, ARGS)
    with watching(Allowance(Expected(0.0, 1e-9, 0.0))), pytest.raises(OutOfTime) as out:
        train(cfg, resume=True)
    assert out.value.late.done == 4
    assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"
    cfg.defrost()
    cfg.SOLVER.MAX_ITER = 9
    if killed:
        trainer = Trainer(cfg)
        trainer.register_hooks([Interrupt()])
        trainer.resume_or_load(resume=True)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    train(cfg, resume=True)
    found = torch.load(folder / "model_final.pth", weights_only=True)
    assert found["iteration"] == 8
    return found


def test_a_shortened_training_is_a_function_of_its_lengths(
    configs: Configs, tmp_path: Path
) -> None:
    """And of nothing else: neither of what was killed since, nor of when."""
    once, torn = (shortened(configs, tmp_path / str(killed), killed=killed) for killed in (0, 1))
    for name, value in once["model"].items():
        assert torch.equal(value, torn["model"][name]), name
    # The rate has followed the cosine of the new length to its end.
    optimizer = once["trainer"]["_trainer"]["optimizer"]
    rates = {group["lr"] for group in optimizer["param_groups"]}
    assert max(rates) == pytest.approx(0.0, abs=1e-9)
