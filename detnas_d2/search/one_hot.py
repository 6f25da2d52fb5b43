"""Choices as numbers that a regression learns from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt


def one_hot(
    paths: Iterable[Iterable[int]], cardinalities: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Which operation each layer has, as zeros and ones: float64[paths, sum of cardinalities]."""
    ends = np.cumsum(cardinalities)
    starts = (ends - cardinalities).astype(np.int64)
    flat = np.fromiter(itertools.chain.from_iterable(paths), np.int64)  # faster than asarray
    places = flat.reshape(-1, len(starts)) + starts
    features = np.zeros((len(places), int(ends[-1])))
    np.put_along_axis(features, places, 1.0, axis=1)
    return features
