"""What a person reads about a run: before it starts, and when it is planned anew."""

from __future__ import annotations

from detnas_d2.engine.runtimes import RUNTIMES
from detnas_d2.recipe.amounts import Budget
from detnas_d2.recipe.choice import SMALL
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.refitting import Change
from detnas_d2.recipe.schedule import INHERITED, MEMBER, RANDOM, SEARCH, Plan, Schedule
from detnas_d2.utils.screen import duration


def choice_lines(record: Record) -> list[str]:
    """What was chosen, and why."""
    return [f"{name:8} {text}" for name, text in choices(record)]


def choices(record: Record) -> list[tuple[str, str]]:
    """Names and texts of what was chosen."""
    recipe, data, settings = record.plan.recipe, record.plan.data, record.settings
    reasons = dict(recipe.reasons)
    limit = f"at most {Budget(macs=recipe.max_macs)}" if recipe.max_macs else ""
    if settings.latency_table:
        runtime = RUNTIMES[settings.runtime].title
        limit = f"at most {settings.max_ms:.3g} ms in {runtime}, by a table of its blocks"
    scored = f"{recipe.scoring} images that the supernet does not learn from score candidates"
    halves = "one half of the images for weights, one for the architecture"
    ratios = ", ".join(f"{ratio:g}" for ratio in recipe.ratios)
    told = {
        "images": f"{recipe.side} pixels of {data.short:.0f}, the longer side {recipe.longest} at "
        f"most ({reasons['side']})",
        "anchors": f"{', '.join(map(str, recipe.anchors))} pixels, height/width {ratios}; "
        f"{recipe.detections} detections an image at most",
        "space": f"{recipe.space}, {reasons['space']}" + (f"; {limit}" if limit else ""),
        "learning": f"{'AdamW' if recipe.pattern == SMALL else 'SGD'}, rate {recipe.rate:.2g}, "
        f"of single networks {recipe.network_rate:.2g}; {recipe.batch} images an iteration",
        "split": scored if recipe.method == "detnas" else halves,
        "machine": record.machine,
        "family": _family_text(record) if record.plan.family > 1 else "",
        "weights": settings.start.text,
    }
    return [(name, text) for name, text in told.items() if text]


def _family_text(record: Record) -> str:
    cost = "milliseconds" if record.settings.latency_table else "multiply-adds"
    return f"{record.plan.family} networks of the front of AP over {cost}"


def stage_lines(plan: Plan, schedule: Schedule) -> list[str]:
    """A line for each stage: how long it is, and the seconds that it is expected to take."""
    stages = plan.stages(schedule)
    seconds = {name: plan.seconds_of(name, schedule) for name in stages}
    rows = []
    for name in stages:
        kind = next((kind for kind in (MEMBER, RANDOM) if name.startswith(f"{kind}_")), "")
        alike = [other for other in stages if kind and other.startswith(f"{kind}_")]
        if not kind:
            rows.append((name, _length(plan, name, schedule), seconds[name]))
        elif name == alike[0]:
            whole = sum(seconds[other] for other in alike)
            length = f"{len(alike)} x {_length(plan, name, schedule)}"
            rows.append((f"{kind}s" if kind == MEMBER else kind, length, whole))
    width = max(len(name) for name, _, _ in rows)
    second = max(len(length) for _, length, _ in rows)
    lines = [f"{name:{width}}  {length:{second}}  {duration(took)}" for name, length, took in rows]
    if plan.jobs > 1:
        lines.insert(len(plan.alone), f"then {plan.jobs} at a time:")
    return lines


def _length(plan: Plan, name: str, schedule: Schedule) -> str:
    if name == plan.learns:
        return f"{schedule.supernet} iterations"
    if name == SEARCH:
        return f"{schedule.generations} generations of {schedule.population}"
    if name == INHERITED:
        return f"{plan.data.test} test images"
    return f"{schedule.tuning} iterations"


def lengths(record: Record) -> str:
    """How long every stage is, as planned last."""
    plan, schedule = record.plan, record.schedule
    stages = plan.stages(schedule)
    return ", ".join(f"{name} {_length(plan, name, schedule)}" for name in stages)


def total_line(record: Record) -> str:
    """The whole, with what was used before the first stage."""
    whole = record.plan.total(record.schedule) + record.used
    allowed = f" of {duration(record.seconds)}" if record.seconds else ""
    return f"all of it: {duration(whole)}{allowed}"


def changed_line(before: Schedule, after: Schedule) -> str:
    """How a schedule was altered for the time that is left, "" if it was not."""
    names = {
        "generations": ("generation", "generations"),
        "population": ("candidate a generation", "candidates a generation"),
        "tuning": ("iteration of each network", "iterations of each network"),
        "networks": ("random network", "random networks"),
    }
    texts = [
        f"{now} {names[key][now != 1]} (planned: {getattr(before, key)})"
        for key in names
        if (now := getattr(after, key)) != getattr(before, key)
    ]
    return f"By the time that is left: {', '.join(texts)}" if texts else ""


def smaller_family_line(before: Plan, after: Plan) -> str:
    """That the front has fewer members than were asked for, "" if it has not."""
    if before.relatives == after.relatives:
        return ""
    return f"Networks of the front: {after.relatives}, all that it has (asked for: {after.family})"


def counted(plan: Plan, stage: str, number: int) -> str:
    """So many iterations of a stage, or generations of the evolution, in words."""
    unit = "generation" if stage == SEARCH != plan.learns else "iteration"
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def outcome(plan: Plan, change: Change) -> str:
    """What becomes of a stage that is late."""
    if not change.now:
        return "given up, as the time is over"
    if change.now == change.planned:
        return "goes on all the same, and what follows gets shorter"
    length = counted(plan, change.stage, change.now)
    if not change.kept:
        return f"begins again, for {length}"
    return f"goes on after {change.done}, to {length}"


def late_line(plan: Plan, change: Change) -> str:
    """That a stage is late, and what becomes of it."""
    shorter = 0 < change.now < change.planned
    return (
        f"{change.stage} would take too long, at {change.slowness:.1f} times the planned time: "
        f"{outcome(plan, change)}" + (f" (planned: {change.planned})" if shorter else "")
    )
