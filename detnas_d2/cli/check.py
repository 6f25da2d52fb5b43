"""``detnas check``: what is in a folder of labelled images."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detnas_d2.data.recognition import Part, Recognised

HELP = "look at a folder of labelled images: format, parts, classes, boxes, faults"
EXAMPLE = "detnas check --data cells"

_CLASSES = 30  # lines of the table
_QUANTILES = {
    "box_size": "box size: root of its share of the image",
    "box_aspect": "box height / width",
    "boxes_per_image": "boxes in an image",
    "image_width": "image width",
    "image_height": "image height",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        metavar="FOLDER",
        help="COCO, YOLO, PASCAL VOC or CSV; or one file of annotations, to read that alone",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from detnas_d2.data.recognition import recognise

    return recognise(args.data).to_json()


def text(result: dict[str, Any]) -> str:
    from detnas_d2.data.recognition import Recognised

    found = Recognised.from_json(result)
    blocks = [
        [f"{found.folder}: {found.layout}, {len(found.classes)} classes"],
        _table(("dataset", "images", "without boxes", "boxes", "dropped", "from"), _sets(found)),
        _table(("class", *(f"boxes in {part.name}" for part in found.parts)), _classes(found)),
        _quantiles(found.parts[0]),
        [*_dropped(found.parts), *(f"note: {note}" for note in found.all_notes)],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _sets(found: Recognised) -> Iterator[Sequence[Any]]:
    for part in found.parts:
        dropped = sum(part.dropped.values())
        numbers = part.images, part.images_without_boxes, part.boxes, dropped
        yield part.name, *numbers, part.place
    for name, images in found.splits.items():
        yield f"- {name}", images, None, None, None, None


def _classes(found: Recognised) -> Iterator[Sequence[Any]]:
    counts = found.parts[0].classes
    names = sorted(found.classes, key=lambda name: -counts[name])
    for name in names[:_CLASSES]:
        yield name, *(part.classes[name] for part in found.parts)
    if len(names) > _CLASSES:
        yield (
            f"... and {len(names) - _CLASSES} with fewer (all: --json)",
            *[None] * len(found.parts),
        )


def _quantiles(part: Part) -> list[str]:
    rows = [(label, *getattr(part, key).values()) for key, label in _QUANTILES.items()]
    return _table((f"quantiles of {part.name}", *(f"{q} %" for q in part.box_size)), rows)


def _dropped(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        if part.dropped:
            yield f"dropped from {part.name}: {part.dropped_text}; one by one in {part.listing}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    from tabulate import tabulate

    rows = list(rows)
    # A class may be called "007".
    texts = [i for i in range(len(head)) if any(isinstance(row[i], str) for row in rows)]
    table = tabulate(
        rows, head, tablefmt="plain", floatfmt=".4g", missingval="", disable_numparse=texts
    )
    return table.splitlines()
