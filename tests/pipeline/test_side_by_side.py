"""Stages at the same time: the same results, which ones wait, what a failure ends."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from detnas_d2.engine.keeping_time import Late
from detnas_d2.pipeline import missing, side_by_side
from detnas_d2.pipeline.experiment import Run, read_experiment
from detnas_d2.pipeline.planning import Planner
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.shown import Screen
from detnas_d2.pipeline.side_by_side import alone_among, jobs_of, run_side_by_side
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.locks import exclusive
from tests.campaigns.tiny import detnas_pipeline
from tests.engine.tiny_runs import arguments


def jobs(count: object, file: str = "", *opts: str, **values: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(arguments(file, *opts)), "jobs": count, **values})


def products(runs: Path) -> dict[str, Any]:
    """What a run found: weights of its networks, candidates, table."""
    found: dict[str, Any] = {"table": json.loads((runs / "table.json").read_text())}
    for name in ("supernet", "searched", "random_1"):
        found[name] = torch.load(runs / name / "model_final.pth", weights_only=True)["model"]
    records = (runs / "search" / "history.jsonl").read_text().splitlines()
    for record in map(json.loads, records):
        found[f"candidate {record['index']}"] = record["path"], record["fitness"]
    return found


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    else:
        assert found == expected


def test_results_are_those_of_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(detnas_pipeline(tmp_path, generations=2, scoring_workers=1))
    assert run_pipeline(arguments(file, "SEARCH.SCORING_WORKERS", "0"))  # which alters nothing
    runs = tmp_path / "runs"
    expected = products(runs)
    shutil.rmtree(runs)
    capsys.readouterr()
    assert run_pipeline(jobs("2", file))
    assert_equal(products(runs), expected)
    lines = [line.split(" in ")[0] for line in capsys.readouterr().out.splitlines()]
    begins = ("[1/4] supernet: train train.yaml", "[4/4] random_1: train retrain.yaml")
    assert tuple(line for line in lines if line.startswith("["))[:2] == begins
    assert sum(line.endswith(": finished") for line in lines) == 4
    assert not any("done before" in line for line in lines)
    # In processes of their own, which are gone.
    owner = json.loads((runs / "supernet" / "running.lock").read_text())["pid"]
    assert (
        run_pipeline(jobs("2", file)) and "[4/4] random_1: done before" in capsys.readouterr().out
    )
    assert not Path(f"/proc/{owner}").exists()


def test_a_failure_ends_the_pipeline(tmp_path: Path) -> None:
    file = str(detnas_pipeline(tmp_path, generations=2, scoring_workers=0))
    with pytest.raises(InputError, match="nowhere.pth"):
        run_pipeline(jobs("2", file, "MODEL.WEIGHTS", str(tmp_path / "nowhere.pth")))


def test_with_several_seeds_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What fails is tried once."""
    file = str(detnas_pipeline(tmp_path, networks=0, generations=1, scoring_workers=0))
    (tmp_path / "runs" / "seed0" / "supernet" / "log.txt").mkdir(parents=True)
    assert not run_pipeline(jobs("2", file, "SEEDS", "0,1"))
    out = capsys.readouterr().out
    assert out.count("[1/4] seed 0: supernet: failed: ") == 1
    assert "[4/4] seed 1: search: finished" in out
    assert "seed 0: search" in out and "[2/4]" not in out


class Processes:
    """Workers that end a stage when they are told to."""

    def __init__(self) -> None:
        self.running: dict[str, Future[Any]] = {}
        self.most = 0

    def submit(self, key: str, job: Any) -> Future[Any]:
        self.running[job.run.stage.name] = Future()
        self.most = max(self.most, sum(not future.done() for future in self.running.values()))
        return self.running[job.run.stage.name]


