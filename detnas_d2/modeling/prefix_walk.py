"""Paths that share their first choices share the work of computing them.

The output of layer l depends only on the images and on the choices of layers 0 to l. Paths in
lexicographic order are therefore a depth-first walk of their trie: each path continues from the
deepest output that it has in common with the one before, and every prefix is computed once.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable

from torch import Tensor

from detnas_d2.search_space import Choices, Path


class PrefixWalk:
    """Outputs that the supernet keeps of one batch between the paths of a population, or of several
    batches that it runs together.

    An output is kept while a later path will continue from it: at most one activation per layer,
    and of the layers after which no two paths part only the features. A walk serves one supernet
    and one input at a time; call :meth:`clear` before another. Inputs must not require gradients.

    Args:
        paths: of one space; :attr:`paths` has them without duplicates, in the order to run in.

    Attributes:
        batches: that the input has one after the other, of one size, see ``fused_forward``.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = sorted(set(paths), key=lambda path: path.choices)
        self._kept_depths = _depths_to_keep([path.choices for path in self.paths])
        self.outputs: dict[int, Tensor] = {}
        self.batches = 1
        self._previous: Choices = ()
        self._reused: frozenset[int] = frozenset()

    def clear(self, batches: int = 1) -> None:
        """Forgets the input; the next one has so many batches."""
        self.outputs.clear()
        self.batches = batches
        self._previous, self._reused = (), frozenset()

    def enter(self, path: Path) -> dict[int, Tensor]:
        """Outputs that ``path`` shares with the paths before it, by depth (0: the stem's).

        The supernet adds those of ``path`` to the dict.
        """
        shared = common_prefix(self._previous, path.choices) if self.outputs else 0
        for depth in [depth for depth in self.outputs if depth > shared]:
            del self.outputs[depth]
        self._previous, self._reused = path.choices, frozenset(self.outputs)
        return self.outputs

    def keep(self, path: Path) -> frozenset[int]:
        """Depths from which a path after ``path`` continues."""
        return self._kept_depths[path.choices]

    @property
    def start(self) -> int:
        """Depth from which the entered path continues; -1: from the images."""
        return max(self._reused, default=-1)

    def abandon(self) -> None:
        """Drops what the entered path added: its forward pass failed."""
        for depth in set(self.outputs) - self._reused:
            del self.outputs[depth]


def common_prefix(a: Choices, b: Choices) -> int:
    """Number of leading choices that ``a`` and ``b`` share."""
    return len(os.path.commonprefix([a, b]))


def _depths_to_keep(ordered: list[Choices]) -> dict[Choices, frozenset[int]]:
    depths: dict[Choices, frozenset[int]] = {}
    later: frozenset[int] = frozenset()
    for place in range(len(ordered) - 1, -1, -1):
        choices = ordered[place]
        if place + 1 < len(ordered):
            parting = common_prefix(choices, ordered[place + 1])
            later = frozenset(depth for depth in later if depth < parting) | {parting}
        depths[choices] = later
    return depths
