"""The history on disk: whole, torn and foreign files."""

from __future__ import annotations

import dataclasses
import json

import pytest

from detnas_d2.search.history import FingerprintMismatch, History, HistoryError
from tests.helpers import candidate_record

FINGERPRINT = {"seed": 1, "searcher": {"population": 50, "probability": 0.1}, "sizes": (224, 224)}


def record(index, **changes):
    values = {
        "path": f"3x3 {index}",
        "choices": (0, index),
        "fitness": 0.1 + index / 3,
        "metrics": {"bbox/AP": 0.1, "bbox/APl": None},
        "macs": 5,
        "params": 6,
        "seconds": {"infer": 1.5},
        "finished": "2026-01-01",
    }
    return candidate_record(index, **{**values, **changes})


def failed(index):
    return record(index, fitness=None, metrics={}, error="RuntimeError: out of memory")


@pytest.fixture
def three(tmp_path):
    """A directory with a history of three records, the second one failed."""
    history = History.open(tmp_path, FINGERPRINT, resume=False)
    for item in (record(0), failed(1), record(2)):
        history.append(item)
    return tmp_path


def reopen(directory, fingerprint=None):
    return History.open(directory, fingerprint or FINGERPRINT, resume=True)


def test_round_trip_keeps_full_precision(three):
    history = reopen(three)
    assert list(history) == [record(0), failed(1), record(2)]
    assert history.records[2].fitness == 0.1 + 2 / 3
    assert history.records[0].seconds == {"infer": 1.5}
    assert history.get((0, 2)) == record(2)
    assert history.get((9, 9)) is None
    assert [r.index for r in history.failed] == [1]


def test_one_line_per_record_as_soon_as_it_is_appended(tmp_path):
    history = History.open(tmp_path, FINGERPRINT, resume=True)
    for index in range(3):
        history.append(record(index))
        assert len(History.read(tmp_path)) == index + 1


def test_best_ignores_failures_and_breaks_ties_by_proposal():
    history = History.in_memory()
    for item in (
        record(0, position=1, fitness=2.0),
        record(1, position=0, fitness=2.0),
        failed(2),
        record(3, fitness=3.0),
    ):
        history.append(item)
    assert [r.index for r in history.best(9)] == [3, 1, 0]


def test_identity_leaves_out_timings_and_completion_order():
    one, other = History.in_memory(), History.in_memory()
    one.append(record(0))
    one.append(record(1))
    swapped = dataclasses.replace(record(1), index=0, seconds={"infer": 9.0}, finished="later")
    other.append(swapped)
    other.append(dataclasses.replace(record(0), index=1))
    assert one.identity() == other.identity()
    assert not {"seconds", "finished", "index"} & set(one.identity()[0])
    different = History.in_memory([record(0, fitness=0.1 + 1e-12), record(1)])
    assert different.identity() != one.identity()


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_torn_last_line_is_dropped(three, cut, caplog):
    lines = three / "history.jsonl"
    content = lines.read_bytes()
    last = len(content.splitlines(keepends=True)[-1])
    assert cut < last
    lines.write_bytes(content[: len(content) - cut])
    history = reopen(three)
    if cut == 1:  # only the newline is missing: the record is whole
        assert len(history) == 3
        assert lines.read_bytes() == content
    else:
        assert "torn last line" in caplog.text
        assert len(history) == 2
        history.append(record(2))
    assert list(reopen(three)) == [record(0), failed(1), record(2)]


def test_a_last_line_of_zeros_is_dropped(three):
    """What a file system may leave after losing power."""
    lines = three / "history.jsonl"
    lines.write_bytes(lines.read_bytes() + b"\0" * 64)
    assert len(reopen(three)) == 3
    reopen(three).append(record(3))
    assert len(reopen(three)) == 4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda line: line[:50], "line 2"),
        (lambda line: line.replace(b'"fitness": null', b'"fitness": NaN'), "NaN is not allowed"),
        (lambda line: line.replace(b'"choices"', b'"chosen"'), r"missing keys \['choices'\]"),
        (lambda line: line.replace(b'"fitness": null', b'"fitness": "0.5"'), "'fitness' has"),
        (lambda line: line.replace(b'"fitness": null', b'"fitness": 1.5'), "exactly one of"),
        (lambda line: b"", "line 2"),
        (lambda line: b"[]", "expected an object, got list"),
    ],
)
def test_a_damaged_line_in_the_middle_is_an_error(three, edit, message):
    lines = three / "history.jsonl"
    content = lines.read_bytes().splitlines()
    content[1] = edit(content[1])
    lines.write_bytes(b"\n".join(content) + b"\n")
    with pytest.raises(HistoryError, match=message) as caught:
        reopen(three)
    assert f"{lines}, line 2: " in str(caught.value)
    assert lines.read_bytes() == b"\n".join(content) + b"\n"  # nothing was repaired away


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda lines: [lines[0].replace(b"0.1,", b"9.1,", 1), *lines[1:]], 1),
        (lambda lines: [*lines[:2], lines[2].replace(b'"fitness": 0.7', b'"fitness": 9.7')], 3),
        (lambda lines: [lines[0], lines[1].replace(b"out of", b"in"), lines[2]], 2),
        (lambda lines: [lines[0], lines[2], lines[1]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2),
        (lambda lines: [unchecked(line) for line in lines], 1),
    ],
)
def test_lines_that_were_changed_after_they_were_written(three, edit, line):
    file = three / "history.jsonl"
    before = file.read_bytes()
    file.write_bytes(b"".join(edit(before.splitlines(keepends=True))))
    assert file.read_bytes() != before
    with pytest.raises(HistoryError, match=f"line {line}: the line, or one before it, was changed"):
        reopen(three)


