"""Predictions of a candidate, small enough to keep for a whole generation and to send around.

Detectron2's evaluators turn detections into a dict (COCO) or a text line (VOC) each, about 600
bytes; the arrays here hold 24. Detectron2's own code makes its dicts of them in the process that
scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detnas_d2.evaluation.classification import ClassificationEvaluator
from detnas_d2.utils.compat import last_coco_records

_KINDS = ("instances", "proposals")
_MASKS = "pred_masks"
# What evaluators read. A key point head also gives heat maps, a megabyte for each detection.
_FIELDS = (
    *("pred_boxes", "scores", "pred_classes", "pred_keypoints"),
    *("proposal_boxes", "objectness_logits", _MASKS),
)


@dataclass(frozen=True)
class Detections:
    """The detections of one candidate, image after image.

    Attributes:
        kind: key of the model's outputs they were found under, "instances" or "proposals".
        image_ids: int or str, one per image.
        sizes: (images, 2), height and width in pixels.
        counts: (images,), detections of each image.
        boxes: names of the fields that are :class:`Boxes`.
        fields: name -> array whose first axis is the detection.
        masks: one COCO run-length code per detection; None: the model gives no masks.
    """

    kind: str
    image_ids: tuple[int | str, ...]
    sizes: np.ndarray
    counts: np.ndarray
    boxes: tuple[str, ...]
    fields: dict[str, np.ndarray]
    masks: tuple[bytes, ...] | None = None

    @property
    def detections(self) -> int:
        return int(self.counts.sum())

    @classmethod
    def merged(cls, parts: Sequence[Detections]) -> Detections:
        """The detections of several ranks, in order of rank. Parts without an image are left out.

        Raises:
            ValueError: parts of different kinds or fields.
        """
        parts = [part for part in parts if part.image_ids] or list(parts[:1])
        first = parts[0]
        if len({(p.kind, tuple(p.fields), p.masks is None) for p in parts}) > 1:
            raise ValueError(f"fields differ between ranks: {[tuple(p.fields) for p in parts]}")
        masks = None
        if first.masks is not None:
            masks = tuple(mask for part in parts for mask in part.masks or ())
        return cls(
            kind=first.kind,
            image_ids=tuple(i for part in parts for i in part.image_ids),
            sizes=np.concatenate([part.sizes for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            boxes=first.boxes,
            fields={k: np.concatenate([p.fields[k] for p in parts]) for k in first.fields},
            masks=masks,
        )

    def images(self) -> Iterator[tuple[int | str, Instances, list[dict[str, Any]] | None]]:
        """Image id, instances without masks, and the masks as COCO's {"size", "counts"}."""
        ends = np.cumsum(self.counts).tolist()
        for place, (end, image_id) in enumerate(zip(ends, self.image_ids, strict=True)):
            span = slice(end - int(self.counts[place]), end)
            size = tuple(self.sizes[place].tolist())
            found = Instances(size)
            for name, values in self.fields.items():
                # A copy: evaluators shift key points in place.
                tensor = torch.from_numpy(values[span].copy())
                found.set(name, Boxes(tensor) if name in self.boxes else tensor)
            masks = None
            if self.masks is not None:
                masks = [{"size": list(size), "counts": m.decode()} for m in self.masks[span]]
            yield image_id, found, masks

    def feed(self, evaluator: DatasetEvaluator) -> None:
        """Has a fresh Detectron2 evaluator process all images."""
        evaluator.reset()
        for image_id, found, masks in self.images():
            evaluator.process([{"image_id": image_id}], [{self.kind: found}])
            if masks is not None:
                # What COCOEvaluator.process does with "pred_masks", from the codes at hand.
                records = last_coco_records(evaluator, self.kind)
                for record, mask in zip(records, masks, strict=True):
                    record["segmentation"] = mask


@dataclass
class DetectionCollector:
    """Takes a detector's outputs in place of an evaluator; masks become run-length codes."""

    _images: list[tuple[Any, Instances, list[bytes] | None]] = field(default_factory=list)
    _kind: str = _KINDS[0]

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Iterable[dict[str, Any]]) -> None:
        """As ``DatasetEvaluator.process``.

        Raises:
            ValueError: an output has neither "instances" nor "proposals".
        """
        for sample, output in zip(inputs, outputs, strict=True):
            kind = next((k for k in _KINDS if k in output), None)
            if kind is None:
                raise ValueError(f"expected one of {_KINDS} in the output, got {sorted(output)}")
            given = output[kind]
            read = {name: value for name, value in given.get_fields().items() if name in _FIELDS}
            found = Instances(given.image_size, **read).to("cpu")
            masks = None
            if found.has(_MASKS):
                masks = _run_lengths(found.get(_MASKS))
                found.remove(_MASKS)
            self._kind = kind
            self._images.append((sample["image_id"], found, masks))

    def finish(self) -> Detections:
        """What was processed."""
        found = [instances for _, instances, _ in self._images]
        names = list(found[0].get_fields()) if found else []
        boxes = tuple(n for n in names if isinstance(found[0].get(n), Boxes))
        masks = [codes for _, _, codes in self._images if codes is not None]
        return Detections(
            kind=self._kind,
            image_ids=tuple(image_id for image_id, _, _ in self._images),
            sizes=np.array([f.image_size for f in found], dtype=np.int32).reshape(-1, 2),
            counts=np.array([len(f) for f in found], dtype=np.int64),
            boxes=boxes,
            fields={n: torch.cat([_tensor(f.get(n)) for f in found]).numpy() for n in names},
            masks=tuple(code for codes in masks for code in codes) if masks else None,
        )


@dataclass(frozen=True)
class TopKCounts:
    """Number of images of one candidate that were classified, and of those right."""

    images: int
    top1: int
    top5: int

    @property
    def detections(self) -> int:
        """One per image, as for any output without instances."""
        return self.images

    @classmethod
    def merged(cls, parts: Sequence[TopKCounts]) -> TopKCounts:
        """The counts of several ranks."""
        return cls(*(sum(getattr(p, n) for p in parts) for n in ("images", "top1", "top5")))


class TopKCollector:
    """Takes a classifier's outputs in place of an evaluator."""

    def __init__(self) -> None:
        self._evaluator = ClassificationEvaluator(distributed=False)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """As ``DatasetEvaluator.process``."""
        self._evaluator.process(inputs, outputs)

    def finish(self) -> TopKCounts:
        """What was processed."""
        return TopKCounts(*self._evaluator.counts)


Predictions = Detections | TopKCounts


def _tensor(values: Boxes | Tensor) -> Tensor:
    tensor = values.tensor if isinstance(values, Boxes) else values
    # numpy has no bfloat16; float32 holds every half and bfloat16.
    return tensor.float() if tensor.is_floating_point() else tensor


def _run_lengths(masks: Tensor) -> list[bytes]:
    """COCO's compressed codes of (N, height, width)."""
    columns_first = np.asarray(masks.numpy().transpose(1, 2, 0), dtype=np.uint8, order="F")
    codes = pycocotools.mask.encode(columns_first)
    return [code["counts"] for code in codes]
