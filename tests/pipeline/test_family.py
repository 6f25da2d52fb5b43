"""Members of a front as stages of a pipeline, and their table with other networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from detnas_d2.engine.proposals import Proposals
from detnas_d2.pipeline import tested_images
from detnas_d2.pipeline.definition import Pipeline, read_pipeline
from detnas_d2.pipeline.family import Family, families
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.pipeline.state import DONE, STOPPED
from detnas_d2.pipeline.status import stage_state
from detnas_d2.search import History
from detnas_d2.search.front_file import read_front
from tests.campaigns.tiny import detnas_pipeline
from tests.engine.tiny_runs import arguments
from tests.pipeline.family_stages import ONE_STEP, members_and_equals
from tests.pipeline.test_inherited_stages import rewritten

INHERITED, TUNED, TRAINED, EQUAL = members_and_equals("retrain.yaml")
BY_HAND = {"NAME": "plain", **ONE_STEP, "CONFIG": "retrain.yaml", "PATH": "uniform 3x3"}
ALL = (INHERITED, TUNED, TRAINED, EQUAL, BY_HAND)
OBJECTIVES = ["fitness", "macs"]


def written(root: Path, *stages: dict[str, Any], objectives: list[str] = OBJECTIVES) -> str:
    """A pipeline of a supernet, a search and ``stages``, which are the rows of its table."""
    file = detnas_pipeline(root, networks=0, generations=2, scoring_workers=0)
    config = root / "search.yaml"
    search = yaml.safe_load(config.read_text())
    search["SEARCH"]["OBJECTIVES"] = objectives
    config.write_text(yaml.safe_dump(search))
    return rewritten(file, *stages)


def test_members_next_to_other_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = written(tmp_path, *ALL), tmp_path / "runs"
    assert not run_pipeline(arguments(file, dry_run=True))
    assert run_pipeline(arguments(file))
    pipeline = read_pipeline(file)
    records = History.read(runs / "search")
    front = read_front(str(runs / "search"), records)
    ends = [front.members[0], front.members[-1]]
    for name in ("inherited", "tuned", "trained"):
        configs = [pipeline.config_of(pipeline.known_stage(f"{name}_{n}")) for n in (1, 2)]
        assert [cfg.MODEL.DETNAS.PATH for cfg in configs] == [member.path for member in ends]
        weights = [cfg.MODEL.WEIGHTS for cfg in configs]
        own = [str(runs / "search" / "front" / f"{n}.pth") for n in (1, len(front.members))]
        assert weights == (["", ""] if name == "trained" else own)
        assert len({cfg.SEED for cfg in configs}) == 1  # other networks, not other trainings
    _check_equal_cost(pipeline, ends)
    logs = [(runs / f"tuned_{n}" / "log.txt").read_text() for n in (1, 2)]
    assert "Stage tuned_1 is done" in logs[0] and "Stage tuned_2 is done" in logs[0]
    assert "is done" not in logs[1]  # it was trained with the first

    text = capsys.readouterr().out
    assert "[6/11] tuned_2: finished in" in text and "tuned_2: train" not in text
    assert "The front of search: bbox/AP on test images" in text
    ((name, family),) = families(pipeline)
    assert name == "search" and text.strip().endswith(family.text()) or family.text() in text
    _check_family(family, pipeline, ends, len(front.members))
    told = json.loads((runs / "family.json").read_text())
    assert [line["name"] for line in next(iter(told.values()))["lines"]] == [
        line.name for line in family.lines
    ]

    # Intervals are kept; without predictions there are none.
    monkeypatch.setattr(tested_images, "saved_matches", None)
    assert [found.text() for _, found in families(pipeline)] == [family.text()]
    (runs / "tuned_1" / "inference" / "coco_instances_results.json").unlink()
    ((_, other),) = families(pipeline)
    assert other.lines[0].cells["fine-tuned"].interval is None

    # Checkpoints of members are products of the search.
    search = pipeline.known_stage("search")
    assert stage_state(pipeline, search) == DONE
    (runs / "search" / "front" / "1.pth").unlink()
    assert stage_state(pipeline, search) == STOPPED


def _check_equal_cost(pipeline: Pipeline, members: list[Any]) -> None:
    proposals = Proposals.from_config(pipeline.config_of(pipeline.known_stage("search")))
    for number, member in enumerate(members, start=1):
        cfg = pipeline.config_of(pipeline.known_stage(f"equal_{number}"))
        path = proposals.space.path(cfg.MODEL.DETNAS.PATH)
        macs = proposals.costs.macs.total(path.choices)
        assert 0.95 * member.macs <= macs <= 1.05 * member.macs
        assert member.path != cfg.MODEL.DETNAS.PATH


def _check_family(family: Family, pipeline: Pipeline, ends: list[Any], size: int) -> None:
    first, last, *others = family.lines
    assert (first.number, last.number) == (1, size) and family.metric == "bbox/AP"
    assert first.name.startswith(f"member 1 of {size}")
    assert [(line.fitness, line.cost.macs) for line in (first, last)] == [
        (member.fitness, member.macs) for member in ends
    ]
    # retrain.yaml tests on the images of the search.
    assert first.cells["inherited"].mean == pytest.approx(ends[0].fitness, abs=1e-6)
    for line in (first, last):
        assert set(line.cells) == {"inherited", "fine-tuned", "trained"}
        low, high = line.cells["inherited"].interval or (1.0, 0.0)
        assert low <= line.cells["inherited"].mean <= high
    treated = {line.name: list(line.cells) for line in others}
    assert treated == {
        "equal_1": ["fine-tuned"],
        "equal_2": ["fine-tuned"],
        "plain, by hand": ["trained"],
    }


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{**TRAINED, "NAME": "a", "PATH": "front serch"}], "'serch' is no earlier"),
        (
            [{"NAME": "a", "KIND": "train", "CONFIG": "retrain.yaml", "PATH": "front search"}],
            r"PATH 'front search': expected REPEAT next to it, .* 'front search 1/4'",
        ),
        (
            [{"NAME": "a", "KIND": "train", "CONFIG": "retrain.yaml", "PATH": "front search 3/2"}],
            "expected NUMBER/COUNT, e.g. 2/3",
        ),
        ([{**TUNED, "WEIGHTS": "search", "PATH": "random"}], "expected PATH 'search' or 'front se"),
        ([{**TUNED, "TOGETHER": "yes"}], "TOGETHER is 'yes': expected true or false"),
        (
            [{**INHERITED, "TOGETHER": True}],
            "TOGETHER: expected a training .KIND train. of several",
        ),
        ([{**TUNED, "PATH": "search"}], "TOGETHER: expected a training"),
        ([INHERITED, TUNED], "TABLE has members of a front .inherited. and nothing to compare"),
    ],
)
def test_mistakes(stages: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=message):
        read_pipeline(written(tmp_path, *stages))


def test_a_search_of_one_objective_has_no_front(tmp_path: Path) -> None:
    file = written(tmp_path, TUNED, BY_HAND, objectives=["fitness"])
    with pytest.raises(PipelineError, match=r"stage 'tuned_1': .*OBJECTIVES are \['fitness'\]"):
        read_pipeline(file)


def test_more_members_than_there_are(tmp_path: Path) -> None:
    file = written(tmp_path, {**TRAINED, "REPEAT": 9}, BY_HAND)
    with pytest.raises(
        PipelineError, match=r"member 1 of 9, but the front of 'search' has \d; set"
    ):
        run_pipeline(arguments(file))
