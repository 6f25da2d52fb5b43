"""A late stage's decision on disk: what it leaves, also of a process that is killed on the way."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from detnas_d2.engine.keeping_time import Late
from detnas_d2.pipeline.adoption import is_of_this_config
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.state import NOT_STARTED, STOPPED, running
from detnas_d2.recipe import jobs as jobs_module
from detnas_d2.recipe import progress
from detnas_d2.recipe import record as record_module
from detnas_d2.recipe import session as session_module
from detnas_d2.recipe.jobs import with_jobs
from detnas_d2.recipe.record import Record, read_record
from detnas_d2.recipe.session import Session
from tests.recipe.begun import begin, config, finish, state
from tests.recipe.values import GPU, plan, record_of


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test itself takes is no time of a run."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 7.0))


def known(record: Record) -> Record:
    """What two processes that decide the same agree on: not how long they took for it."""
    rounded = {name: round(value, 3) for name, value in asdict(record.plan.rates).items()}
    plan = replace(record.plan, rates=type(record.plan.rates)(**rounded))
    changes = tuple(
        replace(change, worked=round(change.worked), at=0.0) for change in record.changes
    )
    return replace(record, plan=plan, changes=changes, used=0.0)


def supernet_is_late(folder: Path) -> tuple[Record, Callable[[Session], None]]:
    record = record_of(folder, used=20.0)
    begin(record, "supernet")
    return record, lambda session: session.late("supernet", Late(120, 3.0))


def network_is_late(folder: Path) -> tuple[Record, Callable[[Session], None]]:
    record = record_of(folder, used=20.0)
    for name in ("supernet", "search", "inherited"):
        finish(record, name, record.plan.seconds_of(name, record.schedule))
    begin(record, "searched")
    return record, lambda session: session.late("searched", Late(40, 4.0))


def test_a_late_supernet_goes_on_with_the_config_of_fewer_iterations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, be_late = supernet_is_late(tmp_path)
    session = Session(record)
    be_late(session)
    now = session.record
    assert now == read_record(str(tmp_path)) and not now.is_edited()
    assert 120 < now.schedule.supernet < 1200
    assert config(now, "supernet.yaml")["SOLVER"]["MAX_ITER"] == now.schedule.supernet
    assert state(now, "supernet") == STOPPED  # not "outdated", as of another config
    assert (tmp_path / "supernet" / "model_0000119.pth").exists()
    (change,) = now.changes
    assert (change.stage, change.done, change.planned) == ("supernet", 120, 1200)
    assert (change.now, change.kept) == (now.schedule.supernet, True)
    assert change.at == pytest.approx(120, abs=0.1)
    assert now.plan.rates.step == pytest.approx(3 * record.plan.rates.step)
    shown = capsys.readouterr().out
    assert (
        "supernet would take too long, at 3.0 times the planned time: goes on after 120," in shown
    )
    # Of its share, 120 iterations are done: fewer than the allowance counts from the beginning.
    allowance = session.allowance("supernet")
    assert allowance is not None
    assert allowance.expected.loop == pytest.approx(now.schedule.supernet * now.plan.rates.step)


def test_what_a_stage_has_worked_counts_once(tmp_path: Path) -> None:
    record, be_late = supernet_is_late(tmp_path)
    session = Session(record)
    assert session.used == pytest.approx(120, abs=0.1)
    be_late(session)
    assert session.record.used == pytest.approx(20, abs=0.1)
    assert session.record.changes[0].worked == pytest.approx(100, abs=0.1)
    for _ in range(2):  # the folder tells the rest, to every process that goes on
        assert Session(session.record).used == pytest.approx(120, abs=0.1)


def test_a_run_that_is_interrupted_twice_in_a_stage_counts_it_once(tmp_path: Path) -> None:
    record = record_of(tmp_path, used=20.0)
    finish(record, "supernet", 150.0)
    begin(record, "search")
    for _ in range(3):
        session = Session(record)
        assert session.used == pytest.approx(120, abs=0.1)
        record = session.record
        assert record == read_record(str(tmp_path)) and record.used == pytest.approx(20, abs=0.1)


def test_a_late_network_begins_again(tmp_path: Path) -> None:
    record, be_late = network_is_late(tmp_path)
    session = Session(record)
    planned = session.record.schedule.tuning
    be_late(session)
    now = session.record
    assert 20 <= now.schedule.tuning < planned and not now.changes[-1].kept
    assert state(now, "searched") == NOT_STARTED and not (tmp_path / "searched").exists()
    assert config(now, "finetune.yaml")["SOLVER"]["MAX_ITER"] == now.schedule.tuning
    # What it had learned is gone, the time is not.
    for used in (now.used, Session(now).used):
        assert used == pytest.approx(120, abs=0.1)
    for name in ("supernet", "search", "inherited"):
        assert state(now, name) == "done"
    # Stopped once more, with the new length, it stays as it is.
    begin(now, "searched")
    assert Session(now).record.changes == now.changes
    assert state(now, "searched") == STOPPED and (tmp_path / "searched").exists()


def test_a_late_comparison_is_given_up(tmp_path: Path) -> None:
    record, _ = network_is_late(tmp_path)
    finish(record, "searched", record.plan.seconds_of("searched", record.schedule))
    begin(record, "shufflenetv2")
    session = Session(record)
    session.late("shufflenetv2", Late(40, 4.0))
    pipeline = config(session.record, "pipeline.yaml")
    assert pipeline["TABLE"] == ["searched", "inherited"]
    names = [stage["NAME"] for stage in pipeline["STAGES"]]
    assert names == ["supernet", "search", "inherited", "searched"]
    assert not (tmp_path / "shufflenetv2").exists()
    assert all(state(session.record, name) == "done" for name in names)
    again = Session(session.record)
    assert again.record.schedule == session.record.schedule and not again.done("searched")


def test_a_late_search_keeps_its_candidates(tmp_path: Path) -> None:
    record = record_of(tmp_path, used=20.0)
    finish(record, "supernet", record.plan.seconds_of("supernet", record.schedule))
    session = Session(record)
    planned = session.record.schedule.generations
    folder = begin(session.record, "search")
    header = {"version": 2, "fingerprint": {"searcher": {"settings": {"generations": planned}}}}
    (folder / "search.json").write_text(json.dumps(header))
    session.late("search", Late(2, 4.0))
    generations = session.record.schedule.generations
    assert 2 <= generations < planned
    assert config(session.record, "search.yaml")["SEARCH"]["GENERATIONS"] == generations
    found = json.loads((folder / "search.json").read_text())
    assert found["fingerprint"]["searcher"]["settings"]["generations"] == generations


def kill_before_the_configs(patched: pytest.MonkeyPatch) -> None:
    def write_files(*_: object) -> None:
        raise Killed

    patched.setattr(record_module, "write_files", write_files)


def kill_between_configs(patched: pytest.MonkeyPatch) -> None:
    write_files = record_module.write_files

    def some(folder: str, texts: dict[str, str]) -> None:
        write_files(folder, dict(list(texts.items())[:2]))
        raise Killed

    patched.setattr(record_module, "write_files", some)


def kill_after_the_configs(patched: pytest.MonkeyPatch) -> None:
    save, calls = Record.save, []

    def once(self: Record) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise Killed
        save(self)

    patched.setattr(Record, "save", once)


def kill_before_the_stage(patched: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise Killed

    patched.setattr(session_module, "adopt", killed)
    patched.setattr(session_module, "start_over", killed)


@pytest.mark.parametrize("case", [supernet_is_late, network_is_late])
@pytest.mark.parametrize(
    "kill",
    [
        kill_before_the_configs,
        kill_between_configs,
        kill_after_the_configs,
        kill_before_the_stage,
    ],
)
def test_what_a_killed_process_has_decided_is_carried_out(
    case: Callable[[Path], tuple[Record, Callable[[Session], None]]],
    kill: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, be_late = case(tmp_path)
    session = Session(record)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill(patched)
        be_late(session)
    left = read_record(str(tmp_path))
    assert left is not None and len(left.changes) == 1
    again = Session(left)
    assert known(again.record) == known(replace(left, files=again.record.files))
    assert again.record.files and not again.record.is_edited()
    assert again.used == pytest.approx(120, abs=0.1)
    name = left.changes[0].stage
    pipeline = read_pipeline(again.record.pipeline_file)
    if name == "supernet":
        assert state(again.record, name) == STOPPED
        assert is_of_this_config(pipeline, pipeline.known_stage(name))
    else:
        assert state(again.record, name) == NOT_STARTED


def test_edited_configs_are_left_alone(tmp_path: Path) -> None:
    record, be_late = supernet_is_late(tmp_path)
    session = Session(record)
    assert session.allowance("supernet") is not None
    file = Path(record.folder, "finetune.yaml")
    file.write_text(file.read_text() + "SEED: 1\n")
    be_late(session)
    assert session.record.schedule == record.schedule and not session.record.changes
    assert session.allowance("supernet") is None
    without = Session(record_of(tmp_path / "other", seconds=None))
    assert without.allowance("supernet") is None


def side_by_side(folder: Path, names: tuple[str, ...]) -> Record:
    """A run in which some networks are trained at the same time, for 100 s by now."""
    record = record_of(folder, used=20.0, plan=replace(plan(), jobs=2))
    for name in ("supernet", "search", "inherited"):
        finish(record, name, record.plan.seconds_of(name, record.schedule))
    for name in names:
        begin(record, name)
    return record


def test_time_of_stages_side_by_side_counts_once(tmp_path: Path) -> None:
    record = side_by_side(tmp_path, ("searched", "shufflenetv2"))
    for _ in range(2):
        session = Session(record)
        assert session.used == pytest.approx(120, abs=0.1)
        record = session.record
        assert record.used == pytest.approx(20, abs=0.1)


def test_a_late_network_ends_those_next_to_it(tmp_path: Path) -> None:
    record = side_by_side(tmp_path, ("searched", "shufflenetv2"))
    finish(record, "random_1", 50.0)  # cheaper than the others
    pipeline = read_pipeline(record.pipeline_file)
    cfg = pipeline.config_of(pipeline.known_stage("random_1"))
    (tmp_path / "random_1" / "config.yaml").write_text(cfg.dump())
    session = Session(record)
    planned = session.record.schedule.tuning
    assert session.alone("search") and not session.alone("inherited")
    assert session.ends_others("searched") and not session.ends_others("shufflenetv2")
    session.late("searched", Late(40, 4.0))
    now = session.record
    assert 20 <= now.schedule.tuning < planned and now.used == pytest.approx(120, abs=0.1)
    for name in ("searched", "shufflenetv2", "random_1"):
        assert not (tmp_path / name).exists()
    assert state(now, "inherited") == "done"
    again = Session(now)
    assert known(again.record) == known(now) and again.used == pytest.approx(120, abs=0.1)


def test_a_late_comparison_leaves_those_next_to_it_alone(tmp_path: Path) -> None:
    record = side_by_side(tmp_path, ("shufflenetv2", "random_1"))
    finish(record, "searched", record.plan.seconds_of("searched", record.schedule))
    session = Session(record)
    session.allowance("random_1")
    with running(str(tmp_path / "random_1"), "its own"):
        session.late("shufflenetv2", Late(40, 4.0))
    now = session.record
    waiting = [f"random_{number}" for number in range(2, 6)]
    assert now.schedule.given_up == ("shufflenetv2", *waiting)
    assert not (tmp_path / "shufflenetv2").exists() and (tmp_path / "random_1").exists()
    names = [stage["NAME"] for stage in config(now, "pipeline.yaml")["STAGES"]]
    assert names == ["supernet", "search", "inherited", "searched", "random_1"]
    assert now.used == pytest.approx(20, abs=0.1)


def test_a_stage_has_begun_before_its_process_tells(tmp_path: Path) -> None:
    record = side_by_side(tmp_path, ())
    session = Session(record)
    session.allowance("searched")
    assert session._progress().working == {"searched": 0.0}
    assert not session.done("inherited")


def test_a_run_goes_on_with_another_number_of_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "jobs_of", lambda args: {"auto": 4}.get(args.jobs, 3))
    record = record_of(tmp_path, plan=replace(plan(), jobs=2))

    def jobs(asked: str, record: Record = record) -> int:
        return with_jobs(record, argparse.Namespace(jobs=asked, num_gpus=1)).plan.jobs

    assert (jobs(""), jobs("3"), jobs("auto")) == (2, 3, 3)  # networks of ten minutes
    on_gpus = record_of(tmp_path / "gpus", plan=replace(plan(machine=GPU), jobs=8), seconds=None)
    assert (jobs("", on_gpus), jobs("3", on_gpus)) == (4, 3)
