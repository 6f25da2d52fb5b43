"""Searches of Hit-Detectors by sampling in a pipeline: winners, fronts, what is beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.tools import base_config, load_config
from detnas_d2.engine.architectures import architectures_of
from detnas_d2.engine.proposals import Proposals
from detnas_d2.pipeline.checks import check_stages
from detnas_d2.pipeline.definition import Pipeline, read_pipeline
from detnas_d2.pipeline.family import Family, families
from detnas_d2.pipeline.fronts import _points_of
from detnas_d2.pipeline.report import network_cost
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.report import write_report
from detnas_d2.search import History
from detnas_d2.search.front_file import read_front, read_objectives
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.hit_space import HitSpace
from tests.campaigns.tiny import hit_pipeline
from tests.engine.hit_runs import DEMO, OPS
from tests.engine.tiny_runs import arguments
from tests.pipeline.family_stages import ONE_STEP, members_and_equals

PARTS = ("BACKBONE", "NECK", "HEAD")
CHANNELS = [12, 32]
HAND_MADE = {
    "BACKBONE": "sep_k3_d1 / sep_k3_d1 / sep_k3_d1 / sep_k3_d1",
    "NECK": "conv_k1 conv_k1 conv_k1 conv_k1 / conv_k1 conv_k1 conv_k1 conv_k1",
    "HEAD": "skip conv_k1",
}
INHERITED, TUNED, TRAINED, EQUAL = members_and_equals("train.yaml")
BY_HAND = {
    "NAME": "plain",
    "KIND": "train",
    "CONFIG": "train.yaml",
    "OPTS": [
        *("SOLVER.MAX_ITER", 1),
        *(word for part in PARTS for word in (f"MODEL.HIT.GENOTYPE.{part}", HAND_MADE[part])),
    ],
}
ALL = (INHERITED, TUNED, TRAINED, EQUAL, BY_HAND)
WHOLE = {key: value for key, value in {**INHERITED, "NAME": "all"}.items() if key != "REPEAT"}


def written(
    root: Path,
    *stages: dict[str, Any],
    channels: list[int] = CHANNELS,
    screened: bool = False,
    objectives: str = "['fitness', 'macs']",
) -> str:
    """A pipeline of a supernet, a search and ``stages``, which are the rows of its table."""
    root.mkdir(parents=True, exist_ok=True)
    scenes = {
        "DATASETS": {
            "DIGITS": {"SCENE_SIZE": 64, "NUM_TRAIN": 12, "NUM_TEST": 4},
            "CACHE_DIR": str(root / "cache"),
        },
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MAX_SIZE_TRAIN": 64}
        | {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 64},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2},
        "VERSION": base_config().VERSION,
    }
    hit = {"NETWORK": "hit_tiny_half", "OPS": dict.fromkeys(PARTS, OPS)}
    sampled = {**hit, "STRATEGY": "sampling", "NECK_CHANNELS": channels}
    everything = {"ROI_HEADS": {"SCORE_THRESH_TEST": 0.0}}  # an AP above zero
    search = {"VAL": "digits_scenes_train@search_val", "SCORING_WORKERS": 0, "CHUNK": 2}
    search |= {"MAX_MACS_INPUT": [64, 64], "POPULATION": 3, "GENERATIONS": 2}
    search |= {"CALIBRATION": {"IMAGES": 4, "BATCH_SIZE": 2}, "RETRAIN_CONFIG": "train.yaml"}
    _write(root / "search.yaml", "search", scenes, sampled, everything, search)
    _write(root / "train.yaml", "train", scenes, hit, everything)
    data = yaml.safe_load((root / "train.yaml").read_text())
    data["DATASETS"]["TEST"] = ["digits_scenes_train@search_val"]  # fitness is the test's AP
    data["TEST"] = {"PRECISE_BN": {"ENABLED": False}}
    (root / "train.yaml").write_text(yaml.safe_dump(data))
    merge = {"MERGE": ["screen"]} if screened else {}
    first = [
        {"NAME": "supernet", "KIND": "train", "CONFIG": "search.yaml", **merge},
        {"NAME": "search", "KIND": "search", "CONFIG": "search.yaml", "WEIGHTS": "supernet"}
        | merge
        | {"OPTS": ["SEARCH.OBJECTIVES", objectives]},
    ]
    if screened:
        hit_pipeline(root / "screens")
        screen = {"NAME": "screen", "KIND": "screen", "CONFIG": "screens/screen_head.yaml"}
        first.insert(0, screen)
    pipeline = {
        "OUTPUT_DIR": str(root / "runs"),
        "STAGES": [*first, *stages],
        "TABLE": [stage["NAME"] for stage in stages if stage["NAME"] != "all"],
    }
    file = root / "pipeline.yaml"
    file.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    return str(file)


def _write(
    file: Path,
    base: str,
    data: dict[str, Any],
    hit: dict[str, Any],
    model: dict[str, Any],
    search: dict[str, Any] | None = None,
) -> None:
    more: dict[str, Any] = {"SUPERNET": {"CHECK": {"PATHS": 0}}, "SEARCH": search} if search else {}
    more["HIT_SEARCH"] = {"ARCH_START_ITER": -1, "COST_PROPOSALS": 8}
    value = {"_BASE_": str(DEMO / f"{base}.yaml"), **data, "MODEL": {**model, "HIT": hit}, **more}
    file.write_text(yaml.safe_dump(value))


def test_members_next_to_other_detectors(tmp_path: Path) -> None:
    file, runs = written(tmp_path, *ALL, WHOLE), tmp_path / "runs"
    assert run_pipeline(arguments(file))
    pipeline = read_pipeline(file)
    search = pipeline.counted(pipeline.known_stage("search"))
    proposals = Proposals.from_config(search)
    space = proposals.space
    assert isinstance(space, ElasticHitSpace)
    front = read_front(str(runs / "search"), History.read(runs / "search"))
    ends = [front.members[0], front.members[-1]]
    for name in ("inherited", "tuned", "trained"):
        for number, member in enumerate(ends, start=1):
            cfg = load_config(str(runs / f"{name}_{number}" / "config.yaml"))
            (genotype,) = architectures_of(cfg)
            assert genotype == space.genotype(space.path(member.path))
            assert cfg.MODEL.HIT.SEARCHABLE_PARTS == []
            weights = "" if name == "trained" else front.members.index(member) + 1
            assert Path(cfg.MODEL.WEIGHTS).stem == str(weights)
    for number, member in enumerate(ends, start=1):
        done = json.loads((runs / f"equal_{number}" / "done.json").read_text())
        macs = proposals.costs.macs.total(space.path(done["path"]).choices)
        assert 0.95 * member.macs <= macs <= 1.05 * member.macs
        assert done["path"] != member.path
    ((name, family),) = families(pipeline)
    assert name == "search"
    _check_family(family, pipeline, ends, len(front.members))
    _check_costs(family, pipeline, ends)
    tested = _points_of(pipeline, read_objectives(str(runs / "search")))["search"]
    assert [results["bbox/AP"] for results, _ in tested] == pytest.approx(
        [member.fitness for member in front.members], abs=1e-6
    )
    page = Path(write_report(str(runs))).read_text()
    assert 'href="#family"' in page and "plain, by hand" in page
    assert "multiply-adds of the whole detector" in page and "could not be made" not in page


def _check_family(family: Family, pipeline: Pipeline, ends: list[Any], size: int) -> None:
    first, last, *others = family.lines
    assert (first.number, last.number) == (1, size) and family.metric == "bbox/AP"
    for line, member in zip((first, last), ends, strict=True):
        assert line.fitness == member.fitness
        assert set(line.cells) == {"inherited", "fine-tuned", "trained"}
        assert line.cells["inherited"].mean == pytest.approx(member.fitness, abs=1e-6)
    assert {line.name: list(line.cells) for line in others} == {
        "equal_1": ["fine-tuned"],
        "equal_2": ["fine-tuned"],
        "plain, by hand": ["trained"],
    }


def _check_costs(family: Family, pipeline: Pipeline, ends: list[Any]) -> None:
    for line, member in zip(family.lines, ends, strict=False):
        assert (line.cost.macs, line.cost.params) == (member.macs, member.params)
    by_hand = pipeline.counted(pipeline.known_stage("plain"))
    (line,) = [line for line in family.lines if line.name == "plain, by hand"]
    assert line.cost == analyze(by_hand, input_size=(64, 64), proposals=8)["total"]
    rows = json.loads(Path(pipeline.output_dir, "table.json").read_text())["rows"]
    assert rows["plain"]["macs"] == line.cost.macs
    limits = pipeline.limits_for(by_hand)
    assert network_cost(by_hand, "", limits) == line.cost


def test_a_winner_and_paths_of_other_kinds(tmp_path: Path) -> None:
    """The best of a search of one objective and one width, random paths, and two by hand."""
    found = {"CONFIG": "train.yaml", "WEIGHTS": "search", "PATH": "search"}
    text = " / ".join([*["conv_k1"] * 4, *2 * ["conv_k1 conv_k1 conv_k1 conv_k1"], "skip conv_k1"])
    stages = (
        {"NAME": "inherited", "KIND": "evaluate", **found},
        {"NAME": "random", **ONE_STEP, "CONFIG": "train.yaml", "PATH": "random 1"},
        {"NAME": "uniform", **ONE_STEP, "CONFIG": "train.yaml", "PATH": "uniform conv_k1"},
        {"NAME": "given", **ONE_STEP, "CONFIG": "train.yaml", "PATH": text},
    )
    file = written(tmp_path, *stages, channels=[], objectives="['fitness']")
    pipeline, runs = read_pipeline(file), tmp_path / "runs"
    drawn = [pipeline.path_of(s, pipeline.config_of(s)) for s in pipeline.stages[3:]]
    assert len(set(drawn)) == 3 and isinstance(drawn[0].space, HitSpace)
    assert str(drawn[2]) == text
    assert pipeline.config_of(pipeline.stages[-1]).MODEL.HIT.GENOTYPE.HEAD == "skip conv_k1"
    assert run_pipeline(arguments(file, "SOLVER.MAX_ITER", "1", "SEARCH.GENERATIONS", "1"))
    best = History.read(runs / "search").best()[0]
    done = json.loads((runs / "inherited" / "done.json").read_text())
    assert done["path"] == best.path
    assert done["results"]["bbox/AP"] == pytest.approx(best.fitness, abs=1e-6)

    # Costs are of whole detectors: those that the search counts, and what it has not searched.
    search = pipeline.counted(pipeline.known_stage("search"))
    table, rest = Proposals.from_config(search).costs, set()
    for stage in pipeline.stages[2:]:
        cfg = load_config(str(runs / stage.name / "config.yaml"))
        path = pipeline.path_of(stage, cfg)
        whole, counted = network_cost(cfg, str(path), search), table.cost(path.choices)
        rest.add((whole.macs - counted.macs, whole.params - counted.params))
    assert len(rest) == 1 and min(rest.pop()) > 0


def test_spaces_of_screened_operations(tmp_path: Path) -> None:
    """Before the screening its result, and so the space of all paths, is an example."""
    random = {"NAME": "random", **ONE_STEP, "CONFIG": "train.yaml", "REPEAT": 2, "PATH": "random"}
    file = written(tmp_path, INHERITED, EQUAL, random, screened=True)
    pipeline = read_pipeline(file)
    check_stages(pipeline, set())
    sources = pipeline.sources_of(pipeline.known_stage("random_1"))
    assert [source.name for source in sources] == ["screen"]


def test_a_model_without_a_part_of_the_path_is_refused(tmp_path: Path) -> None:
    other = ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1]
    stage = {**INHERITED, "OPTS": other}
    pipeline = read_pipeline(written(tmp_path, stage, BY_HAND))
    message = r"'inherited_1': PATH 'search', but train.yaml has no head of a Hit-Detector"
    with pytest.raises(PipelineError, match=message):
        check_stages(pipeline, set())
