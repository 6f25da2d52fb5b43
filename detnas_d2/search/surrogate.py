"""Surrogates: a regression on a truth set, which gives every path of a space a score.

As NAS-Bench-301 (arXiv 2008.09777) does with ten thousands of networks, on a small scale: what a
strategy finds can then be compared with the best path there is. Needs scikit-learn and SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detnas_d2.search.one_hot import one_hot
from detnas_d2.search_space import AdditiveTable, Choices
from detnas_d2.utils.errors import InputError

Floats = npt.NDArray[np.float64]
Paths = npt.NDArray[np.int64]

ENUMERABLE = 2**24
"""Spaces of at most this many paths may have terms besides those of single layers."""

_CHUNK = 2**18
_FOLDS = 10
# Strengths of the ridge penalty, in observations of an operation.
_ALPHAS = tuple(10.0 ** (power / 2) for power in range(-4, 7))
# What a score is a linear function of: all have the operation of every layer.
_KINDS = {"choices": "", "choices and squared cost": "square", "choices and neighbours": "pairs"}


@dataclass(frozen=True)
class Surrogate:
    """A score of paths: a sum over layers, and what layers do together if the regression has it.

    Attributes:
        macs: multiply-adds of the paths.
        kind: one of the regressions that were tried.
        base: what every path has.
        rows: for each layer what its operations are worth, float64[operations].
        pairs: for each layer but the last what its operations are worth with those of the next
            one, float64[operations, operations of the next]; empty without such terms.
        square: what the squared cost is worth, of a cost in `unit` from `center`; 0 without.
        r2, tau: coefficient of determination, and Kendall's tau-b, of predictions of networks that
            the regression had not seen (ten-fold; the kind is chosen anew in each).
    """

    macs: AdditiveTable[int]
    kind: str
    base: float
    rows: tuple[Floats, ...]
    pairs: tuple[Floats, ...]
    square: float
    center: float
    unit: float
    r2: float
    tau: float

    def scores(self, paths: Paths) -> Floats:
        """Scores of paths int64[n, layers]: float64[n]."""
        values = np.full(len(paths), self.base)
        for layer, row in enumerate(self.rows):
            values += row[paths[:, layer]]
        for layer, table in enumerate(self.pairs):
            values += table[paths[:, layer], paths[:, layer + 1]]
        if self.square:
            values += self.square * ((costs(self.macs, paths) - self.center) / self.unit) ** 2
        return values

    def best(self, max_macs: float = math.inf) -> float:
        """Score of the best path of the space with at most `max_macs` multiply-adds, exactly.

        Raises:
            InputError: there is none.
        """
        if self.macs.cheapest() > max_macs:
            raise InputError(
                f"max_macs {max_macs:g}: the cheapest path of the space has {self.macs.cheapest()}"
            )
        if self.pairs or self.square:
            return self._best_of_all(max_macs)
        return self.base + self._best_sum(max_macs)

    def _best_of_all(self, max_macs: float) -> float:
        """By looking at every path."""
        sizes = [len(row) for row in self.rows]
        best, count = -math.inf, math.prod(sizes)
        for start in range(0, count, _CHUNK):
            numbers = np.arange(start, min(start + _CHUNK, count))
            paths = np.stack(np.unravel_index(numbers, sizes), axis=1)
            values = self.scores(paths[costs(self.macs, paths) <= max_macs])
            best = max(best, float(values.max(initial=-math.inf)))
        return best

    def _best_sum(self, max_macs: float) -> float:
        """The largest sum over layers, from beginnings that none is better than and as cheap."""
        cost, value = np.array([self.macs.base]), np.zeros(1)
        rest = self.macs.cheapest() - self.macs.base
        for entries, row in zip(self.macs.entries, self.rows, strict=True):
            rest -= min(entries)
            cost = np.add.outer(cost, np.array(entries)).ravel()
            value = np.add.outer(value, row).ravel()
            kept = cost + rest <= max_macs
            cost, value = cost[kept], value[kept]
            order = np.lexsort((-value, cost))
            cost, value = cost[order], value[order]
            risen = np.maximum.accumulate(value)
            first = np.concatenate(([True], risen[1:] > risen[:-1]))
            cost, value = cost[first], value[first]
        return float(value[-1])


def costs(macs: AdditiveTable[int], paths: Paths) -> npt.NDArray[np.int64]:
    """Multiply-adds of paths int64[n, layers]: int64[n]."""
    total = np.full(len(paths), macs.base, np.int64)
    for layer, entries in enumerate(macs.entries):
        total += np.array(entries)[paths[:, layer]]
    return total


def fit_surrogate(
    choices: Sequence[Choices], scores: Sequence[float], macs: AdditiveTable[int]
) -> Surrogate:
    """Ridge regression of scores on choices.

    By leave-one-out errors it chooses the penalty and, in spaces of at most ``ENUMERABLE`` paths,
    whether the squared cost, or what the operations of neighbouring layers do together, is learned
    besides what the operations of single layers do.

    Args:
        choices: of the networks.
        scores: of the networks, in that order.
        macs: multiply-adds of the paths of the space.

    Raises:
        InputError: fewer networks than folds, or all with one score.
    """
    from scipy.stats import kendalltau
    from sklearn.model_selection import KFold

    paths, truth = np.array(choices, np.int64), np.array(scores, np.float64)
    if len(paths) < _FOLDS or not truth.std():
        raise InputError(
            f"{len(paths)} networks with {len(np.unique(truth))} scores: expected at least "
            f"{_FOLDS} networks that differ"
        )
    predicted = np.empty(len(paths))
    for learned, held_out in KFold(_FOLDS, shuffle=True, random_state=0).split(paths):
        fold = _fitted(paths[learned], truth[learned], macs)
        predicted[held_out] = fold.scores(paths[held_out])
    r2 = 1 - float(((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
    return _fitted(paths, truth, macs, r2, float(kendalltau(predicted, truth).statistic))


def _fitted(
    paths: Paths, truth: Floats, macs: AdditiveTable[int], r2: float = 0.0, tau: float = 0.0
) -> Surrogate:
    """The regression of the kind whose leave-one-out errors are the smallest."""
    from sklearn.linear_model import RidgeCV

    sizes = [len(entries) for entries in macs.entries]
    cost = costs(macs, paths)
    center, unit = float(cost.mean()), float(cost.std()) or 1.0
    ones = np.split(one_hot(paths, sizes), np.cumsum(sizes)[:-1], axis=1)
    products = [
        (one[:, :, None] * other[:, None, :]).reshape(len(paths), -1)
        for one, other in zip(ones, ones[1:], strict=False)
    ]
    square_terms = (((cost - center) / unit)[:, None] ** 2).astype(np.float64)
    further: dict[str, list[Floats]] = {"": [], "square": [square_terms], "pairs": products}
    best = None
    for kind, terms in _KINDS.items():
        if terms and (math.prod(sizes) > ENUMERABLE or not further[terms]):
            continue
        features = np.concatenate(ones + further[terms], axis=1)
        model = RidgeCV(alphas=_ALPHAS).fit(features, truth)
        if best is None or model.best_score_ > best[0]:
            best = (model.best_score_, kind, model)
    assert best is not None
    _, kind, model = best
    rows = np.split(model.coef_, np.cumsum(sizes))
    rest = rows.pop()
    pairs: list[Floats] = []
    if _KINDS[kind] == "pairs":
        shapes = list(zip(sizes, sizes[1:], strict=False))
        parts = np.split(rest, np.cumsum([n * m for n, m in shapes])[:-1])
        pairs = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    square = float(rest[0]) if _KINDS[kind] == "square" else 0.0
    return Surrogate(
        macs,
        kind,
        float(model.intercept_),
        tuple(rows),
        tuple(pairs),
        square,
        center,
        unit,
        r2,
        tau,
    )
