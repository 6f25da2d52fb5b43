"""Points of several objectives, all to be minimised: who dominates whom, how much a front covers.

One point dominates another if it is at most as large in every objective and smaller in one. Only
comparisons, differences and quotients of single numbers decide: results are the same on every
machine.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""float64[points, objectives]."""


def dominance_ranks(points: Points) -> npt.NDArray[np.int64]:
    """Rank of each point, int64[points]: 0 on the front, 1 on the front of the others, and so on.

    Fast non-dominated sorting as NSGA-II needs it (Deb et al., IEEE TEC 6(2), 2002, section III-A):
    the same ranks by another way. A rank is the length of the longest chain of points of which each
    dominates the next, so in lexicographic order, where nobody is dominated by a later one, it
    follows from the ranks before. Equal points have equal ranks. O(points^2 objectives).

    Raises:
        ValueError: a value that is not finite, or another number of dimensions.
    """
    unique, places = np.unique(_checked(points), axis=0, return_inverse=True)
    # The first objective is in order; of the others only the order matters, and integers are fast.
    others = [np.unique(values, return_inverse=True)[1].astype(np.int32) for values in unique.T[1:]]
    lengths = np.ones(len(unique), np.int32)  # of the longest chain that ends with the point
    for i in range(1, len(unique)):
        dominating = np.ones(i, bool)
        for values in others:
            dominating &= values[:i] <= values[i]
        lengths[i] = 1 + (lengths[:i] * dominating).max()
    return (lengths[places.reshape(-1)] - 1).astype(np.int64)


def crowding_distances(points: Points) -> Points:
    """How far the neighbours of each point of a front lie apart, float64[points].

    In each objective the distance between the next smaller and the next larger value, as a share of
    the front's range, summed over the objectives; infinite for the smallest and the largest (Deb et
    al., section III-B). Equal values are neighbours in order of the points. An objective in which
    all points are equal counts nothing.

    Raises:
        ValueError: see :func:`dominance_ranks`.
    """
    points = _checked(points)
    distances = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        if len(points) == 0 or ordered[0] == ordered[-1]:
            continue
        width = ordered[-1] - ordered[0]
        distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / width
        distances[order[[0, -1]]] = math.inf
    return distances


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume of what the points dominate up to a reference point, of two or three objectives.

    A point that is not below the reference in all objectives adds nothing. Dimension sweep over the
    last objective: the others span a staircase whose area changes by one step for each point.
    O(points log points) comparisons.

    Raises:
        ValueError: another number of objectives.
    """
    if len(reference) not in (2, 3):
        raise ValueError(f"hypervolume of {len(reference)} objectives: expected two or three")
    inside = [p for p in points if all(a < b for a, b in zip(p, reference, strict=True))]
    if len(reference) == 2:
        stairs = _Staircase(*reference)
        for x, y in inside:
            stairs.add(x, y)
        return stairs.area
    stairs, volume, reached = _Staircase(*reference[:2]), 0.0, 0.0
    for x, y, z in sorted(inside, key=lambda point: point[2]):
        volume += stairs.area * (z - reached)
        stairs.add(x, y)
        reached = z
    return volume + stairs.area * (reference[2] - reached)


class _Staircase:
    """Area that points in a plane dominate up to a corner."""

    def __init__(self, right: float, top: float) -> None:
        self.area = 0.0
        self._xs = [-math.inf, right]  # rising
        self._ys = [top, -math.inf]  # falling: height of the stairs from there on

    def add(self, x: float, y: float) -> None:
        """A point below and left of the corner."""
        xs, ys = self._xs, self._ys
        place = bisect_left(xs, x)
        if ys[place - 1] <= y or (xs[place] == x and ys[place] <= y):
            return
        last = place  # points from `place` to before `last` are dominated
        left, height = x, ys[place - 1]
        while ys[last] >= y:
            self.area += (xs[last] - left) * (height - y)
            left, height = xs[last], ys[last]
            last += 1
        self.area += (xs[last] - left) * (height - y)
        xs[place:last], ys[place:last] = [x], [y]


def _checked(points: Points) -> Points:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError("expected finite points, float64[points, objectives]")
    return points + 0.0  # no -0, which would be another value to np.unique
