"""Stages that were late in a run with a limit of time, and what was decided then, for its page."""

from __future__ import annotations

from dataclasses import dataclass

from detnas_d2.recipe.record import Record, read_record
from detnas_d2.recipe.telling import counted, outcome
from detnas_d2.report.facts import Warned
from detnas_d2.report.found import Found
from detnas_d2.utils.screen import duration


@dataclass(frozen=True)
class LateStage:
    """A decision, in words.

    Attributes:
        when: how far the stage was, and how long the run had taken.
        planned: its length before; ``now``: what became of it.
        pace: of the loop, against the plan.
        shorter: whether it lost anything itself.
    """

    stage: str
    when: str
    planned: str
    now: str
    pace: str
    shorter: bool


@dataclass(frozen=True)
class Lateness:
    """The decisions of a run that may take ``limit``, in their order."""

    limit: str
    stages: tuple[LateStage, ...]

    @property
    def warnings(self) -> list[Warned]:
        """One about all stages that learned or searched less than planned; none without them."""
        names = tuple(dict.fromkeys(late.stage for late in self.stages if late.shorter))
        text = f"shorter than planned, as the run may take {self.limit}: see Time"
        return [Warned(text, names, serious=False)] if names else []


def lateness_of(found: Found) -> Lateness | None:
    """What the record of ``detnas search`` tells; None without one, and where no stage was late.

    Raises:
        InputError: the record cannot be read.
    """
    record = read_record(found.folder)
    if record is None or record.seconds is None or not record.changes:
        return None
    return Lateness(duration(record.seconds), tuple(_late_stages(record)))


def _late_stages(record: Record) -> list[LateStage]:
    plan = record.plan
    return [
        LateStage(
            change.stage,
            f"after {counted(plan, change.stage, change.done)}"
            + (f", {duration(change.at)} into the run" if change.at is not None else ""),
            counted(plan, change.stage, change.planned),
            outcome(plan, change),
            f"{change.slowness:.1f} times the planned time",
            change.now < change.planned,
        )
        for change in record.changes
    ]
