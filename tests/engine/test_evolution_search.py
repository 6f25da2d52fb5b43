"""A whole search: interrupted, resumed, refused, and what it writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from detnas_d2.config.tools import load_config
from detnas_d2.data import DatasetError, register_datasets
from detnas_d2.engine import evolution_search as MODULE
from detnas_d2.engine import prepare, search, train
from detnas_d2.engine import proposals as PROPOSALS
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.plan import SearchPlan
from detnas_d2.evaluation.build import candidate_evaluator, sequential_evaluator
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.modeling import WeightsError
from detnas_d2.search import FingerprintMismatch, History, UnsatisfiableLimit
from detnas_d2.search.diagnostics import pareto_front
from detnas_d2.search.front_file import best_of
from detnas_d2.search_space import SPACES, LatencyTable
from detnas_d2.search_space.footprint import footprints
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, write_config
from tests.engine.two_processes import ARGS
from tests.helpers import changed, snapshot

ROOT = Path(__file__).resolve().parents[2]
TINY = SPACES["detnas_tiny"]
DECODED = ("MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone")


def run(cfg: CfgNode, *, resume: bool = False, config_dir: str = "") -> History:
    prepare(cfg, ARGS)
    search(cfg, resume=resume, config_dir=config_dir)
    return History.read(cfg.OUTPUT_DIR)


def small(configs: Configs, *opts: object) -> CfgNode:
    """Two candidates."""
    return configs.search("SEARCH.POPULATION", 2, "SEARCH.GENERATIONS", 1, *opts)


@pytest.mark.parametrize("objectives", [["fitness"], ["fitness", "macs"]])
def test_killed_search_resumes_to_the_same_history(
    objectives: list[str], configs: Configs, tmp_path: Path
) -> None:
    cfg = configs.search("SEARCH.OBJECTIVES", objectives)
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    program = str(ROOT / "projects" / "DetNAS" / "search_net.py")
    command = [sys.executable, program, "--config-file", write_config(cfg, tmp_path / "s.yaml")]
    lines = Path(cfg.OUTPUT_DIR, "history.jsonl")
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None and not (
            lines.exists() and lines.read_bytes().count(b"\n") >= 6  # of 4 + 4 + 4
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    torn = History.read(cfg.OUTPUT_DIR)
    assert 6 <= len(torn) < 12 and not Path(cfg.OUTPUT_DIR, "best.yaml").exists()
    with pytest.raises(FileExistsError, match="already holds a search"):
        run(cfg.clone())
    resumed = run(cfg.clone(), resume=True)
    assert resumed.records[: len(torn)] == torn.records
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    whole = run(cfg)
    assert resumed.identity() == whole.identity()
    files = ["best.yaml"]
    if len(objectives) > 1:
        files += ["front.yaml", "front/1.yaml"]
    for file in files:
        texts = [(tmp_path / n / file).read_text() for n in ("killed", "whole")]
        assert texts[0].replace("/killed/", "/whole/") == texts[1]
    states = [
        {file.name: torch.load(file)["model"] for file in (tmp_path / n).glob("front/*.pth")}
        for n in ("killed", "whole")
    ]
    assert states[0].keys() == states[1].keys() and bool(states[0]) == (len(objectives) > 1)
    for name, state in states[1].items():
        assert all(torch.equal(states[0][name][key], value) for key, value in state.items())


def test_front_of_a_search(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed with other budgets, the search recommends another member, evaluating nothing."""
    keys = ("SEARCH.OBJECTIVES", ["fitness", "macs", "params"], "SEARCH.POPULATION", 6)
    cfg = configs.search(*keys)
    prepare(cfg, ARGS)
    best = search(cfg, resume=False)
    folder = Path(cfg.OUTPUT_DIR)
    history = History.read(folder)
    assert {record.origin for record in history} >= {"random", "mutation"}
    header = json.loads((folder / "search.json").read_text())["fingerprint"]["searcher"]
    assert header["strategy"] == "nsga2"
    front = pareto_front(history, "macs", "params")
    told = yaml.safe_load((folder / "front.yaml").read_text())
    assert (told["metric"], told["objectives"]) == ("bbox/AP", ["fitness", "macs", "params"])
    assert [m["path"] for m in told["members"]] == [record.path for record in front]
    generations = json.loads((folder / "generations.json").read_text())
    hypervolumes = [row["hypervolume"] for row in generations]
    assert len(generations) == 3 and hypervolumes == sorted(hypervolumes)
    assert hypervolumes[-1] == pytest.approx(told["hypervolume"])
    path = load_config(str(folder / "best.yaml")).MODEL.DETNAS.PATH
    assert path == told["best"] == best.path == best_of(str(folder), history).path
    inherited = load_config(str(folder / "best_inherited.yaml"))
    assert path == inherited.MODEL.DETNAS.PATH and Path(inherited.MODEL.WEIGHTS).exists()

    monkeypatch.setattr(PopulationEvaluator, "evaluate_many", stop)
    cheapest = front[0].macs
    cfg = configs.search(*keys, "SEARCH.BUDGETS", [cheapest, 10**12])
    assert run(cfg, resume=True).records == history.records
    told = yaml.safe_load((folder / "front.yaml").read_text())
    fittest = min((r for r in front if r.macs == cheapest), key=lambda r: r.rank_key)
    assert told["best"] == fittest.path
    assert [m["path"] for m in told["recommended"]] == [fittest.path, history.best()[0].path]
    assert fittest.path == load_config(str(folder / "best.yaml")).MODEL.DETNAS.PATH
    with pytest.raises(FingerprintMismatch, match=r"searcher\.settings\.objectives"):
        run(configs.search(*keys[2:], "SEARCH.OBJECTIVES", ["fitness", "params"]), resume=True)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SEARCH.BUDGETS", [3e8]), r"BUDGETS \[300000000.0\]: SEARCH.OBJECTIVES has no cost"),
        (
            ("SEARCH.BUDGETS", [1], "SEARCH.OBJECTIVES", ["fitness", "params"]),
            "SEARCH.BUDGETS has 1, but the cheapest path within no limit has",
        ),
    ],
)
def test_budgets_that_make_no_sense(opts: tuple, message: str, configs: Configs) -> None:
    cfg = small(configs, *opts)
    with pytest.raises(InputError, match=message):
        run(cfg)
    assert not Path(cfg.OUTPUT_DIR, "history.jsonl").exists()


