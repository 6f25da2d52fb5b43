"""What the record of ``detnas search`` tells of its data and its time, for the run's page."""

from __future__ import annotations

from dataclasses import dataclass

from detnas_d2.recipe.record import read_record
from detnas_d2.recipe.telling import choices, lengths
from detnas_d2.report.facts import Warned
from detnas_d2.report.found import Found
from detnas_d2.utils.screen import duration


@dataclass(frozen=True)
class Recorded:
    """A run's decisions and facts, in words.

    Attributes:
        remarks: about its data.
        took: time of all of it, up to its last stage that is done.
        chosen: (name, what was chosen).
    """

    remarks: tuple[Warned, ...]
    took: str
    chosen: list[tuple[str, str]]


def recorded_of(found: Found) -> Recorded | None:
    """None without a record.

    Raises:
        InputError: it cannot be read.
    """
    record = read_record(found.folder)
    if record is None:
        return None
    remarks = tuple(Warned(f"data: {text}", (), serious=False) for text in record.data.remarks)
    limit = f" of the {duration(record.seconds)} that it may take" if record.seconds else ""
    chosen = [*choices(record), ("lengths", lengths(record))]
    return Recorded(remarks, f"{duration(record.used)}{limit}", chosen)
