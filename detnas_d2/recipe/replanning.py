"""The decisions of a run with a limit of time, as functions of its record and progress."""

from __future__ import annotations

from dataclasses import replace

from detnas_d2.engine.keeping_time import Late
from detnas_d2.recipe.progress import Progress
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.refitting import (
    Change,
    length_of,
    rest,
    shortened,
    slowness,
    within_reason,
)
from detnas_d2.recipe.schedule import LEAST, MOST_NETWORKS, SEARCHED, Plan


def fitted(record: Record, progress: Progress, used: float) -> Record:
    """The record, not written, with what has not begun fitted into the time that is left.

    Args:
        used: seconds that the run has taken. Without a limit nothing but these change, and
            the size of the front, once it is known.
    """
    record = replace(record, used=used - progress.since)
    record = replace(record, plan=replace(record.plan, front=progress.front))
    if record.seconds is None:
        return record
    schedule, took = record.schedule, progress.took
    plan = record.plan.slower(slowness(record.plan, schedule, took, record.changes))
    left = record.seconds - record.used
    left_over = rest(plan, schedule, took, progress.begun, left, progress.working)
    return replace(record, plan=plan, schedule=left_over)


def cut(record: Record, stage: str, late: Late, progress: Progress, used: float) -> Record:
    """The record, not written, without what a late stage has no time for; of one with a limit.

    Args:
        progress: with the stage, which has begun and is not done.
        used: seconds that the run has taken.
    """
    assert record.seconds is not None
    before, plan = record.schedule, record.plan.slower(within_reason(late.slowness))
    again = starting_over(record.plan, stage)
    others = progress.without(again)
    left = record.seconds - used
    schedule = shortened(plan, before, stage, late.done, others.took, others.begun, left)
    planned, now = (length_of(plan, stage, lengths) for lengths in (before, schedule))
    kept = now == planned or stage in plan.alone
    worked = progress.working[stage] if kept else 0.0
    change = Change(stage, late.done, planned, now, late.slowness, kept, worked, used)
    changes = (*record.changes, change)
    lost = () if kept else again or [stage]
    since = progress.without(lost).since
    return replace(record, plan=plan, schedule=schedule, used=used - since, changes=changes)


def starting_over(plan: Plan, late: str) -> list[str]:
    """The stages that begin again if a late one does: all that have to be of its length, also those
    that the run has no time for then.
    """
    if late != SEARCHED:
        return []
    return [SEARCHED, *plan.comparisons(replace(LEAST, networks=MOST_NETWORKS))]
