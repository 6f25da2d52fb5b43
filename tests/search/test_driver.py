"""The search loop: resume, failures, several ranks."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from detnas_d2.evaluation import Evaluation
from detnas_d2.evaluation.ranks import Ranks, SingleProcess
from detnas_d2.search import (
    EvolutionSettings,
    History,
    HistoryError,
    ReplayError,
    TooManyFailures,
    open_history,
    run_search,
)
from detnas_d2.search.history import check_of

TOY = Path(__file__).with_name("toy_search.py")
_spec = importlib.util.spec_from_file_location("toy_search", TOY)
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


@pytest.fixture(scope="module")
def whole():
    """The history of the uninterrupted search."""
    history = History.in_memory()
    toy.search(history)
    return history


def opened(directory, resume=True):
    return open_history(directory, toy.FINGERPRINT, resume=resume, ranks=SingleProcess())


def test_records(whole):
    assert len(whole) == 40
    assert [(r.generation, r.position) for r in whole] == [(1 + i // 10, i % 10) for i in range(40)]
    constraint = toy.limits()
    for record in whole:
        assert record.fitness == toy.fitness(record.path)
        assert record.path == toy.ToySpace().path(record.choices)
        assert record.macs == constraint.costs_of(record.choices)["macs"] <= 230
        assert record.latency_ms is None
        assert record.metrics["toy/undefined"] is None
        assert record.seconds == {"infer": 0.25}
        assert record.error is None


def test_the_best_is_returned():
    history = History.in_memory()
    best = toy.search(history)
    assert best.fitness == max(record.fitness for record in history)


@pytest.mark.parametrize("stops", [(0,), (1,), (9,), (10,), (11,), (39,), (40,), (3, 14, 0, 27)])
def test_an_interrupted_search_resumes_to_the_same_history(tmp_path, whole, stops):
    calls = []
    for stop in stops:
        evaluator = toy.ToyEvaluator(stop_after=stop)
        if stop < 40 - len(calls):
            with pytest.raises(KeyboardInterrupt):
                toy.search(opened(tmp_path), evaluator)
        else:
            toy.search(opened(tmp_path), evaluator)
        calls += evaluator.calls
    evaluator = toy.ToyEvaluator()
    history = opened(tmp_path)
    toy.search(history, evaluator)
    calls += evaluator.calls
    assert calls == [record.path for record in whole]  # nothing was evaluated twice
    assert history.identity() == whole.identity()
    assert History.read(tmp_path).identity() == whole.identity()


def test_a_killed_process_resumes_to_the_same_history(tmp_path, whole):
    """SIGKILL while candidates are being evaluated, twice; nothing but the file is left."""
    lines = tmp_path / "history.jsonl"

    def start(seconds):
        root = str(TOY.parents[2])
        return subprocess.Popen(
            [sys.executable, TOY, tmp_path, str(seconds)], env={**os.environ, "PYTHONPATH": root}
        )

    def count():
        return lines.read_bytes().count(b"\n") if lines.exists() else 0

    for target in (4, 19):
        process = start(0.05)
        deadline = time.monotonic() + 300
        while count() < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert target <= count() < 40
    toy.search(opened(tmp_path), toy.ToyEvaluator())
    assert History.read(tmp_path).identity() == whole.identity()


def test_a_torn_record_is_evaluated_again(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        toy.search(opened(tmp_path), toy.ToyEvaluator(stop_after=14))
    lines = tmp_path / "history.jsonl"
    lines.write_bytes(lines.read_bytes()[:-20])
    evaluator = toy.ToyEvaluator()
    history = opened(tmp_path)
    toy.search(history, evaluator)
    assert len(evaluator.calls) == 40 - 13
    assert history.identity() == whole.identity()


def test_failures_are_recorded_and_the_search_goes_on(tmp_path, whole):
    paths = [record.path for record in whole]
    failures = {
        paths[2]: RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nsecond line"),
        paths[5]: float("nan"),
        paths[7]: FloatingPointError(),
    }
    history = opened(tmp_path)
    best = toy.search(history, toy.ToyEvaluator(failures=failures))
    assert len(history) == 40
    assert {r.path: r.error for r in history.failed} == {
        paths[2]: "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB",
        paths[5]: "fitness is nan",
        paths[7]: "FloatingPointError",
    }
    assert all(r.fitness is None and r.metrics == {} for r in history.failed)
    assert best.path not in failures
    # A resumed run takes the failures as they are and evaluates nothing again.
    evaluator = toy.ToyEvaluator()
    again = opened(tmp_path)
    assert toy.search(again, evaluator) == best
    assert evaluator.calls == []
    assert again.identity() == history.identity()


def test_too_many_failures_stop_the_search_and_lose_nothing(tmp_path, whole):
    failures = {record.path: RuntimeError(f"broken {i}") for i, record in enumerate(whole)}
    history = opened(tmp_path)
    with pytest.raises(TooManyFailures, match=r"4 of 4 .* more than the 3 allowed(?s:.*)broken 3"):
        toy.search(history, toy.ToyEvaluator(failures=failures))
    assert len(opened(tmp_path)) == 4
    # Resuming says so at once; with a higher limit it goes on from there.
    untouched = toy.ToyEvaluator()
    with pytest.raises(TooManyFailures, match="SEARCH.MAX_FAILURES"):
        toy.search(opened(tmp_path), untouched)
    assert untouched.calls == []
    toy.search(opened(tmp_path), toy.ToyEvaluator(), max_failures=4)
    assert len(opened(tmp_path)) == 40


def test_a_search_in_which_everything_fails():
    class Broken:
        def evaluate(self, path):
            raise RuntimeError("no")

    with pytest.raises(TooManyFailures, match="none of the 40 candidates"):
        toy.search(History.in_memory(), Broken(), max_failures=100)


def test_a_programming_error_is_not_a_failed_candidate(tmp_path):
    class Wrong:
        def evaluate(self, path):
            raise KeyError("no metric 'bbox/AP'")

    with pytest.raises(KeyError, match="no metric"):
        toy.search(opened(tmp_path), Wrong())
    assert len(opened(tmp_path)) == 0

    class Untyped:
        def evaluate(self, path):
            return 0.5

    with pytest.raises(TypeError, match=r"returned 0\.5, expected an Evaluation"):
        toy.search(opened(tmp_path), Untyped())


def test_another_searchers_history_is_refused(tmp_path, whole):
    untouched = toy.ToyEvaluator()
    with pytest.raises(ReplayError, match="record 0 .* is not what the searcher asks for"):
        toy.search(History.in_memory(list(whole)), untouched, searcher=toy.searcher(seed=6))
    shorter = EvolutionSettings.preset("paper", population=10, generations=3)
    with pytest.raises(ReplayError, match=r"record 30 \(generation 4, .* after 30 records"):
        toy.search(
            History.in_memory(list(whole)), untouched, searcher=toy.searcher(settings=shorter)
        )
    assert untouched.calls == []


def write_history(folder, rows):
    """Records with right checks: what they tell is all that can give them away."""
    lines, last = [], ""
    for row in rows:
        last = check_of(last, row)
        lines.append(json.dumps({**row, "check": last}) + "\n")
    (folder / "history.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("index", [0, 12, 39])
@pytest.mark.parametrize(
    ("key", "value"), [("position", 77), ("generation", 3), ("path", "dddddddd"), ("origin", "x")]
)
def test_a_changed_record_is_refused(tmp_path, whole, index, key, value):
    if getattr(whole.records[index], key) == value:
        value = 2  # the generation of the last record
    rows = [record.as_dict() for record in whole]
    rows[index][key] = value
    opened(tmp_path)
    write_history(tmp_path, rows)
    with pytest.raises(ReplayError, match=f"record {index}: the history has .*{value}"):
        toy.search(opened(tmp_path))


def test_a_changed_fitness_leads_elsewhere(tmp_path, whole):
    """The searcher's proposals follow from the fitness, so an edit does not go unnoticed."""
    rows = [record.as_dict() for record in whole]
    worst = min(rows[:10], key=lambda row: row["fitness"])
    worst["fitness"] = 1e6
    opened(tmp_path)
    write_history(tmp_path, rows)
    with pytest.raises(ReplayError):
        toy.search(opened(tmp_path))


