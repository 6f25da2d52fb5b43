"""Findings of the check of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from detnas_d2.utils.errors import InputError

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
        text = f"[{self.kind}] {place}: {self.message}"
        # A lone surrogate of a JSON text can be neither printed nor logged.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


KINDS = (
    "missing_image",
    "unreadable_image",
    "deep_image",
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


class DatasetError(InputError):
    """A dataset cannot be used as it is."""


@dataclass(frozen=True)
class DatasetReport:
    """Outcome of the check of one dataset.

    ``num_images`` and ``num_annotations`` count what is left for use, ``num_crowd`` the crowd
    regions among the annotations, which nothing learns from. ``dropped`` tells whether the
    problems were taken out, ``cached`` whether an earlier check of the same files answered.
    ``listing`` is the file that lists all problems.
    """

    name: str
    num_images: int
    num_annotations: int
    problems: tuple[Problem, ...] = ()
    dropped: bool = False
    cached: bool = False
    num_crowd: int = 0
    listing: str = ""

    @property
    def ok(self) -> bool:
        return not self.problems

    def counts(self) -> dict[str, int]:
        """Number of problems per kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def __str__(self) -> str:
        counts = ", ".join(f"{kind} {number}" for kind, number in self.counts().items())
        crowd = f" ({self.num_crowd} of them crowd regions)" if self.num_crowd else ""
        return (
            f"dataset '{self.name}': {self.num_images} images, {self.num_annotations} "
            f"annotations{crowd}, {'problems: ' + counts if counts else 'no problem'}"
        )


def listed(problems: Sequence[Problem], listing: str) -> str:
    """The first problems, one a line, and the file that lists all of them."""
    lines = [f"  {problem}" for problem in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  ... and {len(problems) - _LISTED} more, all listed in {listing}")
    return "\n".join(lines)


def problems_error(name: str, problems: Sequence[Problem], listing: str) -> DatasetError:
    """One error that lists the first problems and the total."""
    return DatasetError(
        f"Dataset '{name}' has {len(problems)} problem(s):\n{listed(problems, listing)}\n"
        "Mend the files, or set DATASETS.INVALID to 'drop' to leave these entries out."
    )


def nothing_left_error(name: str, problems: Sequence[Problem], listing: str) -> DatasetError:
    """One line where nothing to learn from would be left without those entries."""
    return DatasetError(
        f"Dataset '{name}' has {len(problems)} problem(s), and without these entries no object "
        f"is left: {problems[0]}; mend the files (all problems: {listing})"
    )
