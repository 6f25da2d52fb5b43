"""Scores that other searches of a supernet have found, so that they are not computed again.

A fitness is a function of the path, the supernet's weights, and the images and settings that it is
scored with; a searcher only decides which paths are asked for. So strategies that are compared on
one supernet share what they evaluate.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from detnas_d2.evaluation.candidate import Evaluation, ManyEvaluator
from detnas_d2.search.history import HEADER_FILE, RECORDS_FILE, History

logger = logging.getLogger("detnas_d2.search")

_OF_THE_SEARCHER = ("searcher", "limits", "latency_table_sha256")
"""Of a search's fingerprint, what decides which candidates there are and not their fitness."""


class KnownScores:
    """An evaluator that looks a path up before it has it evaluated.

    Args:
        evaluator: of what is not known.
        scores: path text -> its evaluation, the same on every rank.
    """

    def __init__(self, evaluator: ManyEvaluator, scores: Mapping[str, Evaluation]) -> None:
        self._evaluator = evaluator
        self._scores = scores

    def evaluate_many(self, paths: Sequence[Any]) -> Iterator[tuple[Any, Evaluation | Exception]]:
        """Every path once: what is known first, then the others as the evaluator yields them."""
        missing = []
        for path in paths:
            score = self._scores.get(str(path))
            if score is None:
                missing.append(path)
            else:
                yield path, score
        if missing:
            yield from self._evaluator.evaluate_many(missing)


def known_scores(folders: Iterable[str], fingerprint: Mapping[str, Any]) -> dict[str, Evaluation]:
    """Path text -> score, of all candidates that the searches in ``folders`` have evaluated in the
    way that ``fingerprint`` (of :func:`detnas_d2.search.build.search_fingerprint`) describes.

    A folder without a search, or with one of another supernet, other data or settings, has none.
    The evaluations took no time.

    Raises:
        HistoryError: a damaged history.
    """
    scores: dict[str, Evaluation] = {}
    for folder in folders:
        if not _scores_alike(folder, fingerprint):
            continue
        found = {
            record.path: Evaluation(
                record.fitness,
                {k: math.nan if v is None else v for k, v in record.metrics.items()},
            )
            for record in History.read(folder)
            if record.fitness is not None
        }
        logger.info("%d candidates were scored by the search in %s", len(found), folder)
        scores |= found
    return scores


def _scores_alike(folder: str, fingerprint: Mapping[str, Any]) -> bool:
    try:
        with open(os.path.join(folder, HEADER_FILE), encoding="utf-8") as text:
            theirs = json.load(text)["fingerprint"]
        there = os.path.isfile(os.path.join(folder, RECORDS_FILE))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    ours = json.loads(json.dumps(dict(fingerprint)))  # tuples become lists
    return there and _about_scores(ours) == _about_scores(theirs)


def _about_scores(fingerprint: Any) -> dict[str, Any] | None:
    if not isinstance(fingerprint, dict):
        return None
    return {key: value for key, value in fingerprint.items() if key not in _OF_THE_SEARCHER}