def test_what_waits_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three at a time, in the order of the file; a search's stages after it."""
    processes = Processes()

    @contextmanager
    def places(count: int, gpus: int) -> Iterator[list[Processes]]:
        yield [processes] * count

    def wait(running: dict[Future[Any], Any], **_: object) -> tuple[set[Future[Any]], None]:
        begun.append([run.stage.name for run, _ in running.values()])
        future = processes.running[begun[-1][0]]
        future.set_result(side_by_side._Ended())
        return {future}, None

    begun: list[list[str]] = []
    done: set[str] = set()
    monkeypatch.setattr(side_by_side, "places", places)
    monkeypatch.setattr(side_by_side, "wait", wait)
    file = str(detnas_pipeline(tmp_path))
    runs = read_experiment(file).runs()

    def ready(run: Run) -> bool:
        sources = {stage.name for stage in run.pipeline.sources_of(run.stage)}
        return run.stage.name not in done and sources <= done

    run_side_by_side(
        runs, jobs("3"), 3, Screen(Planner()), ready, lambda run, *_: done.add(run.stage.name)
    )
    assert begun == [["supernet", "random_1"], ["random_1", "search"], ["search"], ["searched"]]


def tiny(folder: Path) -> dict[str, Run]:
    runs = read_experiment(str(detnas_pipeline(folder))).runs()
    return {run.stage.name: run for run in runs}


def test_what_runs_alone(tmp_path: Path) -> None:
    """A stage before or after all others: not one next to random networks from nothing."""
    runs = tiny(tmp_path)
    assert list(runs) == ["supernet", "search", "searched", "random_1"]
    assert alone_among(list(runs.values())) == set()
    in_a_row = [runs[name] for name in ("supernet", "search", "searched")]
    assert alone_among(in_a_row) == {run.folder for run in in_a_row}
    assert alone_among([runs["random_1"]]) == {runs["random_1"].folder}


class Planned(Planner):
    """The search runs alone; a network that is late once ends all, another is left out."""

    def __init__(self) -> None:
        self.lates: list[tuple[str, Late]] = []

    def alone(self, stage: str) -> bool:
        return stage in ("supernet", "search")

    def ends_others(self, stage: str) -> bool:
        return stage == "searched"

    def late(self, stage: str, late: Late) -> None:
        self.lates.append((stage, late))


def test_a_process_tells_that_its_stage_was_late(monkeypatch: pytest.MonkeyPatch) -> None:
    job = side_by_side._Job(argparse.Namespace(pipeline=None, stage=None), jobs(1), None)  # type: ignore[arg-type]
    for late in (Late(3, 2.0), None):
        monkeypatch.setattr(side_by_side, "run_stage", lambda *_, late=late: late)
        future: Future[Any] = Future()
        future.set_result(side_by_side._run_job(job))
        assert side_by_side._outcome(future) == (None, late)


