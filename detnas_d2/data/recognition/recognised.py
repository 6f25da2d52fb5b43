"""What was recognised in a folder, as values that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Quantiles = dict[str, float]
"""Percent as text ("5" ... "95") -> value."""

QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Part:
    """One declared dataset, or one share of it.

    Attributes:
        name: of the declaration.
        role: "train", "val", "test", or "all" of a dataset that SPLITS cuts into train and test.
        place: file or folder that its images are listed in.
        images, images_without_boxes, boxes, crowd: what is left for use; ``boxes`` without the
            crowd regions, which nothing learns from.
        classes: class -> number of boxes.
        box_size: square root of the share of the image that a box covers.
        box_aspect: height / width of boxes.
        boxes_per_image, image_width, image_height: of images as they are read; pixels.
        dropped: kind of problem -> number of entries that training leaves out too.
        listing: the file that names them one by one; "" without any.
        notes: what the check of the data had to say.
    """

    name: str
    role: str
    place: str
    images: int
    images_without_boxes: int
    boxes: int
    crowd: int
    classes: dict[str, int]
    box_size: Quantiles
    box_aspect: Quantiles
    boxes_per_image: Quantiles
    image_width: Quantiles
    image_height: Quantiles
    dropped: dict[str, int] = field(default_factory=dict)
    listing: str = ""
    notes: tuple[str, ...] = ()

    @property
    def dropped_text(self) -> str:
        """Numbers and kinds of what is dropped."""
        return ", ".join(f"{number} {kind}" for kind, number in self.dropped.items())


@dataclass(frozen=True)
class Recognised:
    """A folder that was recognised.

    Attributes:
        folder: absolute path.
        format: "coco", "yolo", "voc" or "csv".
        layout: the same for a person, e.g. "COCO, as Roboflow exports it".
        declarations: entries of DATASETS.REGISTER.
        train, test: names of datasets.
        val: name of a dataset of its own that can score candidates; "" where there is none, so
            that a search keeps some images of ``train`` for that.
        classes: names in the order of the labels.
        parts: what each of the datasets read holds.
        splits: name -> number of images, of the parts that SPLITS makes.
        equal_images: pairs of files with the same content, the first in ``train``, the second in
            ``test``.
        notes: what was chosen and why, and what a person should know; one line each.
    """

    folder: str
    format: str
    layout: str
    declarations: tuple[dict[str, Any], ...]
    train: str
    test: str
    val: str
    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    splits: dict[str, int] = field(default_factory=dict)
    equal_images: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def part(self, role: str) -> Part | None:
        """The part with a role."""
        return next((part for part in self.parts if part.role == role), None)

    @property
    def all_notes(self) -> list[str]:
        """Its own, then those of the parts, which they name."""
        of_parts = (f"{part.name}: {note}" for part in self.parts for note in part.notes)
        return [*self.notes, *of_parts]

    @property
    def images(self) -> dict[str, int]:
        """Number of images by the name of the dataset, parts that SPLITS makes included."""
        return {**{part.name: part.images for part in self.parts}, **self.splits}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recognised:
        """Inverse of :meth:`to_json`, after JSON has made lists of tuples."""
        values = dict(value)
        values["parts"] = tuple(
            Part(**{**part, "notes": tuple(part["notes"])}) for part in value["parts"]
        )
        values["equal_images"] = tuple((a, b) for a, b in value["equal_images"])
        for key in ("declarations", "classes", "notes"):
            values[key] = tuple(values[key])
        return cls(**values)