def test_best_yaml_trains_from_the_supernet(configs: Configs) -> None:
    cfg = small(configs)
    history = run(cfg)
    best = history.best()[0]
    text = Path(cfg.OUTPUT_DIR, "best.yaml").read_text()
    assert text.startswith(f"# Found by a search: supernet bbox/AP {best.fitness:.3f}, ")
    found = load_config(str(Path(cfg.OUTPUT_DIR, "best.yaml")))
    assert best.path == found.MODEL.DETNAS.PATH
    assert found.MODEL.BACKBONE.NAME == "build_detnas_fpn_backbone"
    found.SOLVER.MAX_ITER, found.SOLVER.STEPS, found.MODEL.WEIGHTS = 1, (), cfg.MODEL.WEIGHTS
    prepare(found, ARGS)
    assert "bbox" in train(found, resume=False)
    assert Path(cfg.OUTPUT_DIR, "best", "model_final.pth").exists()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.4), r"model\.ROI_HEADS\.NMS_THRESH_TEST: 0\.4"),
        (("SEARCH.SEED", 3), r"searcher\.seed: 3 \(here\), 0 \(on disk\)"),
        (("SEARCH.CALIBRATION.IMAGES", 2), r"calibration\.IMAGES: 2"),
        (("SEARCH.MAX_MACS_INPUT", [32, 32]), r"cost_input"),
        (("INPUT.MIN_SIZE_TEST", 40), r"input\.MIN_SIZE_TEST: 40"),
        (("TEST.DETECTIONS_PER_IMAGE", 7), r"detections_per_image: 7"),
        (("SEARCH.MAX_LATENCY_MS", 1e6), r"latency_table_sha256"),
        ((), r"checkpoint_sha256"),
    ],
)
def test_history_of_another_search_is_refused(
    opts: tuple, message: str, configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PROPOSALS, "measure_latency", lambda *a, **k: table(1.0))
    monkeypatch.setattr(MODULE, "run_search", stop)
    with pytest.raises(Stopped):
        run(small(configs))
    cfg = small(configs, *opts)
    if not opts:
        torch.manual_seed(1)
        torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    with pytest.raises(FingerprintMismatch, match=message):
        run(cfg, resume=True)


class Stopped(Exception):
    """Everything was ready for the search."""


def stop(*args: object, **kwargs: object) -> None:
    raise Stopped


def test_device_and_place_of_the_weights_do_not_matter(
    configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "run_search", stop)
    with pytest.raises(Stopped):
        run(small(configs))
    copy = tmp_path / "copy.pth"
    copy.write_bytes((tmp_path / "supernet_fasterBN.pth").read_bytes())
    with pytest.raises(Stopped):
        run(small(configs, "MODEL.DEVICE", "cuda", "MODEL.WEIGHTS", str(copy)), resume=True)


