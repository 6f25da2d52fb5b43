"""Which images of a dataset go to which part of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from detnas_d2.data.checks.image_check import IMAGE_EXTENSIONS
from detnas_d2.data.checks.report import DatasetError

SEARCH_TRAIN, SEARCH_VAL = HALVES = ("search_train", "search_val")


class Parts(Protocol):
    """How the images of a dataset are cut into parts; ``folder`` keeps their files."""

    folder: ClassVar[str]

    @property
    def seed(self) -> int: ...

    def cut(self, source: str, keys: list[str]) -> dict[str, set[str]]:
        """Keys of each part of ``source``."""


@dataclass(frozen=True)
class SplitSettings:
    """``size`` images go to search_val, or the share ``fraction`` where that is not 0."""

    folder: ClassVar[str] = "search_splits"
    size: int = 5000
    fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise DatasetError(
                f"DATASETS.SEARCH_SPLIT.FRACTION must be in [0, 1), got {self.fraction}"
            )
        if not self.fraction and self.size < 1:
            raise DatasetError(f"DATASETS.SEARCH_SPLIT.SIZE must be positive, got {self.size}")

    def cut(self, source: str, keys: list[str]) -> dict[str, set[str]]:
        """Keys of each half."""
        val = choose(keys, self.val_size(source, len(keys)), self.seed)
        return dict(zip(HALVES, (set(keys) - val, val), strict=True))

    def val_size(self, source: str, num_images: int) -> int:
        """Images in search_val of a source of ``num_images``."""
        size = max(1, round(self.fraction * num_images)) if self.fraction else self.size
        if size >= num_images:
            raise DatasetError(
                f"DATASETS.SEARCH_SPLIT asks for {size} images of '{source}', which has "
                f"{num_images}; nothing would be left to train on"
            )
        return size


@dataclass(frozen=True)
class Shares:
    """Named parts of a dataset, by their shares of its images (SPLITS of a declaration)."""

    folder: ClassVar[str] = "splits"
    parts: tuple[tuple[str, float], ...]
    seed: int = 0

    def cut(self, source: str, keys: list[str]) -> dict[str, set[str]]:
        """Keys of each part; a key's part depends on the others only near the borders.

        Extensions of images do not count, so that a dataset has the same parts in every format:
        VOC's keys have none.
        """
        stems: dict[str, list[str]] = {}
        for key in sorted(set(keys)):
            stem, extension = os.path.splitext(key)
            stems.setdefault(stem if extension.lower() in IMAGE_EXTENSIONS else key, []).append(key)
        ordered = [key for stem in ordered_by_seed(stems, self.seed) for key in stems[stem]]
        found, total = {}, 0.0
        for name, share in self.parts:
            start, total = round(total * len(ordered)), total + share
            found[name] = set(ordered[start : round(total * len(ordered))])
            if not found[name]:
                raise DatasetError(
                    f"SPLITS of '{source}': {share} of {len(ordered)} images are none for '{name}'"
                )
        return found


def choose(keys: Iterable[str], size: int, seed: int) -> set[str]:
    """``size`` of the keys, in the order of SHA-256 of seed and key.

    No library's generator is involved, and the order of the keys does not matter: the choice is
    the same on every machine and version, and a larger one contains a smaller one.
    """
    return set(ordered_by_seed(keys, seed)[:size])


def ordered_by_seed(keys: Iterable[str], seed: int) -> list[str]:
    """The keys in the order of SHA-256 of seed and key."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
