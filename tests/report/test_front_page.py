"""The front of a search on the page: its hypervolume and what is recommended, comparisons of
fronts, the check of a latency table, and files that were evaluated after export.
"""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from detnas_d2.config.tools import load_config
from detnas_d2.pipeline.differences import Difference
from detnas_d2.pipeline.export_record import EXPORTS_FILE, keep_export, read_exports
from detnas_d2.pipeline.family import TRAINED, TUNED
from detnas_d2.pipeline.fronts import FRONTS_FILE, FrontComparison, Hypervolumes
from detnas_d2.report.family import family_part
from detnas_d2.report.found import read_folder
from detnas_d2.report.front import front_part
from detnas_d2.report.page import page_of
from detnas_d2.search.front_file import FRONT_FILE, front_text, read_front
from detnas_d2.search.history import HEADER_FILE, RECORDS_FILE, History
from detnas_d2.search.objectives import Objectives
from detnas_d2.search_space import LatencyTable
from tests.report.folders import TINY
from tests.report.test_family_page import front  # noqa: F401

LEAST, MOST = 1e6, 21e6
MILLIONS = 1e6


def write_mac_front(search: Path, *budgets: float, intervals: Any = None) -> list[Any]:
    """The front over multiply-adds alone, with these budgets."""
    objectives = Objectives(("macs",), (LEAST,), (MOST,), budgets)
    found = objectives.front(History.read(search))
    (search / FRONT_FILE).write_text(front_text(objectives, found, "bbox/AP", intervals))
    return found


def section(run: Path, name: str) -> str:
    """Text of a section of the page, without what is escaped."""
    page = html.unescape(page_of(read_folder(str(run))))
    start = page.index(f'<h2 id="{name}">')
    return page[start : page.index("</section>", start)]


def mean_best(points: list[tuple[float, float]]) -> float:
    """Mean over budgets from LEAST to MOST of the highest fitness within one."""
    total, best, place = 0.0, 0.0, LEAST
    for cost, fitness in sorted(points):
        total += best * (cost - place)
        best, place = max(best, fitness), cost
    return (total + best * (MOST - place)) / (MOST - LEAST)


def test_budgets(run: Path) -> None:
    """Of several one member may be the best, or none."""
    members = write_mac_front(run / "search")
    assert len(members) > 2 and members[0].macs > LEAST and members[-1].macs < MOST
    budgets = (members[1].macs, members[1].macs + 1, LEAST)
    intervals = {members[1].path: (12.34, 56.78)}
    write_mac_front(run / "search", *budgets, intervals=intervals)
    text = section(run, "front")
    points = [(r.macs, r.fitness) for r in History.read(run / "search") if r.fitness is not None]
    told = "the mean, over all budgets from 1M to 21M of multiply-adds, of the highest fitness"
    assert f"Hypervolume {mean_best(points):.2f}: {told}" in text
    within = f"within {members[1].macs / MILLIONS:.3g}M"
    assert f"Recommended for budgets of multiply-adds: member 2 {within}, {within}. Each" in text
    assert "is the fittest member within its budget, of equally fit ones the cheapest" in text
    assert "Budgets of multiply-adds that no member is within: 1M" in text
    assert "(12.3 to 56.8)" in text and text.count('class="chosen"') == 1
    assert all(record.path in text for record in members)
    part = front_part(read_folder(str(run)).of_kind("search")[0])
    assert part is not None and part.metric == "bbox/AP"
    assert [m.recommended != "" for m in part.members] == [m.number == 2 for m in part.members]
    read = read_front(str(run / "search"), History.read(run / "search"))
    assert read.unmet == (LEAST,) and set(read.recommended) == {2}
    assert text.count("<figure>") == 2 and "Fitness over cost" in text
    # Its own section takes the place of the list of any search.
    assert "Fitness over cost" not in section(run, "search")
    assert "candidates that none is fitter than" not in section(run, "search")


