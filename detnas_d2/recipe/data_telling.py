"""What a person reads about the data of a run, and what its page says of them later."""

from __future__ import annotations

from collections.abc import Iterator

from detnas_d2.data.recognition import Part, Recognised
from detnas_d2.recipe.facts import DataFacts

_CLASSES, _ENTRIES = 8, 3


def data_lines(found: Recognised, facts: DataFacts) -> list[str]:
    """Format, numbers of images and of boxes by class, their sizes, and what was left out."""
    counts = f"{facts.train} training, {facts.test} test"
    counts += f", {facts.val} validation" if facts.val else ""
    sizes = (
        f"boxes of {facts.smallest:.0f} to {facts.large:.0f} pixels (root of the area, nine of "
        f"ten); images of {facts.long:.0f} and {facts.short:.0f} pixels, medians of their sides"
    )
    return [
        f"{found.layout}: {counts} images, {len(found.classes)} classes",
        *(f"boxes    {part.boxes:,} in {part.name}: {_classes(part)}" for part in found.parts),
        f"sizes    {sizes}",
        *(line for part in found.parts if part.dropped for line in _left_out(part)),
        *found.all_notes,
    ]


def remarks(found: Recognised) -> tuple[str, ...]:
    """What the page says: entries that are left out, images on both sides, what was chosen."""
    dropped = (
        f"left out of {part.name}: {part.dropped_text}, one by one in {part.listing}"
        for part in found.parts
        if part.dropped
    )
    return (*dropped, *found.all_notes)


def _classes(part: Part) -> str:
    names = sorted(part.classes, key=lambda name: -part.classes[name])
    told = ", ".join(f"{name} {part.classes[name]:,}" for name in names[:_CLASSES])
    more = len(names) - _CLASSES
    return f"{told} and {more} with fewer (detnas check lists them)" if more > 0 else told


def _left_out(part: Part) -> Iterator[str]:
    """What is left out of a part: numbers, the first entries, the file with all of them."""
    yield f"left out of {part.name}: {part.dropped_text}:"
    with open(part.listing, encoding="utf-8") as text:
        first = [line.rstrip("\n") for _, line in zip(range(_ENTRIES), text, strict=False)]
    yield from (f"  {line}" for line in first)
    if (more := sum(part.dropped.values()) - len(first)) > 0:
        yield f"  and {more} more, in {part.listing}"