def test_line_ends_of_another_system_change_nothing(three):
    file = three / "history.jsonl"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    reopen(three).append(record(3))
    assert len(reopen(three)) == 4


def unchecked(line):
    values = json.loads(line)
    del values["check"]
    return json.dumps(values).encode() + b"\n"


@pytest.fixture
def old(three):
    """The history as version 1 wrote it."""
    header = {"version": 1, "fingerprint": FINGERPRINT}
    (three / "search.json").write_text(json.dumps(header))
    file = three / "history.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(unchecked(line) for line in lines))
    return three


def test_history_of_version_1_is_continued_with_checks(old, caplog):
    reopen(old, {**FINGERPRINT, "data": {"shapes": "1"}}).append(record(3))
    assert "does not tell the data of the search" in caplog.text
    reopen(old).append(record(4))
    file = old / "history.jsonl"
    assert [b"check" in line for line in file.read_bytes().splitlines()] == [False] * 3 + [True] * 2
    assert len(History.read(old)) == 5
    file.write_bytes(file.read_bytes().replace(b"3x3 3", b"3x3 9"))
    for read in (reopen, History.read):
        with pytest.raises(HistoryError, match="line 4: the line"):
            read(old)


def test_missing_and_repeated_records_are_errors(old):
    lines = old / "history.jsonl"
    content = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(content[0] + content[2] + content[1])
    with pytest.raises(HistoryError, match="line 2: record 2 where 1 was expected"):
        reopen(old)
    repeated = content[0].replace(b'"index": 0', b'"index": 1')
    lines.write_bytes(content[0] + repeated + content[2])
    with pytest.raises(HistoryError, match="line 2: record 1 repeats the path of record 0"):
        reopen(old)


def test_a_bad_append_writes_nothing(three):
    history = reopen(three)
    before = (three / "history.jsonl").read_bytes()
    for bad in (record(7), record(3, choices=(0, 0)), record(3, metrics={"AP": float("nan")})):
        with pytest.raises(ValueError):
            history.append(bad)
    assert (three / "history.jsonl").read_bytes() == before
    assert len(history) == 3


def test_a_history_is_not_overwritten(three):
    with pytest.raises(FileExistsError, match="already holds a search"):
        History.open(three, FINGERPRINT, resume=False)


def test_resuming_nothing_starts(tmp_path):
    assert len(History.open(tmp_path / "new" / "folder", FINGERPRINT, resume=True)) == 0


def test_another_search_is_refused_with_both_values(three):
    other = {"seed": 2, "searcher": {"population": 50, "probability": 0.2}, "metric": "bbox/AP"}
    with pytest.raises(FingerprintMismatch) as caught:
        reopen(three, other)
    assert str(caught.value).split("another search: ")[1].split("; ") == [
        "metric: 'bbox/AP' (here), 'nothing' (on disk)",
        "searcher.probability: 0.2 (here), 0.1 (on disk)",
        "seed: 2 (here), 1 (on disk)",
        "sizes: 'nothing' (here), [224, 224] (on disk)",
    ]


def test_headers_are_checked(three):
    header = three / "search.json"
    stored = json.loads(header.read_text())
    header.write_text(json.dumps({**stored, "version": 9}))
    with pytest.raises(HistoryError, match="version 9, this code reads versions 1 and 2"):
        reopen(three)
    header.write_text("{}")
    with pytest.raises(HistoryError, match="not the header of a search"):
        reopen(three)
    header.unlink()
    with pytest.raises(HistoryError, match="exists without"):
        reopen(three)
