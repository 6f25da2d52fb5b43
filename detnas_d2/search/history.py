"""The state of a search on disk: ``search.json`` (what is searched) and ``history.jsonl``.

Every evaluated candidate is one line, appended and synced before the searcher hears of it.
Appending instead of rewriting the file: a crash can then only tear the last line, which is
recognised and dropped on opening, and the work per candidate does not grow with the history.
The searcher's own state is not stored, since it follows from the fitness values.

A line ends with a check of itself and of all lines before it. Histories of version 1 have none;
they are read, and continued with checks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.search_space import Choices
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import sync, write_json
from detnas_d2.utils.line_log import append

logger = logging.getLogger("detnas_d2.search")

HEADER_FILE = "search.json"
RECORDS_FILE = "history.jsonl"
VERSION = 2
_UNCHECKED = 1  # the version whose lines have no checks and whose header does not name the data
_CHECK = "check"


class HistoryError(InputError):
    """The files do not hold what they should; the message names file and line or key."""


class FingerprintMismatch(HistoryError):
    """The history belongs to another search than the one to be resumed."""


class History:
    """Records of the evaluated candidates, in order of completion.

    Without a directory (`in_memory`) nothing is written: for tests and for ranks other than 0.
    """

    def __init__(self, records: list[CandidateRecord], directory: Path | None) -> None:
        self.directory = directory
        self._last_check = ""
        self._records: list[CandidateRecord] = []
        self._by_choices: dict[Choices, CandidateRecord] = {}
        for record in records:
            self._remember(record)

    @classmethod
    def in_memory(cls, records: list[CandidateRecord] | None = None) -> History:
        return cls(records or [], None)

    @classmethod
    def open(
        cls, directory: str | Path, fingerprint: Mapping[str, Any], *, resume: bool
    ) -> History:
        """Start a history in `directory`, or continue the one that is there.

        Args:
            fingerprint: JSON values; everything that determines the result of the search.
            resume: continue an existing history; where there is none, start one.

        Raises:
            FileExistsError: there is a history and `resume` is False.
            FingerprintMismatch: it is another search's; lists the keys that differ.
            HistoryError: a damaged file, with its name and line.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        header, lines = directory / HEADER_FILE, directory / RECORDS_FILE
        if not resume and (header.exists() or lines.exists()):
            raise FileExistsError(
                f"{directory} already holds a search ({HEADER_FILE}, {RECORDS_FILE}): "
                "resume it or choose another output directory"
            )
        version = VERSION
        if header.exists():
            version = _check_fingerprint(header, fingerprint)
        elif lines.exists():
            raise HistoryError(f"{lines} exists without {header}: cannot tell what it belongs to")
        else:
            write_json(header, {"version": VERSION, "fingerprint": dict(fingerprint)}, indent=2)
        if not lines.exists():
            lines.touch()
            sync(directory)
        return cls._load(lines, checked=version > _UNCHECKED)

    @classmethod
    def read(cls, directory: str | Path) -> History:
        """The records in `directory`, for analysis: nothing is checked against, nothing written."""
        lines = Path(directory) / RECORDS_FILE
        history = cls.in_memory()
        for record in _parse(lines, lines.read_bytes(), checked=False)[0]:
            history._remember(record)
        return history

    @classmethod
    def _load(cls, lines: Path, *, checked: bool) -> History:
        content = lines.read_bytes()
        records, whole, last_check = _parse(lines, content, checked=checked)
        history = cls([], lines.parent)
        history._last_check = last_check
        for number, record in enumerate(records, start=1):
            try:
                history._remember(record)
            except ValueError as error:
                raise HistoryError(f"{lines}, line {number}: {error}") from None
        if whole < len(content):
            logger.warning("%s: dropping the torn last line after byte %d", lines, whole)
            os.truncate(lines, whole)
        elif content and not content.endswith(b"\n"):
            append(lines, b"\n")
        return history

    def append(self, record: CandidateRecord) -> None:
        """Add a record; on return it is on disk (if there is a directory)."""
        self._check(record)
        if self.directory is not None:
            values = record.as_dict()
            check = check_of(self._last_check, values)
            line = json.dumps({**values, _CHECK: check}, allow_nan=False) + "\n"
            append(self.directory / RECORDS_FILE, line.encode())
            self._last_check = check
        self._remember(record)

    def _check(self, record: CandidateRecord) -> None:
        if record.index != len(self._records):
            raise HistoryError(f"record {record.index} where {len(self._records)} was expected")
        if record.choices in self._by_choices:
            first = self._by_choices[record.choices].index
            raise HistoryError(f"record {record.index} repeats the path of record {first}")

    def _remember(self, record: CandidateRecord) -> None:
        self._check(record)
        self._records.append(record)
        self._by_choices[record.choices] = record

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[CandidateRecord]:
        return iter(self._records)

    @property
    def records(self) -> tuple[CandidateRecord, ...]:
        return tuple(self._records)

    def get(self, choices: Choices) -> CandidateRecord | None:
        """The record of a path, if it was evaluated."""
        return self._by_choices.get(choices)

    def best(self, k: int = 1) -> list[CandidateRecord]:
        """The k fittest, best first; ties in order of proposal."""
        alive = [record for record in self._records if record.fitness is not None]
        return sorted(alive, key=lambda record: record.rank_key)[:k]

    @property
    def failed(self) -> list[CandidateRecord]:
        return [record for record in self._records if record.error is not None]

    def identity(self) -> list[dict[str, Any]]:
        """The records in order of proposal, without timings: equal for equal searches."""
        ordered = sorted(self._records, key=lambda r: (r.generation, r.position))
        return [record.identity() for record in ordered]


