"""The family of a front on the page of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from detnas_d2.evaluation import CandidateRecord
from detnas_d2.pipeline.family import TRAINED, TUNED
from detnas_d2.pipeline.latency_record import keep_latency
from detnas_d2.report.family import family_part
from detnas_d2.report.found import read_folder
from detnas_d2.report.page import page_of
from detnas_d2.search.front_file import FRONT_FILE, front_text
from detnas_d2.search.history import HEADER_FILE, History
from detnas_d2.search.objectives import Objectives
from tests.report.folders import TINY, config, latency, write_stage, write_test


def write_front(search: Path) -> list[CandidateRecord]:
    """As a search of several objectives leaves it."""
    header = json.loads((search / HEADER_FILE).read_text())
    settings = {"objectives": ["fitness", "params", "macs"]}
    header["fingerprint"]["searcher"] = {"settings": settings}
    (search / HEADER_FILE).write_text(json.dumps(header))
    objectives = Objectives(("params", "macs"), (0, 0), (10**7, 10**9))
    front = objectives.front(History.read(search))
    (search / FRONT_FILE).write_text(front_text(objectives, front, "bbox/AP"))
    return front


@pytest.fixture
def front(run: Path, truth: dict[str, Any], tmp_path: Path) -> list[CandidateRecord]:
    """Beside the networks of ``run``: the first and last member, each in three ways."""
    members = write_front(run / "search")
    cfg = config(tmp_path / "data")
    for number, member in ((1, members[0]), (2, members[-1])):
        for name in ("inherited", "tuned", "retrained"):
            folder = run / f"{name}_{number}"
            cfg.MODEL.DETNAS.PATH = member.path
            cfg.MODEL.WEIGHTS = str(run / "search" / "front" / "1.pth") if name == "tuned" else ""
            results = write_test(folder, tmp_path / "data", truth, number)
            write_stage(folder, cfg, {"results": results, "path": member.path})
            if name != "inherited":
                (folder / "metrics.json").write_text("")
    return members


def test_family(run: Path, front: list[CandidateRecord]) -> None:
    found = read_folder(str(run))
    (search,) = found.of_kind("search")
    part = family_part(found, search)
    assert part is not None and not part.timed and len(part.figures) == 1
    lines = [line for line in part.family.lines if line.number is not None]
    first, last = lines[0], lines[-1]
    assert first.number == 1 and last.number == len(front) == part.family.size
    assert first.cost.params == front[0].params and last.fitness == front[-1].fitness
    assert {"inherited", TUNED, TRAINED} == set(first.cells) == set(last.cells)
    assert all(cell.interval is not None for cell in first.cells.values())
    by_hand = next(line for line in part.family.lines if line.name == "handmade, by hand")
    assert by_hand.cost.macs > 0 and TINY.name == "detnas_tiny"

    page = page_of(found)
    assert 'id="family"' in page and f"member 1 of {len(front)}" in page
    assert "\nRecommended: bbox/AP" in page and "\nBest: " not in page
    assert "family-macs" in page
    # Its search is drawn over both costs that it traded.
    assert "parameters, millions" in page and "multiply-adds, millions" in page


def test_detectors_of_others_stand_beside(
    run: Path, front: list[CandidateRecord], truth: dict[str, Any], tmp_path: Path
) -> None:
    """A ResNet that was trained here, and one of a zoo that is tested as it is."""
    cfg = config(tmp_path / "data")
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.WEIGHTS = "build_resnet_fpn_backbone", "resnet18.pth"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    for name in ("resnet", "zoo"):
        results = write_test(run / name, tmp_path / "data", truth, 5)
        write_stage(run / name, cfg, {"results": results})
    (run / "resnet" / "metrics.json").write_text("")
    found = read_folder(str(run))
    (search,) = found.of_kind("search")
    part = family_part(found, search)
    assert part is not None
    lines = {line.name: line for line in part.family.lines}
    for name, kind in (("resnet", "train"), ("zoo", "evaluate")):
        assert [stage.kind for stage in found.stages if stage.name == name] == [kind]
        line = lines[f"{name}, by hand"]
        assert set(line.cells) == {TRAINED} and line.number is None
        with torch.device("meta"):
            theirs = resnet18(weights=None)
        own = sum(p.numel() for key, p in theirs.named_parameters() if not key.startswith("fc."))
        assert line.cost.params == own and line.cost.macs > 0
    assert "resnet, by hand" in page_of(found)


def test_latencies_that_were_measured(run: Path, front: list[CandidateRecord]) -> None:
    found = read_folder(str(run))
    (search,) = found.of_kind("search")
    file, best = run / "search" / FRONT_FILE, front[0].path
    file.write_text(re.sub("^best: .*", f"best: {best}", file.read_text(), flags=re.MULTILINE))
    cfg = search.config.clone()
    cfg.MODEL.DETNAS.PATH = best
    (run / "search" / "best_inherited.yaml").write_text(cfg.dump())
    keep_latency(str(run / "search" / "best_inherited.yaml"), latency(7.0))
    keep_latency(str(run / "tuned_2" / "config.yaml"), latency(12.34))
    part = family_part(found, search)
    assert part is not None and part.timed
    told = {line.number: line.milliseconds for line in part.family.lines if line.milliseconds}
    assert told == {1: 7.0, len(front): 12.34}
    page = page_of(found)
    assert "<td>12.3</td>" in page[page.index('id="family"') :]


def test_a_damaged_front_costs_its_sections_alone(run: Path, front: list[CandidateRecord]) -> None:
    (run / "search" / FRONT_FILE).write_text("best: [")
    page = page_of(read_folder(str(run)))
    assert 'id="family"' not in page and "front.yaml" in page and 'id="networks"' in page


def test_a_run_without_front_has_no_family(run: Path) -> None:
    found = read_folder(str(run))
    assert family_part(found, found.of_kind("search")[0]) is None
    assert 'id="family"' not in page_of(found)
