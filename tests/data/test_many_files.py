"""Many files are read by several processes as they are by one."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from detnas_d2.data.checks import many_files
from detnas_d2.data.checks.many_files import read_each
from detnas_d2.data.checks.progress import progress
from detnas_d2.data.recognition import recognise
from tests.data.layouts import voc, write_yolo

NUMBER = 50


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes read blocks of four items, the last one not full."""
    monkeypatch.setattr(many_files, "_BLOCK", 4)
    monkeypatch.setattr(many_files, "_PROBE", 1)
    monkeypatch.setattr(many_files, "_MANY", NUMBER)
    monkeypatch.setattr(many_files, "usable_cpus", lambda: [0, 1])
    # Tests before this one may have left some.
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def where(item: int) -> tuple[int, int]:
    return item, os.getpid()


@pytest.mark.parametrize("threads", [False, True])
def test_two_processes_read_in_order(two: None, threads: bool) -> None:
    found = read_each(where, range(NUMBER), "numbers", threads=threads)
    assert [item for item, _ in found] == list(range(NUMBER))
    processes = {process for _, process in found}
    assert len(processes) == 2 and os.getpid() not in processes


def test_a_progress_bar_starts_no_thread() -> None:
    before = threading.active_count()
    with progress("numbers", 3) as told:
        told(1)
        assert threading.active_count() == before


@pytest.mark.parametrize("reason", ["few", "threads", "one processor"])
def test_this_process_reads(two: None, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if reason == "threads":
        monkeypatch.setattr(threading, "active_count", lambda: 2)
    if reason == "one processor":
        monkeypatch.setattr(many_files, "usable_cpus", lambda: [0])
    found = read_each(where, range(NUMBER - (reason == "few")), "numbers")
    assert {process for _, process in found} == {os.getpid()}


def test_a_process_that_dies_costs_nothing_but_time(two: None) -> None:
    parent = os.getpid()

    def read(item: int) -> int:
        if item == 21 and os.getpid() != parent:
            os._exit(9)
        return item

    assert read_each(read, range(NUMBER), "numbers") == list(range(NUMBER))


def test_a_fault_is_raised_here(two: None, capfd: pytest.CaptureFixture[str]) -> None:
    def read(item: int) -> int:
        if item == 30:
            raise KeyError("thirty")
        return item

    with pytest.raises(KeyError, match="thirty"):
        read_each(read, range(NUMBER), "numbers")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_the_answer_is_the_same(
    tmp_path: Path, write_image, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    data = tmp_path / "data"
    if format == "voc":
        voc(data, write_image, number=12)
        annotations = sorted((data / "Annotations").iterdir())
        annotations[1].write_text("<annotation><size/><object/></annotation>")
        text = annotations[6].read_text()
        annotations[6].write_text(text.replace("<xmin>5", "<xmin>99"))
    else:
        write_yolo(data / "images", 12, write_image)
        (data / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
        annotations = sorted((data / "labels").iterdir())
        annotations[6].write_text("0 nan 1 1 1\n1 0.5 0.5 0.5 0.5\n")
    annotations[3].write_bytes(b"\xff\xff")
    next(data.rglob("*9.jpg")).write_bytes(b"no image")
    answers = []
    for many in (12, 13):
        for key, value in (("_BLOCK", 4), ("_MANY", many), ("usable_cpus", lambda: [0, 1])):
            monkeypatch.setattr(many_files, key, value)
        monkeypatch.setattr(threading, "active_count", lambda: 1)
        found = recognise(str(data), str(tmp_path / str(many)))
        listing = Path(found.part("all").listing)
        answers.append((listing.read_text(), replace(found.part("all"), listing=""), found.notes))
    assert answers[0] == answers[1]
    assert len(answers[0][1].dropped) == (4 if format == "voc" else 3)