def test_the_knee(run: Path) -> None:
    members = write_mac_front(run / "search")
    scaled = [
        (r.fitness - members[0].fitness) / (members[-1].fitness - members[0].fitness)
        - (r.macs - members[0].macs) / (members[-1].macs - members[0].macs)
        for r in members
    ]
    knee = 1 + scaled.index(max(scaled))
    text = section(run, "front")
    assert f"Recommended: member {knee}, the knee. With fitness and costs scaled to 0 to 1" in text
    assert '<td class="text nobreak">knee</td>' in text and "no member" not in text
    assert 'href="#front"' in page_of(read_folder(str(run)))


def test_a_run_without_front_lists_its_candidates(run: Path) -> None:
    page = page_of(read_folder(str(run)))
    assert 'id="front"' not in page and "candidates that none is fitter than" in page


def test_a_run_that_was_moved_knows_what_was_fine_tuned(
    run: Path,
    front: list[Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    config = run / "search" / "config.yaml"
    text = config.read_text()
    assert "\nOUTPUT_DIR: ./output\n" in text
    config.write_text(text.replace("OUTPUT_DIR: ./output", f"OUTPUT_DIR: '{run / 'search'}'"))
    moved = tmp_path / "elsewhere" / "cells"
    shutil.move(run, moved)
    found = read_folder(str(moved))
    part = family_part(found, found.of_kind("search")[0])
    assert part is not None
    lines = {line.number: line for line in part.family.lines}
    for number in (1, len(front)):
        cells = lines[number].cells
        assert {TUNED, TRAINED, "inherited"} == set(cells)
        assert all(len(cell.values) == 1 for cell in cells.values())


def comparison() -> FrontComparison:
    values = {"nsga2": {0: [40.0], 1: [44.0]}, "random_search": {0: [39.0], 1: [41.0]}}
    where = "after 20 evaluations"
    told = Difference(
        "nsga2", "random_search", where, 2.0, -10.7, 14.7, (0, 1), "paired by 2 seeds", ""
    )
    row = Hypervolumes(where, values, (told,))
    objectives = Objectives(("macs",), (LEAST,), (MOST,))
    return FrontComparison(("nsga2", "random_search"), objectives, (20,), (row,), ())


def test_a_comparison_in_a_folder_below(run: Path) -> None:
    """Of ``diagnose.py fronts --output RUN/fronts``."""
    assert 'id="fronts"' not in page_of(read_folder(str(run)))
    (run / "fronts").mkdir()
    (run / "fronts" / FRONTS_FILE).write_text(json.dumps(comparison().as_dict()))
    assert "+2.00 (-10.70 to +14.70)" in section(run, "fronts")
    (run / "fronts" / FRONTS_FILE).write_text("{}")
    assert "no comparison of fronts" in page_of(read_folder(str(run)))


@pytest.mark.parametrize("checked", [True, False])
def test_the_latency_table_of_a_search(checked: bool, run: Path) -> None:
    rows = tuple(tuple(1.0 + op for op in range(len(layer.ops))) for layer in TINY.layers)
    detectors = [{"path": str(n), "table": 8.0 + n, "measured": 8.5 + n} for n in range(30)]
    check = {"tau": 0.94, "tau_of_two_rounds": 0.83, "median_error": 0.015, "largest_error": 0.034}
    told: dict[str, Any] = {"runtime": "PyTorch"}
    if checked:
        told["check"] = {**check, "detectors": detectors}
    table = LatencyTable(0.5, rows, TINY.name, (64, 64), 1, "cpu", detector=told)
    (run / "search" / "latency.json").write_text(table.to_json())
    page = page_of(read_folder(str(run)))
    assert "latency.json" not in page  # no candidate has a latency
    records = [dataclasses.replace(r, latency_ms=table.total(r.choices)) for r in history(run)]
    header = (run / "search" / HEADER_FILE).read_text()
    (run / "search" / RECORDS_FILE).unlink()
    (run / "search" / HEADER_FILE).unlink()
    kept = History.open(run / "search", json.loads(header)["fingerprint"], resume=True)
    for record in records:
        kept.append(record)
    text = section(run, "search")
    assert "Latencies are by latency.json, of whole detectors in PyTorch, measured on cpu" in text
    shown = "It was checked with 30 other detectors: rank correlation tau 0.94 (of two" in text
    figure = "latency-table-0" in text and "error 1.5% in the median, 3.4% at most" in text
    assert shown == figure == checked and ("not checked" in text) != checked
    # It is found in a run that was moved, where the config names the place of then.
    config = run / "search" / "config.yaml"
    cfg = load_config(str(config))
    cfg.OUTPUT_DIR, cfg.SEARCH.LATENCY_TABLE = "/then/search", "/then/latency.json"
    config.write_text(cfg.dump())
    (run / "search" / "latency.json").rename(run / "latency.json")
    assert "Latencies are by latency.json, of whole detectors" in section(run, "search")
    # One of another space costs its lines alone.
    (run / "latency.json").write_text("{}")
    text = page_of(read_folder(str(run)))
    assert "Latency table: SEARCH.LATENCY_TABLE: " in text and 'id="search"' in text


def history(run: Path) -> list[Any]:
    return list(History.read(run / "search"))


def evaluated(scores: dict[str, float], file: str = "out/model.onnx") -> dict[str, Any]:
    """What an export with an evaluation tells."""
    eager = {"bbox": {"AP": 50.0, "AP50": 70.25, "APs": float("nan")}}
    return {
        "file": file,
        "dataset": "pets",
        "differences": [1e-6, 2e-6],
        "eager_results": eager,
        "results": {"bbox": {**eager["bbox"], **scores}},
    }


def test_files_that_were_evaluated(run: Path) -> None:
    assert 'id="exported"' not in page_of(read_folder(str(run)))
    weights = run / "searched" / "model_final.pth"
    weights.write_bytes(b"these weights")
    keep_export(str(weights), "torchscript", evaluated({}, "out/model.ts"))
    kept = keep_export(str(weights), "onnx", evaluated({"AP": 49.996}))
    assert kept == str(run / "searched" / EXPORTS_FILE)
    first, second = read_exports(str(run / "searched"))
    assert (first.format, first.difference("bbox/AP")) == ("torchscript", 0.0)
    assert second.difference("bbox/AP") == pytest.approx(-0.004) and second.file == "model.onnx"
    assert set(second.eager) == {"bbox/AP", "bbox/AP50"} and second.largest_difference == 2e-6
    assert second.difference("bbox/APs") is None
    text = section(run, "exported")
    assert "<td>50.000</td><td>49.996</td><td>−0.004</td>" in text
    assert "<td>70.250</td><td>70.250</td><td>+0.000</td>" in text
    assert "TorchScript" in text and "ONNX" in text and text.count(">pets<") == 2
    page = html.unescape(page_of(read_folder(str(run))))
    assert "AP, exported" in page and "of model.onnx: −0.004 against PyTorch" in page
    # The same format again takes its place; other weights make it a record of another network.
    keep_export(str(weights), "onnx", evaluated({"AP": 49.9999}))
    assert "−0.000" not in section(run, "exported")
    keep_export(str(weights), "onnx", evaluated({"AP": 50.0}))
    assert [r.difference("bbox/AP") for r in read_exports(str(run / "searched"))] == [0, 0]
    weights.write_bytes(b"other weights")
    assert read_exports(str(run / "searched")) == []
    assert 'id="exported"' not in page_of(read_folder(str(run)))


@pytest.mark.parametrize("damage", ["[", "[]", '{"version": 1, "files": [{}, 3]}'])
def test_damaged_records_of_files(damage: str, run: Path) -> None:
    (run / "searched" / EXPORTS_FILE).write_text(damage)
    assert read_exports(str(run / "searched")) == []
