"""Pipelines: what is refused before anything runs, what is skipped, what is resumed."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import yaml

from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import genotype_of
from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.pipeline import definition, stage_run
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.report import format_table, mean_and_deviation
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.search import History
from detnas_d2.search_space import SPACES, build_cost_table
from tests.engine.hit_runs import scene_config
from tests.engine.tiny_runs import Configs, arguments, write_config

TINY = SPACES["detnas_tiny"]
TRAIN = {"NAME": "supernet", "KIND": "train", "CONFIG": "train.yaml"}
SEARCH = {"NAME": "search", "KIND": "search", "CONFIG": "search.yaml", "WEIGHTS": "supernet"}


def retrain(name: str, path: str, **keys: object) -> dict[str, object]:
    return {"NAME": name, "KIND": "train", "CONFIG": "retrain.yaml", "PATH": path, **keys}


@pytest.fixture
def folder(configs: Configs, tmp_path: Path) -> Path:
    """Configs of a supernet's training, its search and the training of a path."""
    short = ("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    train, retrained = configs("faster", *short), configs("faster", *short)
    write_config(train, tmp_path / "train.yaml")
    retrained.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    retrained.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    write_config(retrained, tmp_path / "retrain.yaml")
    search = configs.search("SEARCH.POPULATION", 2, "SEARCH.GENERATIONS", 1)
    search.SEARCH.MAX_MACS = median_macs()
    search.SEARCH.RETRAIN_CONFIG = "retrain.yaml"
    write_config(search, tmp_path / "search.yaml")
    return tmp_path


def median_macs() -> int:
    table = build_cost_table(TINY, (64, 64))
    macs = sorted(table.cost(TINY.uniform_path(op)).macs for op in TINY.ops)
    return macs[2]


def write(folder: Path, *stages: dict[str, object], **keys: object) -> str:
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"OUTPUT_DIR": str(folder / "runs"), "STAGES": stages, **keys}))
    return str(file)