def table(milliseconds: float) -> LatencyTable:
    entries = tuple((milliseconds,) * n for n in TINY.cardinalities)
    return LatencyTable(0.5, entries, TINY.name, (64, 64), 1, "test")


def test_latency_is_measured_once(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    measure = PROPOSALS.measure_latency

    def counting(*args: object, **kwargs: object) -> LatencyTable:
        calls.append(kwargs)
        return measure(*args, **kwargs, repeats=1)

    monkeypatch.setattr(PROPOSALS, "measure_latency", counting)
    cfg = small(configs, "SEARCH.MAX_LATENCY_MS", 1e6)
    history = run(cfg)
    run(cfg.clone(), resume=True)
    assert calls == [{"input_size": (64, 64), "device": "cpu", "shuffle_method": 1}]
    stored = Path(cfg.OUTPUT_DIR, "latency.json").read_text()
    measured = LatencyTable.from_json(stored, TINY)
    for record in history:
        assert record.latency_ms == measured.total(record.choices) > 0


def test_latency_as_an_objective(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    slower = replace(table(1.0), entries=tuple((1.0, 2.0, 3.0, 4.0) for _ in TINY.cardinalities))
    monkeypatch.setattr(PROPOSALS, "measure_latency", lambda *a, **k: slower)
    cfg = small(configs, "SEARCH.OBJECTIVES", ["fitness", "latency_ms"])
    history = run(cfg)
    assert Path(cfg.OUTPUT_DIR, "latency.json").exists()
    assert all(record.latency_ms == slower.total(record.choices) for record in history)
    told = yaml.safe_load(Path(cfg.OUTPUT_DIR, "front.yaml").read_text())
    assert told["least"] == {"latency_ms": slower.cheapest()}
    assert told["reference"] == {"fitness": 0, "latency_ms": slower.most_expensive()}


def test_memory_and_file_size_as_objectives(configs: Configs) -> None:
    cfg = configs.search("SEARCH.OBJECTIVES", ["fitness", "memory_bytes", "file_bytes"])
    history = run(cfg)
    tables = footprints(TINY, tuple(cfg.SEARCH.MAX_MACS_INPUT))
    for record in history:
        assert record.memory_bytes == tables.memory.total(record.choices) > 0
        assert record.file_bytes == tables.file.total(record.choices) > 0
    told = yaml.safe_load(Path(cfg.OUTPUT_DIR, "front.yaml").read_text())
    front = pareto_front(history, "memory_bytes", "file_bytes")
    assert [m["path"] for m in told["members"]] == [record.path for record in front]
    assert told["members"][0]["memory_bytes"] == front[0].memory_bytes
    assert told["least"] == {
        "memory_bytes": tables.memory.cheapest(),
        "file_bytes": tables.file.cheapest(),
    }
    assert run(cfg, resume=True).records == history.records
    # Where they are no objective, nobody records them.
    other = small(configs, "OUTPUT_DIR", f"{cfg.OUTPUT_DIR}-plain")
    run(other)
    assert "bytes" not in Path(other.OUTPUT_DIR, "history.jsonl").read_text()


def test_given_latency_table(configs: Configs, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    keys = ("SEARCH.LATENCY_TABLE", str(file), "SEARCH.MAX_LATENCY_MS")
    with pytest.raises(InputError, match=r"SEARCH\.LATENCY_TABLE: .*table\.json"):
        run(small(configs, *keys, 100.0))
    file.write_text(table(2.0).to_json())
    total = 0.5 + 2 * TINY.num_layers
    with pytest.raises(UnsatisfiableLimit, match=rf"SEARCH.MAX_LATENCY_MS is 1\.0, .* has {total}"):
        run(small(configs, *keys, 1.0))
    file.write_text(table(2.0).to_json().replace("detnas_tiny", "detnas_small"))
    with pytest.raises(ValueError, match="latency table of space 'detnas_small'"):
        run(small(configs, *keys, 100.0))


def test_retrain_config(configs: Configs, tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    keys = ("SEARCH.RETRAIN_CONFIG", "retrain.yaml")
    with pytest.raises(InputError, match=r"configs/retrain\.yaml' does not exist"):
        run(small(configs, *keys), config_dir=str(folder))
    retrain = configs("faster", "OUTPUT_DIR", "elsewhere")
    write_config(retrain, folder / "retrain.yaml")
    with pytest.raises(ValueError, match="has the backbone build_detnas_supernet_fpn_backbone"):
        run(small(configs, *keys), config_dir=str(folder))
    retrain.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    retrain.MODEL.DETNAS.SPACE = "detnas_small"
    write_config(retrain, folder / "retrain.yaml")
    with pytest.raises(ValueError, match="SPACE detnas_small, the search detnas_tiny"):
        run(small(configs, *keys), config_dir=str(folder))
    assert not Path(configs.search().OUTPUT_DIR, "history.jsonl").exists()
    retrain.MODEL.DETNAS.SPACE = "detnas_tiny"
    write_config(retrain, folder / "retrain.yaml")
    cfg = small(configs, *keys)
    best = run(cfg, config_dir=str(folder)).best()[0]
    found = load_config(str(Path(cfg.OUTPUT_DIR, "best.yaml")))
    retrain.MODEL.DETNAS.PATH = best.path
    assert found == retrain


def test_scores_that_would_be_too_good_are_warned_of(configs: Configs, tmp_path: Path) -> None:
    def leaks(test: tuple[str, ...], *opts: object) -> list[str]:
        write_config(configs("faster", "DATASETS.TEST", test, *DECODED), tmp_path / "retrain.yaml")
        cfg = configs.search("SEARCH.RETRAIN_CONFIG", "retrain.yaml", *opts)
        return SearchPlan.from_config(cfg, str(tmp_path)).warnings()

    assert leaks(("other",)) == []
    (text,) = leaks(("shapes@search_val",))
    assert "'shapes@search_val'" in text and "the test set" in text
    trained, tested = leaks(("other", "shapes"), "DATASETS.TRAIN", ("shapes",))
    assert "'shapes', which the supernet is trained on" in trained and "'shapes'" in tested


def check_evaluation(cfg: CfgNode) -> None:
    EvaluationSettings.from_config(cfg).check()


def test_what_scores_candidates_is_checked_first(configs: Configs) -> None:
    with pytest.raises(ValueError, match=r"'bbox/mAP': .* by bbox/AP, .*APl, bbox/AP-a, bbox/AP-b"):
        check_evaluation(configs.search("SEARCH.METRIC", "bbox/mAP"))
    check_evaluation(configs.search("SEARCH.METRIC", "bbox/AP-c"))
    with pytest.raises(ValueError, match=r"'shapes@search_val'.* cannot give bbox/APl: no object"):
        check_evaluation(configs.search("SEARCH.METRIC", "bbox/APl"))
    with pytest.raises(DatasetError, match="'shaeps' is neither .* did you mean shapes"):
        check_evaluation(configs.search("SEARCH.VAL", "shaeps"))
    with pytest.raises(DatasetError, match="'shaeps' is neither"):
        check_evaluation(configs.search("SEARCH.CALIBRATION.DATASET", "shaeps"))


def test_what_cannot_be_searched(configs: Configs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        run(small(configs, "MODEL.WEIGHTS", ""))
    with pytest.raises(UnsatisfiableLimit, match="SEARCH.MAX_MACS is 1000, but the cheapest path"):
        run(small(configs, "SEARCH.MAX_MACS", 1000, "MODEL.WEIGHTS", "not/read.pth"))
    cfg = small(configs, "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone")
    cfg.MODEL.DETNAS.PATH = str(TINY.uniform_path("3x3"))
    with pytest.raises(ValueError, match="build_detnas_fpn_backbone: no supernet to search"):
        run(cfg)
    file = str(tmp_path / "classifier.pth")
    torch.save({"model": build_model(configs("classifier")).state_dict()}, file)
    with pytest.raises(WeightsError, match=r"classifier\.pth: the weights fit .* in part only"):
        run(small(configs, "MODEL.WEIGHTS", file))


def test_fitness_does_not_depend_on_what_was_evaluated_before(configs: Configs) -> None:
    cfg = configs.search()
    register_datasets(cfg)
    model, settings = load_supernet(cfg), EvaluationSettings.from_config(cfg)
    before = snapshot(model)
    one, other = TINY.uniform_path("7x7"), TINY.uniform_path("5x5")
    with candidate_evaluator(settings, model) as population:
        for evaluator in (population, sequential_evaluator(settings, model)):
            found = [evaluator.evaluate(path) for path in (one, other, one)]
            assert str(found[0].metrics) == str(found[2].metrics) != str(found[1].metrics)
            assert found[0].fitness == found[0].metrics["bbox/AP"]
            assert changed(model, before) == set() and not model.training
