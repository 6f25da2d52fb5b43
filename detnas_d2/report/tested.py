"""What a network does on its test images: average precision by class, curves, worst images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from markupsafe import Markup

from detnas_d2.evaluation.matches import Matches, iou_steps, recall_steps
from detnas_d2.pipeline.tested_images import saved_matches
from detnas_d2.report.figures import shown
from detnas_d2.report.found import FoundStage
from detnas_d2.report.search_figures import lines_figure
from detnas_d2.report.worst import Picture, picture, worst_images

_PREFIX = "bbox/AP-"
_CURVES = 8
_MANY_CLASSES = 24


def matches_of(stage: FoundStage) -> Matches:
    """See :func:`detnas_d2.pipeline.tested_images.saved_matches`."""
    return saved_matches(stage.config, stage.folder, stage.result("bbox/AP"))


@dataclass(frozen=True)
class ClassLine:
    """A line of the table of classes; AP in percent, None where it is undefined."""

    name: str
    ap: float | None
    objects: int | None = None
    other: float | None = None


@dataclass
class Tested:
    """The winner on its test images, as far as that is known.

    Attributes:
        other: a network beside it.
        interval: of its AP over images.
        threshold: least score of the detections in ``pictures``.
    """

    stage: FoundStage | None = None
    other: FoundStage | None = None
    matches: Matches | None = None
    interval: tuple[float, float] | None = None
    lines: list[ClassLine] = field(default_factory=list)
    curves: list[tuple[Markup, str]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    threshold: float = 0.5

    @property
    def many(self) -> bool:
        """Whether the table of classes is a long one."""
        return len(self.lines) > _MANY_CLASSES


def class_lines(
    stage: FoundStage, matches: Matches | None, other: FoundStage | None
) -> list[ClassLine]:
    """AP of each class, by the matches or else by what the test told.

    Args:
        other: a network to stand beside it.
    """

    def theirs(name: str) -> float | None:
        return None if other is None else other.result(_PREFIX + name)

    if matches is not None:
        return [
            ClassLine(
                c.name,
                100 * float(c.precision().mean()) if c.positives.any() else None,
                int(c.positives.sum()),
                theirs(c.name),
            )
            for c in matches.classes
        ]
    names = [key.removeprefix(_PREFIX) for key in stage.results if key.startswith(_PREFIX)]
    return [ClassLine(n, stage.result(_PREFIX + n), None, theirs(n)) for n in names]


def curves(matches: Matches) -> list[tuple[Markup, str]]:
    """Precision over recall: the mean over classes at three IoUs, and classes at IoU 0.5."""
    recalls = recall_steps().tolist()
    told = {
        c.name: precision
        for c in matches.classes
        if np.isfinite(precision := c.precision()[0]).all()
    }
    if not told:
        return []
    mean = np.mean(list(told.values()), axis=0)
    places = {0.5: 0, 0.75: 5, 0.9: 8}
    assert all(abs(iou_steps()[place] - iou) < 1e-9 for iou, place in places.items())
    means = {f"IoU {iou:g}": (recalls, mean[place].tolist()) for iou, place in places.items()}
    figure = partial(lines_figure, x="recall", y="precision", shares=True)
    text = "Precision over recall, mean over the classes, at three IoUs."
    found = [(figure("precision", means, description=text), text)]
    if len(told) > 1:
        ordered = sorted(told, key=lambda name: -float(told[name][0].mean()))
        if len(ordered) > _CURVES:
            half = _CURVES // 2
            ordered = [*ordered[:half], *ordered[-half:]]
        series = {
            shown(f"{name} {100 * told[name][0].mean():.0f}", 24): (recalls, told[name][0].tolist())
            for name in ordered
        }
        what = "each class" if len(ordered) == len(told) else "the best and the worst classes"
        text = f"Precision over recall at IoU 0.5 of {what}, with AP at that IoU."
        found.append((figure("classes-curves", series, description=text), text))
    return found


def pictures(matches: Matches) -> tuple[list[Picture], float]:
    """Pictures of the worst images that can be read, and the score above which boxes are shown."""
    threshold = matches.threshold()
    found = []
    for judged in worst_images(matches.images, threshold):
        try:
            found.append(picture(judged))
        except Exception:  # Pillow's decoders raise many types; the image is gone or another
            continue
    return found, threshold