def test_a_plan_of_what_runs_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the search though it needs nothing of it; what is late ends others, or not."""
    file, planner, late = str(detnas_pipeline(tmp_path)), Planned(), Late(3, 2.0)
    done: set[str] = set()
    told: list[list[str]] = []

    def state(pipeline: Any, stage: Any) -> str:
        return "done" if stage.name in done else "not started"

    def together(
        runs: list[Run], args: object, jobs: int, screen: object, ready: Any, ended: Any
    ) -> None:
        found = {run.stage.name: run for run in runs if ready(run)}
        told.append(list(found))
        if not found:
            return
        assert jobs == 2
        if not planner.lates:
            assert ended(found["random_1"], "[4/4] random_1", None, late) is not None
            ended(found["searched"], "[3/4] searched", None, late)
            pytest.fail("searched ends all")
        for name, run in found.items():
            done.add(name)
            assert ended(run, name, None, None) is None

    def alone(self: Screen, run: Run, *_: object, jobs: int, alone: set[str]) -> None:
        assert jobs == 2 and {Path(folder).name for folder in alone} == {"supernet", "search"}
        done.add(run.stage.name)
        told.append([run.stage.name])

    monkeypatch.setattr(missing, "stage_state", state)
    monkeypatch.setattr(missing, "run_side_by_side", together)
    monkeypatch.setattr(missing, "write_manifests", lambda *_: None)
    monkeypatch.setattr(Screen, "run", alone)
    experiment, ended = read_experiment(file), []
    ends = missing.Ends(experiment, ended.append)
    missing.Missing(experiment, jobs("2", file), 2, False, Screen(planner), ends).run()
    networks = ["searched", "random_1"]
    assert told == [[], ["supernet"], [], ["search"], networks, networks]
    assert planner.lates == [("random_1", late), ("searched", late)]
    assert len(ended) == 4
    ends.rest()
    assert len(ended) == 4
    ends.planned_anew(experiment.runs()[0].pipeline)  # and nothing was run since
    ends.rest()
    assert ended[3:] == 2 * ended[3:4]


def test_a_stage_of_another_process_is_left_to_it(tmp_path: Path) -> None:
    file = str(detnas_pipeline(tmp_path, networks=0, generations=1, scoring_workers=0))
    with exclusive(str(tmp_path / "runs" / "supernet")), pytest.raises(InputError, match="in use"):
        run_pipeline(jobs("2", file))


def test_the_line(tmp_path: Path) -> None:
    runs = read_experiment(str(detnas_pipeline(tmp_path))).runs()
    beside = [runs[0], runs[3]]
    assert side_by_side._text(beside, 4, 2) == "2 of 4 stages: supernet; random_1"
    told = {"what": "iterations", "total": 8, "all_measured": True}
    status = (
        {**told, "done": 2, "eta_seconds": 60.0, "all_seconds": 600.0},
        {**told, "done": 4, "eta_seconds": 20.0, "all_seconds": 120.0},
    )
    for run, content in zip(beside, status, strict=True):
        Path(run.folder).mkdir(parents=True)
        Path(run.folder, "progress.json").write_text(json.dumps(content))
    # 100 s come after the one that began last: 180 s of work for two, 90 s.
    line = "2 of 4 stages: supernet 25 %, ETA 1 min; random_1 50 %, ETA 20 s"
    assert side_by_side._text(beside, 4, 2) == f"{line} | all stages about 1 min 30 s"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    def set_gpus(count: int, visible: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return set_gpus


def test_how_many(gpus: Callable[[int, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0, "")
    monkeypatch.setattr(side_by_side, "usable_cpus", lambda: list(range(6)))
    assert [jobs_of(jobs(n)) for n in ("1", "4", 3, "auto")] == [1, 4, 3, 6]
    assert jobs_of(jobs("auto", num_gpus=4)) == jobs_of(jobs("auto", num_machines=2)) == 1
    assert jobs_of(arguments()) == 1
    gpus(4, "")
    assert [jobs_of(jobs("auto", num_gpus=n)) for n in (1, 2, 3, 4)] == [4, 2, 1, 1]
    for asked, others, message in (
        ("0", {}, "--jobs 0: expected a number, 1 or more, or auto"),
        ("two", {}, "--jobs two: expected a number"),
        ("3", {"num_gpus": 2}, "--jobs 3: each stage takes 2 of the 4 GPUs .* expected 2 or less"),
        ("2", {"num_machines": 2}, "--jobs 2: expected 1 with --num-machines 2"),
    ):
        with pytest.raises(InputError, match=message):
            jobs_of(jobs(asked, **others))


def test_each_process_has_gpus_and_threads_of_its_own(
    gpus: Callable[[int, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    ended: list[bool] = []

    class Pool:
        def __init__(self, build: Any, workers: int) -> None:
            built.append(build)

        def submit(self, key: str, job: Any) -> None:
            assert (key, job) == ("a", None)

        def end(self) -> None:
            ended.append(True)

        def close(self, *, wait: bool) -> None:
            ended.append(wait)

    def use(count: int, gpus: int) -> None:
        with side_by_side.places(count, gpus) as places:
            assert len(places) == count
            for place in places:
                place.submit("a", None)  # type: ignore[arg-type]

    monkeypatch.setattr(side_by_side, "WorkerPool", Pool)
    monkeypatch.setattr(side_by_side, "usable_cpus", lambda: list(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    gpus(4, "3,5,6,7")
    use(2, 2)
    gpus(2, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    use(2, 1)
    with pytest.raises(InputError), side_by_side.places(1, 1) as places:
        places[0].submit("a", None)  # type: ignore[arg-type]
        raise InputError("of another stage")
    assert ended == [True] * 4 + [False]
    assert [(worker.gpus, worker.threads) for worker in built[:4]] == [
        ("3,5", 4),
        ("6,7", 4),
        ("0", 0),
        ("1", 0),
    ]
    monkeypatch.setattr(torch, "set_num_threads", built.append)
    assert built[0]() is side_by_side._run_job and built[-1] == 4
    assert side_by_side.os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
