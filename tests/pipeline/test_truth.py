"""Truth sets: what is trained, in which order, and that nothing is lost or trained twice."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from detnas_d2.pipeline import truth_run
from detnas_d2.pipeline.truth_log import TruthLog
from detnas_d2.pipeline.truth_plan import Network
from detnas_d2.pipeline.truth_run import Runner, all_pairs
from detnas_d2.pipeline.truth_training import Job, Outcome, run_job
from detnas_d2.search.truth import read_truth
from detnas_d2.search_space import get_space
from detnas_d2.utils.errors import CANDIDATE_FAILURES, InputError
from tests.engine.tiny_runs import Configs, write_config
from tests.pipeline.test_stability import COMMAND


def here(function: Callable[[Job], Outcome]) -> type:
    """A pool whose worker is this process."""

    class Pool:
        def __init__(self, build: Any, workers: int) -> None:
            assert workers == 1

        def submit(self, key: str, job: Job) -> Future[Outcome]:
            future: Future[Outcome] = Future()
            try:
                future.set_result(function(job))
            except CANDIDATE_FAILURES as error:
                future.set_exception(RuntimeError(f"{error}, at {key}"))
            return future

        def close(self, *, wait: bool) -> None:
            assert not wait

    return Pool


@pytest.fixture
def search_file(configs: Configs, tmp_path: Path) -> str:
    """A search whose networks are trained for two steps so small that scores stay above zero."""
    search = configs.search("SEARCH.RETRAIN_CONFIG", "retrain.yaml", "MODEL.WEIGHTS", "")
    overrides = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.BASE_LR", 1e-6]
    retrain = configs("faster", "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone", *overrides)
    retrain.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    retrain.MODEL.RPN.POST_NMS_TOPK_TEST = retrain.TEST.DETECTIONS_PER_IMAGE = 500
    write_config(retrain, tmp_path / "retrain.yaml")
    return write_config(search, tmp_path / "search.yaml")


@pytest.fixture
def command(search_file: str) -> Iterator[Callable[..., None]]:
    main = runpy.run_path(COMMAND)["main"]

    def call(*words: str) -> None:
        main(["fidelity", "--config-file", search_file, "--output", "truth", *words])

    return call


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("truth/truth.jsonl").read_text().splitlines()]


def test_networks_are_trained_once_each(
    command: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = "--networks", "3", "--band", "0", "--seeds", "1", "--processes", "1"
    monkeypatch.setattr(Runner, "measured_seconds", lambda _: 1.0)
    command(*small)  # in a worker process
    first = lines()
    assert [line["seed"] for line in first] == [0, 0, 0]
    scores = {line["path"]: line["metrics"]["bbox/AP"] for line in first}
    assert min(scores.values()) > 0
    assert list(Path("truth/trainings").iterdir()) == []

    # As after a kill: a torn line, and the folder of a training that was logged.
    file = Path("truth/truth.jsonl")
    file.write_bytes(file.read_bytes()[:-9])
    trained: list[tuple[str, int]] = []

    def train(job: Job) -> Outcome:
        (cfg,) = job.configs
        trained.append((cfg.MODEL.DETNAS.PATH, cfg.SEED))
        return run_job(job)

    monkeypatch.setattr(truth_run, "WorkerPool", here(train))
    more = "--networks", "4", "--band", "1", "--seeds", "1"
    command(*more)
    assert {line["path"]: line["metrics"]["bbox/AP"] for line in lines()[:3]} == scores
    truth = read_truth("truth/truth.json")
    assert [network.band for network in truth.networks] == [False, False, False, False, True]
    assert [network.path for network in truth.networks[:3]] == list(scores)
    assert trained == [(network.path, 0) for network in truth.networks[2:]]
    assert [network.scores for network in truth.networks[:3]] == [(s,) for s in scores.values()]
    truth.check_space(get_space("detnas_tiny"))
    assert "No supernet was evaluated on the 4 networks x 1 trainings" in capsys.readouterr().out

    command(*more)
    assert "5 trainings, 0 to do" in capsys.readouterr().out and len(trained) == 3
    with pytest.raises(InputError, match=r"another truth set: trainings: .*another --output"):
        command("--networks", "4", "SOLVER.BASE_LR", "0.1")


def scored(score: Callable[[str, int], float], failing: int = -1) -> Callable[[Job], Outcome]:
    calls: list[int] = []

    def train(job: Job) -> Outcome:
        if job.measure:
            return Outcome({}, 3600.0)
        calls.append(0)
        if len(calls) - 1 == failing:
            raise FloatingPointError("Loss became infinite")
        cfg = job.configs[-1]
        return Outcome({"bbox/AP": score(cfg.MODEL.DETNAS.PATH, cfg.SEED)}, 1800.0)

    return train


def test_pilot_stops_what_noise_would_hide(
    command: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = "--networks", "14", "--band", "0", "--seeds", "3"
    noise = scored(lambda path, seed: float(len(path) * (1, -1)[seed % 2] % 7))
    monkeypatch.setattr(truth_run, "WorkerPool", here(noise))
    command(*wanted, "--dry-run")
    told = capsys.readouterr().out
    assert "42 trainings, 42 to do" in told and "One takes about 1 h (by" in told
    assert ": 21 h with 2 at a time" in told and told.count("range") >= 14
    command("--networks", "14", "--draw-seed", "1", "--dry-run")  # nothing is trained yet
    with pytest.raises(InputError, match=r"ratio 0\.\d\d is below 1.5: .*Widen .*--force"):
        command(*wanted)
    assert [line["seed"] for line in lines()] == [0] * 12 + [1] * 12
    assert len(read_truth("truth/truth.json").networks) == 12
    command(*wanted, "--force")
    assert len(lines()) == 42


def test_pilot_lets_a_spread_pass_and_failures_are_tried_again(
    command: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spread = scored(lambda path, seed: len(path) + 0.1 * (len(path) * (seed + 1) % 3), failing=3)
    monkeypatch.setattr(truth_run, "WorkerPool", here(spread))
    command("--networks", "14", "--band", "0", "--seeds", "2")
    told = capsys.readouterr().out
    assert "Loss became infinite" in told and "1 of 28 trainings failed" in told
    assert "Pilot: 11 networks x 2 seeds" in told
    assert [line["path"] for line in lines() if line["error"]] == [lines()[3]["path"]]
    command("--networks", "14", "--band", "0", "--seeds", "2")
    assert len(lines()) == 29 and "28 trainings, 1 to do" in capsys.readouterr().out
    monkeypatch.setattr(truth_run, "WorkerPool", here(lambda job: Outcome({}, 1.0)))
    with pytest.raises(InputError, match=r"^11 trainings failed, more than SEARCH.MAX_FAILURES"):
        command("--networks", "40", "--band", "0", "--seeds", "2", "--processes", "1")


def test_a_few_steps_tell_how_long_a_training_takes(configs: Configs) -> None:
    short = configs("faster", "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone")
    short.MODEL.DETNAS.PATH = "3x3 3x3 3x3 3x3 3x3"
    long = short.clone()
    short.SOLVER.MAX_ITER, long.SOLVER.MAX_ITER = 8, 8000
    one, both = (run_job(Job(cfgs, measure=True)) for cfgs in ((short,), (short, long)))
    assert one.metrics == {} and 0 < one.seconds < both.seconds / 50
    assert not list(Path(short.OUTPUT_DIR).glob("*.pth"))


def test_order_is_balanced_wherever_it_ends() -> None:
    space = get_space("detnas_tiny")
    paths = [space.path([i // 4, i % 4, 0, 0, 0]) for i in range(15)]
    networks = [Network(path, 1, 1, band=i >= 13) for i, path in enumerate(paths)]
    pairs = [(networks.index(network), seed) for network, seed in all_pairs(networks, 3)]
    pilot = [(i, seed) for seed in (0, 1) for i in range(12)]
    rest = [(i, seed) for seed in range(3) for i in range(15) if (i, seed) not in pilot]
    assert pairs == pilot + rest


def test_damaged_log_is_told(tmp_path: Path) -> None:
    (tmp_path / "truth.jsonl").write_text('{"path": "a"}\n')
    with pytest.raises(InputError, match=r"truth.jsonl, line 1: .*that training then runs again"):
        TruthLog(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--networks", "2"], "--networks 2: expected 3 or more"),
        (["--band", "-1"], "--band -1: expected 0 or more"),
        (["SOLVER.BASE_LR"], "overrides are KEY VALUE pairs"),
        (["--truth-stage", "x"], "--truth-stage 'x': .* has no STAGES"),
        (["--test-set", "gone"], "Dataset 'gone' is neither"),
        (["SEARCH.METRIC", "bbox/AP51"], "SEARCH.METRIC 'bbox/AP51': dataset .* is scored by"),
        (["--networks", "1025"], "1025 networks with a cost of .*: only 1024 were found"),
    ],
)
def test_wrong_options(command: Callable[..., None], words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command(*words)


def test_supernet_as_a_start_is_refused(command: Callable[..., None], configs: Configs) -> None:
    weights = configs.search().MODEL.WEIGHTS
    with pytest.raises(InputError, match=r"supernet_fasterBN.pth: a supernet's; a truth set needs"):
        command("MODEL.WEIGHTS", weights)