@pytest.mark.parametrize(
    ("stages", "keys", "message"),
    [
        ([{"NAME": "a", "KIND": "train"}], {}, "stage {'KIND'.*expected NAME, KIND, CONFIG"),
        ([{**TRAIN, "WEIGHT": "x"}], {}, "'WEIGHT'.*expected NAME, KIND, CONFIG"),
        ([{**TRAIN, "KIND": "tune"}], {}, "stage 'supernet': KIND 'tune', expected one of train"),
        ([{**TRAIN, "CONFIG": "no.yaml"}], {}, "stage 'supernet': CONFIG 'no.yaml' does not exist"),
        ([TRAIN, TRAIN], {}, "stage 'supernet': NAME is used twice"),
        ([SEARCH, TRAIN], {}, "stage 'search': WEIGHTS 'supernet' is neither an earlier training"),
        (
            [TRAIN, SEARCH, retrain("a", "uniform 3x3", WEIGHTS="search")],
            {},
            "'a': WEIGHTS 'search' are .* expected PATH 'search' or 'front search', got 'uni",
        ),
        (
            [TRAIN, SEARCH, {**SEARCH, "NAME": "b", "WEIGHTS": "search"}],
            {},
            "'b': WEIGHTS 'search' is a search, whose weights a search stage cannot start from",
        ),
        ([retrain("a", "uniform 3x3", KIND="evaluate")], {}, "'a': no WEIGHTS: expected the stage"),
        (
            [
                TRAIN,
                retrain("a", "uniform 3x3", KIND="evaluate", WEIGHTS="supernet"),
                retrain("b", "uniform 3x3", WEIGHTS="a"),
            ],
            {},
            "'b': WEIGHTS 'a' is an evaluate stage, which trains nothing",
        ),
        ([TRAIN, retrain("a", "supernet")], {}, "'a': PATH 'supernet' is a train stage"),
        ([retrain("random 1", "random 1")], {}, "'random 1': WEIGHTS or PATH is the stage itself"),
        ([retrain("a", "3x3 9x9")], {}, "stage 'a': .*tiny"),
        ([retrain("a", "uniform 9x9")], {}, "stage 'a': .*9x9"),
        ([{**TRAIN, "OPTS": ["SOLVER.MAX_ITERS", 3]}], {}, "'supernet': OPTS.*MAX_ITERS: no such"),
        ([{**TRAIN, "OPTS": ["SOLVER.MAX_ITER", "x"]}], {}, "'supernet': .*SOLVER.MAX_ITER"),
        (
            [TRAIN, {**SEARCH, "OPTS": ["SEARCH.RETRAIN_CONFIG", "nowhere.yaml"]}],
            {},
            "'search': config file '.*nowhere.yaml' does not exist",
        ),
        (
            [TRAIN, {**SEARCH, "OPTS": ["SEARCH.MAX_MACS", 1000]}],
            {},
            "'search': SEARCH.MAX_MACS is 1000, but the cheapest path",
        ),
        ([TRAIN, {**SEARCH, "OPTS": ["SEARCH.PRESET", "best"]}], {}, "'search': .*PRESET is"),
        (
            [TRAIN, {**SEARCH, "OPTS": ["MODEL.DETNAS.SPACE", "detnas_small"]}],
            {},
            "'search': SEARCH.RETRAIN_CONFIG has MODEL.DETNAS.SPACE detnas_tiny, the search",
        ),
        ([{**TRAIN, "MERGE": ["other"]}], {}, r"'supernet': MERGE \['other'\]"),
        ([{**TRAIN, "RANDOM": 1}], {}, "'supernet': RANDOM needs one gradient stage"),
        ([{**TRAIN, "REPEAT": 0}], {}, "stage 'supernet': REPEAT 0, expected 1 or more"),
        ([retrain("a", "random")], {}, "PATH .random.: expected random NUMBER, .*, or REPEAT"),
        ([retrain("a", "random 1", LIKE="b")], {}, "LIKE 'b' .*: expected an earlier search"),
        (
            [TRAIN, SEARCH, retrain("a", "random", LIKE="search")],
            {},
            "'a': .*expected random NUMBER",
        ),
        ([{**TRAIN, "REPEAT": "2"}], {}, "stage 'supernet': REPEAT '2', expected 1"),
        ([{**TRAIN, "REPEAT": 2}, {**SEARCH}], {}, "'search': WEIGHTS 'supernet' is n"),
        ([TRAIN], {"TABLE": ["winner"]}, r"TABLE names \['winner'\], no stage has it"),
        ([TRAIN], {"STEPS": 3}, r"unknown keys \['STEPS'\]"),
    ],
)
def test_errors_name_file_stage_and_key(
    stages: list, keys: dict, message: str, folder: Path
) -> None:
    file = write(folder, *stages, **keys)
    with pytest.raises(PipelineError, match=message) as caught:
        read_pipeline(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_what_is_no_pipeline(folder: Path) -> None:
    for text in ("- a", "OUTPUT_DIR: x", "STAGES: {NAME: a}"):
        (folder / "bad.yaml").write_text(text)
        with pytest.raises(PipelineError, match="expected a mapping with OUTPUT_DIR and a list"):
            read_pipeline(str(folder / "bad.yaml"))
    with pytest.raises(PipelineError, match="stage 'supernet': .*MODEL.NONE"):
        read_pipeline(write(folder, TRAIN), ("MODEL.NONE", "1"))


def test_overrides_and_places(folder: Path) -> None:
    stages = (
        {**TRAIN, "OPTS": ["SEED", 5, "SOLVER.BASE_LR", 0.5]},
        {**SEARCH, "OPTS": ["SEARCH.SEED", 2]},
    )
    opts = ("OUTPUT_DIR", "elsewhere", "SOLVER.BASE_LR", "0.25")
    pipeline = read_pipeline(write(folder, *stages), opts)
    supernet, search = (pipeline.config_of(stage) for stage in pipeline.stages)
    assert (supernet.SEED, supernet.SOLVER.BASE_LR) == (5, 0.25)
    assert (search.SEED, search.SEARCH.SEED, search.SOLVER.BASE_LR) == (0, 2, 0.25)
    assert os.path.join("elsewhere", "supernet") == supernet.OUTPUT_DIR
    assert os.path.join("elsewhere", "supernet", "model_final.pth") == search.MODEL.WEIGHTS


def test_repeated_stages_differ_in_seed_and_start_from_their_own(folder: Path) -> None:
    stages = (
        {**TRAIN, "REPEAT": 2, "FOLDER": "../shared"},
        retrain("random", "random 1", WEIGHTS="supernet", REPEAT=2, OPTS=["SEED", 7]),
        retrain("again", "uniform 3x3", WEIGHTS="supernet_2", REPEAT=1, ROW="random"),
    )
    pipeline = read_pipeline(write(folder, *stages, TABLE=["supernet", "random"]))
    names = [stage.name for stage in pipeline.stages]
    assert names == ["supernet_1", "supernet_2", "random_1", "random_2", "again_1"]
    assert [stage.name for stage in pipeline.stages_of("random")] == names[2:]
    supernets, nets = names[:2], [pipeline.config_of(pipeline.stage(name)) for name in names[2:]]
    assert [net.SEED for net in nets] == [7, 107, 0]
    weights = [os.path.join(pipeline.folder(name), "model_final.pth") for name in supernets]
    assert [net.MODEL.WEIGHTS for net in nets] == [*weights, weights[1]]
    assert nets[0].MODEL.DETNAS.PATH != nets[1].MODEL.DETNAS.PATH
    assert pipeline.folder("supernet_2").endswith("shared_2")
    # The seeds of a table do not make them equal.
    again = read_pipeline(pipeline.file, ("SEED", "3"))
    assert [again.config_of(stage).SEED for stage in again.stages[:2]] == [3, 103]


def test_repeated_random_networks_differ_in_the_network_alone(folder: Path) -> None:
    stages = (
        retrain("pretrain", "random", REPEAT=2, FOLDER="../shared/random"),
        retrain("random", "random", WEIGHTS="pretrain", REPEAT=2),
    )
    pipeline = read_pipeline(write(folder, *stages, TABLE=["random"]))
    assert [stage.name for stage in pipeline.stages][2:] == ["random_1", "random_2"]
    assert [stage.path for stage in pipeline.stages] == 2 * ["random 1", "random 2"]
    nets = [pipeline.config_of(stage) for stage in pipeline.stages]
    assert {net.SEED for net in nets} == {0}
    assert nets[2].MODEL.DETNAS.PATH == nets[0].MODEL.DETNAS.PATH != nets[1].MODEL.DETNAS.PATH
    assert os.path.join(pipeline.folder("pretrain_2"), "model_final.pth") == nets[3].MODEL.WEIGHTS
    assert pipeline.folder("pretrain_2").endswith("shared/random_2")


def test_configs_are_resolved_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when a search before has found another path."""
    pipeline = read_pipeline(write(folder, TRAIN, SEARCH, retrain("winner", "search")))
    monkeypatch.setattr(definition, "load_config", lambda *_, **__: pytest.fail("read again"))
    supernet, _, winner = pipeline.stages
    cfg = pipeline.config_of(supernet)
    cfg.SEED = 7  # of a caller, who has a copy
    assert pipeline.config_of(supernet).SEED == pipeline.begin_of(supernet).SEED == 0
    history = History.open(folder / "runs" / "search", {}, resume=False)
    for count, op in enumerate(TINY.ops[:2]):
        path = TINY.uniform_path(op)
        scores = {"fitness": float(count), "metrics": {}, "macs": 1, "params": 1}
        rest = {"latency_ms": None, "error": None, "seconds": {}, "finished": ""}
        place = {"index": count, "generation": 1, "position": count, "origin": "random"}
        text = {"path": str(path), "choices": tuple(path)}
        history.append(CandidateRecord(**place, **text, **scores, **rest))
        assert str(path) == pipeline.config_of(winner).MODEL.DETNAS.PATH


def test_random_genotype_is_of_the_network_that_overrides_name(tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "configs" / "HitDetector" / "demo"
    ops = {"BACKBONE": "skip / skip / skip / skip", "NECK": " ".join(["skip"] * 8)}
    genotype = {"MODEL": {"HIT": {"GENOTYPE": {**ops, "HEAD": "skip skip"}}}, "VERSION": 2}
    (tmp_path / "runs" / "search").mkdir(parents=True)
    (tmp_path / "runs" / "search" / "genotype.yaml").write_text(yaml.safe_dump(genotype))
    stages = (
        {"NAME": "search", "KIND": "gradient", "CONFIG": str(demo / "search.yaml")},
        {"NAME": "random", "KIND": "train", "CONFIG": str(demo / "train.yaml")},
    )
    drawn = {**stages[1], "MERGE": ["search"], "RANDOM": 1}
    small = ("MODEL.HIT.NETWORK", "hit_tiny_half", "MODEL.HIT.OPS.BACKBONE", ["skip", "conv_k1"])
    others = ("MODEL.HIT.OPS.NECK", ["skip"], "MODEL.HIT.OPS.HEAD", ["skip"])
    pipeline = read_pipeline(write(tmp_path, stages[0], drawn), (*small, *others))
    found = pipeline.config_of(pipeline.stage("random"))
    parts = genotype_of(found).parts
    assert len(parts["backbone"]) == 4 and set(parts["backbone"]) <= {"skip", "conv_k1"}
    assert set(parts["neck"]) == set(parts["head"]) == {"skip"}


def test_overrides_reach_the_config_that_a_search_completes(folder: Path) -> None:
    file = write(folder, TRAIN, SEARCH)
    run_pipeline(arguments(file, "SOLVER.BASE_LR", "0.005"))
    assert load_config(str(folder / "runs" / "search" / "best.yaml")).SOLVER.BASE_LR == 0.005


def test_data_of_later_stages_is_checked_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_run, "_run_stage", lambda args: pytest.fail("a stage ran"))
    test = retrain("winner", "search", OPTS=["DATASETS.TEST", "('shapes_tset',)"])
    with pytest.raises(PipelineError, match="stage 'winner': Dataset 'shapes_tset' is neither"):
        run_pipeline(arguments(write(folder, TRAIN, SEARCH, test)))
    test = retrain("winner", "search", OPTS=["MODEL.ROI_HEADS.NUM_CLASSES", "5"])
    with pytest.raises(PipelineError, match="stage 'winner': MODEL.ROI_HEADS.NUM_CLASSES is 5"):
        run_pipeline(arguments(write(folder, TRAIN, SEARCH, test)))


def test_paths_of_stages(folder: Path) -> None:
    stages = (
        TRAIN,
        SEARCH,
        retrain("uniform", "uniform 5x5"),
        retrain("text", str(TINY.uniform_path("xception"))),
        *(retrain(f"random_{seed}", f"random {seed}") for seed in range(8)),
    )
    pipeline = read_pipeline(write(folder, *stages))
    found = {s.name: pipeline.config_of(s).MODEL.DETNAS.PATH for s in pipeline.stages[2:]}
    assert found["uniform"] == str(TINY.uniform_path("5x5"))
    assert found["text"] == str(TINY.uniform_path("xception"))
    drawn = [TINY.path(text) for name, text in found.items() if name.startswith("random")]
    table = build_cost_table(TINY, (64, 64))
    assert len(set(drawn)) > 4
    assert all(table.cost(path).macs <= median_macs() for path in drawn)


def test_pipeline_is_resumed_where_it_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = (
        TRAIN,
        SEARCH,
        retrain("winner", "search", WEIGHTS="supernet"),
        retrain("random_1", "random 1", ROW="random"),
        retrain("random_2", "random 2", ROW="random"),
    )
    file = write(folder, *stages, TABLE=["winner", "random"])
    run_search = stage_run.search

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_run, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(arguments(file))
    assert "[1/5] supernet: finished" in capsys.readouterr().out
    monkeypatch.setattr(stage_run, "search", run_search)
    assert run_pipeline(arguments(file))
    out = capsys.readouterr().out
    content = json.loads((folder / "runs" / "table.json").read_text())
    rows = content["rows"]
    assert "[1/5] supernet: done before" in out and "[5/5] random_2: finished" in out
    runs = folder / "runs"
    best = History.read(runs / "search").best()[0]
    assert rows["winner"]["paths"] == [best.path]
    assert (rows["winner"]["macs"], rows["winner"]["params"]) == (best.macs, best.params)
    assert (rows["winner"]["networks"], rows["random"]["networks"]) == (1, 2)
    done = [json.loads((runs / f"random_{i}" / "done.json").read_text()) for i in (1, 2)]
    values = [d["results"]["bbox/AP50"] for d in done]
    mean, deviation = rows["random"]["metrics"]["bbox/AP50"]
    assert mean == pytest.approx(sum(values) / 2)
    assert deviation == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    table = (runs / "table.md").read_text()
    assert table.startswith(format_table(rows)) and table in out
    assert "- winner against random: bbox/AP50 " in table and "(one run: no interval)" in table

    def fail(args: object) -> None:
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr(stage_run, "_run_stage", fail)
    assert run_pipeline(arguments(file))
    assert json.loads((runs / "table.json").read_text()) == content
    # Another device or number of workers is the same experiment.
    run_pipeline(arguments(file, "DATALOADER.NUM_WORKERS", "1"))
    with pytest.raises(PipelineError, match=r"'supernet' was .* \(SOLVER.BASE_LR: 0.01 -> 0.5\)"):
        run_pipeline(arguments(file, "SOLVER.BASE_LR", "0.5"))
    # Another search does not ask for another supernet.
    with pytest.raises(PipelineError, match=r"'search' was .* \(SEARCH.SEED: 0 -> 3\); .*runs/sea"):
        run_pipeline(arguments(file, "SEARCH.SEED", "3"))
    # What starts from a stage is stale when that stage is not the same any more.
    changed = {**TRAIN, "OPTS": ["SOLVER.BASE_LR", 0.5]}
    os.remove(runs / "supernet" / "done.json")
    file = write(folder, changed, *stages[1:], TABLE=["winner", "random"])
    monkeypatch.setattr(stage_run, "_run_stage", lambda args: None)
    with pytest.raises(PipelineError, match="'supernet' was run with another config"):
        run_pipeline(arguments(file))
    shutil.rmtree(runs / "supernet")
    with pytest.raises(PipelineError, match="'search' was run with another config of a stage bef"):
        run_pipeline(arguments(file))


def test_format_of_the_table() -> None:
    row = {"networks": 1, "metrics": {"bbox/AP": (31.257, 0.0)}, "macs": 3e8, "params": 1_849_680}
    many = {**row, "networks": 3, "metrics": {"bbox/AP": (30.0, 0.456)}}
    assert format_table({"winner": row, "random": many}).splitlines() == [
        "| network | bbox/AP | MACs (M) | params (M) |",
        "|---|---|---|---|",
        "| winner | 31.26 | 300.0 | 1.850 |",
        "| random | 30.00 ± 0.46 (3 nets) | 300.0 | 1.850 |",
    ]


def test_gradient_stage_completes_its_retrain_config(tmp_path: Path) -> None:
    search = scene_config(tmp_path, "search.yaml", "search", "SOLVER.MAX_ITER", 2).clone()
    search.defrost()
    search.HIT_SEARCH.RETRAIN_CONFIG = "../retrain.yaml"
    (tmp_path / "configs").mkdir()
    write_config(search, tmp_path / "configs" / "search.yaml")
    search.SOLVER.BASE_LR, search.HIT_SEARCH.RETRAIN_CONFIG = 0.123, ""
    write_config(search, tmp_path / "retrain.yaml")
    stage = {"NAME": "search", "KIND": "gradient", "CONFIG": "configs/search.yaml"}
    run_pipeline(arguments(write(tmp_path, stage)))
    best = yaml.safe_load((tmp_path / "runs" / "search" / "best.yaml").read_text())
    assert best["SOLVER"]["BASE_LR"] == 0.123 and best["MODEL"]["HIT"]["GENOTYPE"]


def test_spread_of_what_is_undefined() -> None:
    assert mean_and_deviation([1.0, 3.0]) == (2.0, math.sqrt(2))
    assert mean_and_deviation([5.0]) == (5.0, 0.0)
    # AP where nothing is detected.
    assert all(math.isnan(value) for value in mean_and_deviation([math.nan, 3.0]))