def change_generations(directory: str | Path, generations: int) -> None:
    """Makes the search in ``directory``, if one was begun, one of so many generations.

    What was evaluated stays: a generation does not depend on how many come after it. A history
    with more of them does not open then.
    """
    header = Path(directory) / HEADER_FILE
    if header.exists():
        value = json.loads(header.read_text(encoding="utf-8"))
        value["fingerprint"]["searcher"]["settings"]["generations"] = generations
        write_json(header, value, indent=2)


def differences(ours: Any, theirs: Any, key: str = "") -> list[str]:
    """Lines "key: ours (here), theirs (on disk)" for each leaf in which two JSON values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for name in sorted({*ours, *theirs}):
            inner = f"{key}.{name}" if key else name
            found += differences(ours.get(name, "nothing"), theirs.get(name, "nothing"), inner)
        return found
    return [] if ours == theirs else [f"{key}: {ours!r} (here), {theirs!r} (on disk)"]


def _check_fingerprint(header: Path, fingerprint: Mapping[str, Any]) -> int:
    """Compares a header with ``fingerprint``; returns its version."""
    try:
        stored = json.loads(header.read_text(encoding="utf-8"))
        version: int = stored["version"]
        theirs = stored["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise HistoryError(f"{header}: not the header of a search ({error!r})") from None
    if version not in (_UNCHECKED, VERSION):
        raise HistoryError(
            f"{header}: version {version}, this code reads versions {_UNCHECKED} and {VERSION}"
        )
    ours = json.loads(json.dumps(dict(fingerprint), allow_nan=False))  # tuples become lists
    if version == _UNCHECKED and "data" in ours and "data" not in theirs:
        logger.warning("%s does not tell the data of the search: they are not compared", header)
        del ours["data"]
    different = differences(ours, theirs)
    if different:
        raise FingerprintMismatch(
            f"{header}: cannot resume, the history is of another search: {'; '.join(different)}"
        )
    return version


def _parse(path: Path, content: bytes, *, checked: bool) -> tuple[list[CandidateRecord], int, str]:
    """Records of the file, how many of its bytes are whole lines, and the last check.

    Args:
        checked: whether every line has a check; else those after the first that has one.
    """
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    records, whole, last = [], 0, ""
    for number, line in enumerate(lines, start=1):
        try:
            values = _loads(line)
            check = values.pop(_CHECK, None) if isinstance(values, dict) else None
            records.append(CandidateRecord.from_dict(values))
        except ValueError as error:
            if number == len(lines):
                return records, whole, last
            raise HistoryError(f"{path}, line {number}: {error}") from None
        checked = checked or check is not None
        if checked and check != check_of(last, values):
            raise HistoryError(
                f"{path}, line {number}: the line, or one before it, was changed, moved or removed "
                f"after it was written; restore the file, or delete {path.parent} to start over"
            )
        last = check or ""
        whole = min(whole + len(line) + 1, len(content))
    return records, whole, last


def check_of(last: str, values: Mapping[str, Any]) -> str:
    """Check of a line with ``values`` after a line whose check is ``last``."""
    text = last + json.dumps(values, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _loads(line: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not allowed")

    return json.loads(line.decode("utf-8"), parse_constant=refuse)
