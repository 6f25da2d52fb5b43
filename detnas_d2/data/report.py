"""What the check of a data set found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_LISTED = 20


@dataclass(frozen=True)
class Problem:
    """One bad image or annotation.

    ``kind`` is one of KINDS, ``file`` the file that holds it, ``entry`` the place in it.
    """

    kind: str
    file: str
    entry: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}, {self.entry}" if self.entry else self.file
        return f"[{self.kind}] {place}: {self.message}"


KINDS = (
    "missing_image",
    "unreadable_image",
    "size_mismatch",
    "duplicate_image_id",
    "broken_image_entry",
    "missing_annotation_file",
    "broken_annotation_file",
    "broken_annotation",
    "absent_image",
    "unknown_class",
    "empty_box",
    "box_outside",
    "empty_class",
)


class DatasetError(ValueError):
    """A data set cannot be used as it is."""


@dataclass(frozen=True)
class DatasetReport:
    """Outcome of the check of one data set.

    ``num_images`` and ``num_annotations`` count what is left for use, ``dropped`` tells whether
    the problems were taken out, ``cached`` whether an earlier check of the same files answered.
    """

    name: str
    num_images: int
    num_annotations: int
    problems: tuple[Problem, ...] = ()
    dropped: bool = False
    cached: bool = False

    @property
    def ok(self) -> bool:
        return not self.problems

    def counts(self) -> dict[str, int]:
        """Number of problems per kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def __str__(self) -> str:
        counts = ", ".join(f"{kind} {number}" for kind, number in self.counts().items())
        return (
            f"data set '{self.name}': {self.num_images} images, {self.num_annotations} "
            f"annotations, {'problems: ' + counts if counts else 'no problem'}"
        )


def problems_error(name: str, problems: Sequence[Problem]) -> DatasetError:
    """One error that lists the first problems and the total."""
    lines = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  ... and {len(problems) - _LISTED} more")
    return DatasetError(
        f"Data set '{name}' has {len(problems)} problem(s):\n"
        + "\n".join(lines)
        + "\nMend the files, or set DATASETS.INVALID to 'drop' to leave these entries out."
    )