class Together(toy.ToyEvaluator):
    """Evaluates whole generations, in another order than asked."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.chunks: list[int] = []

    def evaluate_many(self, paths):
        self.chunks.append(len(paths))
        for path in reversed(paths):
            try:
                yield path, self.evaluate(path)
            except RuntimeError as error:
                yield path, error


def test_a_population_evaluator_sees_whole_generations(tmp_path, whole):
    evaluator = Together(stop_after=14)
    with pytest.raises(KeyboardInterrupt):
        toy.search(opened(tmp_path), evaluator)
    assert evaluator.chunks == [10, 10]
    evaluator = Together()
    history = opened(tmp_path)
    toy.search(history, evaluator)
    assert evaluator.chunks == [6, 10, 10]  # the rest of the second generation first
    assert [record.position for record in history][:10] == list(range(9, -1, -1))
    assert history.identity() == whole.identity()


def test_a_population_evaluator_may_report_failures(whole):
    failures = {whole.records[4].path: RuntimeError("boom")}
    history = History.in_memory()
    toy.search(history, Together(failures=failures))
    assert [record.error for record in history.failed] == ["RuntimeError: boom"]


def test_a_population_evaluator_must_return_what_it_was_given():
    class Forgetful(toy.ToyEvaluator):
        def evaluate_many(self, paths):
            for path in paths[:-2]:
                yield path, self.evaluate(path)

    with pytest.raises(ValueError, match="left out 2 of the candidates"):
        toy.search(History.in_memory(), Forgetful())

    class Repeating(toy.ToyEvaluator):
        def evaluate_many(self, paths):
            yield paths[0], self.evaluate(paths[0])
            yield paths[0], self.evaluate(paths[0])

    with pytest.raises(ValueError, match="which is not waited for"):
        toy.search(History.in_memory(), Repeating())


def test_progress_hears_of_replayed_and_evaluated_candidates(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        toy.search(opened(tmp_path), toy.ToyEvaluator(stop_after=14))
    heard = []
    toy.search(
        opened(tmp_path),
        on_progress=lambda record, size, replayed: heard.append((record.index, size, replayed)),
    )
    assert heard == [(index, 10, index < 14) for index in range(40)]


def test_a_record_is_on_disk_before_anyone_hears_of_it(tmp_path):
    def on_progress(record, size, replayed):
        assert History.read(tmp_path).records[-1] == record
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.search(opened(tmp_path), on_progress=on_progress)
    assert len(opened(tmp_path)) == 1


class ThreadRanks(Ranks):
    """Ranks that are threads of this process."""

    def __init__(self, rank, shared):
        self.rank, self.shared = rank, shared

    @property
    def is_main(self):
        return self.rank == 0

    def gather(self, value):
        barrier, slots = self.shared
        slots[self.rank] = value
        barrier.wait(timeout=30)
        values = list(slots)
        barrier.wait(timeout=30)
        return values


def on_two_ranks(function):
    """Results (or exceptions) of `function(ranks)` on two threads."""
    shared = (threading.Barrier(2), [None, None])
    results = [None, None]

    def run(rank):
        try:
            results[rank] = function(ThreadRanks(rank, shared))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ranks_decide_alike_and_only_rank_0_writes(tmp_path, whole):
    paths = [record.path for record in whole]

    def rank_main(ranks, failures):
        history = open_history(tmp_path, toy.FINGERPRINT, resume=True, ranks=ranks)
        evaluator = toy.ToyEvaluator(failures=failures[ranks.rank])
        best = toy.search(history, evaluator, ranks=ranks)
        return best, history.identity(), evaluator.calls, history.directory

    # Rank 1 has no scores of its own, as with Detectron2's evaluators, and fails once by itself.
    other = {path: float("nan") for path in paths} | {paths[3]: RuntimeError("rank 1 only")}
    first, second = on_two_ranks(lambda ranks: rank_main(ranks, [{}, other]))
    assert first[:3] == second[:3]
    assert (first[3], second[3]) == (tmp_path, None)
    history = History.read(tmp_path)
    assert [(r.path, r.error) for r in history.failed] == [
        (paths[3], "rank 1: RuntimeError: rank 1 only")
    ]
    # Both ranks replay rank 0's file.
    again = on_two_ranks(lambda ranks: rank_main(ranks, [{}, {}]))
    assert [result[2] for result in again] == [[], []]
    assert again[0][:2] == again[1][:2] == first[:2]


def test_no_rank_is_left_waiting_for_a_history_that_does_not_open(tmp_path):
    open_history(tmp_path, {"seed": 1}, resume=False, ranks=SingleProcess())
    first, second = on_two_ranks(
        lambda ranks: open_history(tmp_path, {"seed": 2}, resume=True, ranks=ranks)
    )
    assert isinstance(first, HistoryError)
    assert isinstance(second, HistoryError)
    assert str(second) == f"rank 0: {first}"


def test_default_ranks_are_detectron2s():
    class Sum:
        def evaluate(self, path):
            return Evaluation(toy.fitness(path))

    best = run_search(
        toy.searcher(),
        Sum(),
        History.in_memory(),
        space=toy.ToySpace(),
        limits=toy.limits(),
        max_failures=0,
    )
    assert best.seconds == {}
