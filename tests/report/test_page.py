"""The page of a run: what stands in it, of finished, half and damaged folders."""

from __future__ import annotations

import json
import logging
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from detnas_d2.cli import main as command
from detnas_d2.pipeline.latency_record import keep_latency
from detnas_d2.pipeline.manifest import MANIFEST_FILE
from detnas_d2.report import page as page_module
from detnas_d2.report import try_report, write_report
from detnas_d2.report.found import read_folder
from detnas_d2.report.networks import main_metric, row_differences, rows_of, winner_of
from detnas_d2.search.history import History
from detnas_d2.utils.errors import InputError
from tests.report.folders import (
    BEST,
    CLASSES,
    TINY,
    config,
    latency,
    records,
    write_run,
    write_search,
    write_stage,
)

VOID = {"meta", "link", "br", "img", "image", "rect", "use", "path"}


class Page(HTMLParser):
    """Text of a page, and its elements; tags that close nothing are errors."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.counts: dict[str, int] = {}
        self.words: list[str] = []
        self.source = Path(file).read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [told["id"] or ""] if "id" in told else []
        self.links += [v for k, v in attrs if v and k in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(folder: Path) -> Page:
    return Page(write_report(str(folder)))


def test_a_finished_run(run: Path) -> None:
    page = page_of(run)
    text, found = page.text, read_folder(str(run))
    (searched,) = [stage for stage in found.stages if stage.name == BEST]
    assert f"AP {searched.results['bbox/AP']:.1f}" in text
    assert "95 % interval over 12 test images" in text
    assert f"detnas predict '{run}/searched' 'photos/*.jpg'" not in text  # no weights yet
    best = History.read(run / "search").best()[0]
    assert best.path in text and "30 candidates in 3 generations, 3 of them failed" in text
    assert "made by" in text and "one run: no interval" in text
    for name in CLASSES:
        value = searched.results[f"bbox/AP-{name}"]
        assert re.search(rf"{re.escape(name)} \d+ {value:.1f}", text), name
    sections = {"networks", "architecture", "search", "training", "classes", "images"}
    assert sections | {"winner", "time", "facts"} <= set(page.ids)
    assert page.counts["image"] == 10  # of twelve images, one of them perfect or without objects
    assert "Total" not in text and "6 min in all" in text


def test_time_of_stages_side_by_side(run: Path, quick_figures: None) -> None:
    """Six stages of a minute: worked, and by the clock, as far as all of them tell when."""
    starts = {"supernet": 0, "search": 100, "searched": 200, "random_1": 200, "random_2": 230}
    for name, begin in {**starts, "handmade": 300}.items():
        if name == "handmade":
            assert "6 min in all." in page_of(run).text
        times = {"time": 1e9 + begin, "seconds": 0.0, "spans": [], "end": 1e9 + begin + 60}
        (run / name / "started.json").write_text(json.dumps(times))
    told = (
        "6 min in all, and 4 min 30 s by the clock, where stages that ran side by side count once"
    )
    assert told in page_of(run).text


def test_it_needs_nothing_else_has_each_id_once_and_names_are_no_markup(run: Path) -> None:
    page = page_of(run)
    outside = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert not outside and "script" not in page.counts and "@import" not in page.source
    assert re.findall(r"url\((?!#)", page.source) == []
    assert len(page.ids) == len(set(page.ids))
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)
    assert page.counts["svg"] > 8
    for svg in re.findall(r"<svg[^>]*>", page.source):
        assert "aria-label" in svg or "aria-hidden" in svg or 'role="img"' in svg

    assert CLASSES[2] not in page.source
    assert str(escape(CLASSES[2])) in page.source and CLASSES[2] in page.text
    assert "cells &amp; co" in page.source


def test_the_command_stands_there_as_soon_as_there_are_weights(
    run: Path, quick_figures: None
) -> None:
    (run / "searched" / "model_final.pth").write_bytes(b"x" * 2_500_000)
    text = page_of(run).text
    assert f"detnas predict '{run / 'searched'}' 'photos/*.jpg'" in text
    assert "checkpoint 2.5 MB" in text


def test_rows_means_and_differences(run: Path) -> None:
    found = read_folder(str(run))
    rows = {row.name: row for row in rows_of(found)}
    assert list(rows) == ["searched", "random", "handmade"]
    assert [row.origin for row in rows.values()] == ["searched", "random", "given"]
    values = [s.results["bbox/AP"] for s in found.stages if s.row == "random"]
    mean, deviation = rows["random"].mean("bbox/AP")
    assert mean == pytest.approx(statistics.mean(values))
    assert deviation == pytest.approx(statistics.stdev(values))
    best = History.read(run / "search").best()[0]
    assert rows["searched"].cost is not None and rows["searched"].cost[1] == best.params
    told = {(d.other, d.metric): d.value for d in row_differences(found, list(rows.values()))}
    searched = rows["searched"].mean("bbox/AP")[0]
    assert told["random", "bbox/AP"] == pytest.approx(searched - mean)


def test_seeds_are_paired_and_the_winner_is_not_chosen_by_test_images(
    tmp_path: Path, truth: dict[str, Any], quick_figures: None
) -> None:
    for seed in range(3):
        write_run(tmp_path / "out" / f"seed{seed}", tmp_path / "data", truth)
    # Equal fitness but for one seed's search, whose network tests worst.
    shutil.rmtree(tmp_path / "out" / "seed1" / "search")
    write_stage(tmp_path / "out/seed1/search", config(tmp_path / "data"), {})
    found = records(30)
    best = max((r for r in found if r.fitness is not None), key=lambda r: r.fitness)
    better = [
        type(r)(**{**r.as_dict(), "choices": r.choices, "fitness": 99.0}) if r is best else r
        for r in found
    ]
    write_search(tmp_path / "out" / "seed1" / "search", better)
    done = tmp_path / "out" / "seed1" / "searched" / "done.json"
    value = json.loads(done.read_text())
    value["results"]["bbox/AP"] -= 5
    done.write_text(json.dumps(value))
    folder = read_folder(str(tmp_path / "out"))
    assert folder.seeds == [0, 1, 2]
    rows = rows_of(folder)
    assert winner_of(folder, rows).stage.seed == 1
    differences = row_differences(folder, rows)
    assert {difference.basis for difference in differences} >= {"paired by 3 seeds"}
    page = page_of(tmp_path / "out")
    assert "of 3 seeds the one whose search gave it the highest fitness" in page.text
    assert "the data or the predictions have changed since" in page.text  # of what was tampered


def test_latencies_that_were_measured(run: Path, quick_figures: None) -> None:
    assert "latency" not in page_of(run).text.lower()
    (run / "searched" / "model_final.pth").write_bytes(b"x")
    for name, value in (("searched", 12.3), ("random_1", 15.0), ("random_2", 17.0)):
        config_file = str(run / name / "config.yaml")
        keep_latency(config_file, latency(value))
    rows = {row.name: row for row in rows_of(read_folder(str(run)))}
    assert [rows[name].milliseconds for name in rows] == [12.3, 16.0, None]
    conditions = rows["searched"].conditions
    assert re.fullmatch(r"one image of 480 x 640 pixels in PyTorch on .+, 2 threads", conditions)
    text = page_of(run).text
    assert (
        f"latency 12.3 ms of {conditions}: median of 30 runs, quartiles 11 and 13; 0.5 before the "
        "network, 0.5 after it" in text
    )
    assert f"Latency: of {conditions}, median." in text and text.count(conditions) == 2
    # Under other conditions each says its own; a config of another network has none.
    keep_latency(str(run / "handmade" / "config.yaml"), latency(20.0, threads=1))
    changed = (
        (run / "random_2" / "config.yaml")
        .read_text()
        .replace("MIN_SIZE_TEST: 800", "MIN_SIZE_TEST: 600")
    )
    (run / "random_2" / "config.yaml").write_text(changed)
    text = page_of(run).text
    assert "Latency: of" not in text and f"15 {conditions}" in text
    assert f"20 {conditions.replace('2 threads', '1 thread')}" in text
    for damage in ("{", '{"version": 1}', '{"version": 2, "runtimes": {}}', '{"version": 2}'):
        (run / "searched" / "measured_latency.json").write_text(damage)
        text = page_of(run).text
        assert "latency 12.3 ms" not in text and "could not be made" not in text


def test_from_the_first_stage_on(tmp_path: Path, quick_figures: None) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_report(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to report yet"):
        write_report(str(tmp_path / "empty"))
    folder = tmp_path / "out"
    write_stage(folder / "supernet", config(tmp_path))
    page = page_of(folder)
    assert "Nothing is found yet" in page.text
    write_search(folder / "search", records(7))
    page = page_of(folder)
    assert "The search's best network so far" in page.text and "fitness" in page.text


def test_a_single_search(tmp_path: Path) -> None:
    best = write_search(tmp_path / "search", records(20))
    write_stage(tmp_path / "search", config(tmp_path))
    page = page_of(tmp_path / "search")
    assert f"fitness {best.fitness:.1f}" in page.text and best.path in page.text
    assert page.counts["svg"] >= 4  # its generations, cost, choices and the drawing


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("search/history.jsonl", '{"index": 7}\n{}\n', "history.jsonl, line 1"),
        ("searched/config.yaml", "MODEL: [", "config.yaml"),
        ("searched/inference/coco_instances_results.json", "[{", "no detections of"),
        ("supernet/metrics.json", "\x00\x01", None),
        ("searched/done.json", "{", "stopped before its end"),
        ("random_1/done.json", '{"fingerprint": "a", "results": {}, "path": ""}', None),
        (MANIFEST_FILE, '{"runs": 3}', "pipeline.json is damaged"),
        ("supernet/supernet.json", "[]", None),
        ("search/search.json", "{", None),
    ],
)
def test_damaged_files_cost_their_section_alone(
    file: str, content: str, told: str | None, run: Path, quick_figures: None
) -> None:
    (run / file).write_text(content)
    page = page_of(run)
    assert "facts" in page.ids and "time" in page.ids and "could not be made" not in page.text
    if told is not None:
        assert told in page.text


def test_images_that_are_gone(run: Path, tmp_path: Path, quick_figures: None) -> None:
    shutil.rmtree(tmp_path / "data" / "images")
    page = page_of(run)
    assert "classes" in page.ids and "images" not in page.ids


def test_warnings_of_logs_and_failures(run: Path, quick_figures: None) -> None:
    line = "[11/28 19:21:02] detnas_d2.data WARNING: Dropping 3 images <b>that leak</b>\n"
    failed = "[11/28 19:21:02] detnas_d2.pipeline ERROR: failed: ValueError: <no>\n"
    noise = "[x] py.warnings WARNING: noise\n"
    (run / "supernet" / "log.txt").write_text(line + noise + failed + line)
    (run / "handmade" / "done.json").unlink()
    (run / "handmade" / "failed.json").write_text(json.dumps({"error": "ValueError: <no>"}))
    text = page_of(run).text
    assert text.count("Dropping 3 images <b>that leak</b>") == 1 and "noise" not in text
    assert text.count("failed: ValueError: <no>") == 1


def test_a_certificate_in_the_folder(run: Path, quick_figures: None) -> None:
    assert "No certificate of fidelity" in page_of(run).text
    (run / "fidelity").mkdir()
    (run / "fidelity" / "truth.json").write_text("{}")
    report = {"level": "credible", "networks": 50, "seeds": 3, "ceiling": 0.8}
    report["rankers"] = {"supernet": {"tau": [0.61, 0.5, 0.7]}}
    (run / "fidelity" / "report.json").write_text(json.dumps(report))
    told = "credible , tau 0.61 (95 % interval 0.50 to 0.70), 50 networks x 3 trainings"
    assert told in page_of(run).text


def test_many_candidates_make_a_small_page(tmp_path: Path) -> None:
    write_search(tmp_path / "search", records(1000, population=50))
    write_stage(tmp_path / "search", config(tmp_path))
    file = Path(write_report(str(tmp_path / "search")))
    assert file.stat().st_size < 1_000_000


def test_a_failing_report_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detnas_d2.report import page

    with caplog.at_level(logging.WARNING, "detnas_d2.report"):
        try_report(str(tmp_path / "none"))
        monkeypatch.setattr(page, "read_folder", lambda folder: 1 / 0)
        try_report(str(tmp_path))
    assert "no such folder" in caplog.messages[0]
    assert "ZeroDivisionError: division by zero" in caplog.messages[1]


def test_the_command(run: Path, quick_figures: None, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["report", str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    command.main(["report", str(run), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "report": str(run / "report.html"),
        "bytes": (run / "report.html").stat().st_size,
    }


def test_network_whose_config_alone_tells_its_path_is_drawn(
    tmp_path: Path, quick_figures: None
) -> None:
    cfg = config(tmp_path)
    cfg.MODEL.DETNAS.PATH = str(TINY.uniform_path("5x5"))
    write_stage(tmp_path / "net", cfg, {"results": {"bbox/AP": 30.0}})
    page = page_of(tmp_path)
    assert "architecture" in page.ids and "block of 5x5 kernels" in page.text


def test_metric_of_classifiers(tmp_path: Path, quick_figures: None) -> None:
    done = {"results": {"classification/top1": 71.5}, "path": ""}
    write_stage(tmp_path / "net", config(tmp_path), done)
    assert main_metric(read_folder(str(tmp_path))) == "classification/top1"
    assert "top-1 71.5" in page_of(tmp_path).text


def test_what_runs_is_a_sentence_of_its_own(
    run: Path, quick_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"counts": {"running": 2}, "total": 2, "running": ["search", "a"], "missing": []}
    monkeypatch.setattr(page_module, "_state", lambda found: state)
    assert "Running: search, a. Written " in page_of(run).source
