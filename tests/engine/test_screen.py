"""What a run shows, and where it puts the rest."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler

from detnas_d2.engine import prepare
from detnas_d2.engine.screen import OnScreen, Shown, prints_logged, quiet, quiet_command
from detnas_d2.engine.trainers.schedule import LRScheduler
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.screen import Line
from tests.engine.tiny_runs import Configs, arguments


@pytest.mark.parametrize(
    ("name", "level", "shown"),
    [
        ("detectron2.utils.events", logging.INFO, True),
        ("detectron2.evaluation.testing", logging.INFO, True),
        ("detectron2", logging.INFO, False),  # the environment and the whole config
        ("detectron2.engine.defaults", logging.INFO, False),  # the whole model
        ("detectron2.data.build", logging.INFO, False),
        ("fvcore.common.checkpoint", logging.INFO, False),
        ("fvcore.common.checkpoint", logging.WARNING, True),
        ("detectron2.data.build", logging.ERROR, True),
        ("detnas_d2.search", logging.INFO, True),
        ("detnas_d2", logging.INFO, True),
        ("detnas_d2.search", logging.DEBUG, False),
        ("detnas_d2_other", logging.INFO, False),
    ],
)
def test_progress_warnings_and_results_are_shown(name: str, level: int, shown: bool) -> None:
    record = logging.LogRecord(name, level, "file", 1, "text", None, None)
    assert Shown().filter(record) is shown


def test_details_are_in_the_file(configs: Configs, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = configs()
    prepare(cfg, arguments())
    logging.getLogger("detectron2.data.build").info("a table of class counts")
    logging.getLogger("detnas_d2.search").info("a line of progress")
    with prints_logged(logging.getLogger("detnas_d2.engine")):
        print("a table of pycocotools")
    screen = capsys.readouterr().out
    assert "a line of progress" in screen and f"The details are in {cfg.OUTPUT_DIR}" in screen
    assert len(screen.splitlines()) <= 6
    file = Path(cfg.OUTPUT_DIR, "log.txt").read_text()
    details = ("Environment info", "Running with full config", "class counts", "pycocotools")
    for text in (*details, "progress"):
        assert text in file
    # Derived data lie beside what a run writes, wherever it was started.
    assert not Path("output").exists()


def test_derived_data_lie_below_the_output(configs: Configs, tmp_path: Path) -> None:
    cfg = configs("faster", "DATASETS.CACHE_DIR", "")
    prepare(cfg, arguments())
    assert {p.name for p in Path(cfg.OUTPUT_DIR, "data_cache").iterdir()} == {
        "checked",
        "search_splits",
    }
    assert not Path("data_cache").exists()


@pytest.mark.parametrize("frequent", [1, 3])
def test_the_rate_shown_is_the_base_rate(frequent: int) -> None:
    """One group per parameter, as Detectron2 makes them; biases learn at twice the rate."""
    rates = [0.04] * frequent + [0.02, 0.02] + [0.04] * frequent
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, 0.02)
    schedule = LRMultiplier(optimizer, ConstantParamScheduler(0.5), max_iter=3)
    shown = []

    class Trainer:
        class storage:
            @staticmethod
            def put_scalar(name: str, value: float, **_: object) -> None:
                shown.append((name, value))

    Trainer.optimizer, Trainer.scheduler = optimizer, schedule
    hook = LRScheduler(0.02)
    hook.trainer = Trainer
    hook.before_train()
    optimizer.step()
    hook.after_step()
    assert shown == [("lr", pytest.approx(0.01))]
    # The state in checkpoints of Detectron2's hook stays readable.
    assert type(hook).__qualname__ == hooks.LRScheduler.__qualname__


def test_warnings_are_shown_once(tmp_path: Path) -> None:
    screen = io.StringIO()
    logger = logging.getLogger("detnas_d2.once")
    logger.propagate = False
    handlers = [OnScreen(Line(screen), str(tmp_path / "shown")) for _ in "ab"]  # two processes
    for handler in handlers:
        logger.handlers[:] = [handler]
        logger.info("progress")
        logger.warning("%s leaks", "a.jpg")
        for error in (InputError("expected"), KeyError("a bug")):
            try:
                raise error
            except Exception:
                logger.exception("it failed")
    logger.handlers.clear()
    first, second, *rest = screen.getvalue().splitlines()
    assert (first, second) == ("warning: a.jpg leaks", "error: it failed")
    assert rest[0].startswith("Traceback") and rest[-1] == "KeyError: 'a bug'"
    assert screen.getvalue().count("Traceback") == 1


def test_lists_of_others_are_left_to_the_log(tmp_path: Path) -> None:
    screen = io.StringIO()
    for name in ("detnas_d2.lists", "fvcore.lists"):
        logger = logging.getLogger(name)
        logger.propagate, logger.handlers[:] = False, [OnScreen(Line(screen), str(tmp_path / "s"))]
        logger.warning("not in the checkpoint:\n%s", f"{name}.a\n{name}.b")
        logger.handlers.clear()
    told = "warning: not in the checkpoint:"
    assert screen.getvalue() == (
        f"{told}\ndetnas_d2.lists.a\ndetnas_d2.lists.b\n{told} 2 lines, which are in log.txt\n"
    )


def test_quiet_commands_leave_loggers_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("detnas_d2.one", "detnas_d2.two")
    screen = io.StringIO()
    with quiet_command(names, Line(screen)) as shown:
        logging.getLogger(names[0]).warning("w")
        quiet(names, Line(screen), shown)  # of a stage, in the same process
        logging.getLogger(names[0]).warning("w")
        logging.getLogger(names[1]).warning("v")
        warnings.warn("of a library", stacklevel=1)
    assert screen.getvalue() == "warning: w\nwarning: v\n"
    assert not any(logging.getLogger(name).handlers for name in names)
    assert capsys.readouterr() == ("", "")
