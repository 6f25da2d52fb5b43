"""Evaluation of candidates that differ in the resolution of their images too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from detnas_d2.evaluation.candidate import Evaluation
from detnas_d2.evaluation.evaluator_scoring import Scoring
from detnas_d2.evaluation.passes import OnPass
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.predictions import Predictions
from detnas_d2.evaluation.recalibration import BNStatistics
from detnas_d2.search_space import Path, PathError
from detnas_d2.utils.errors import CandidateFailed


class ResizedEvaluator:
    """A :class:`PopulationEvaluator` for each resolution, as one: each takes its paths.

    A path is recalibrated and scored on images of its own resolution; beginnings of paths are
    shared within one.

    Args:
        evaluators: by resolution, of one model and one scoring.
    """

    def __init__(self, evaluators: Mapping[int, PopulationEvaluator]) -> None:
        self.evaluators = dict(evaluators)
        self._any = next(iter(self.evaluators.values()))

    @property
    def model(self) -> nn.Module:
        return self._any.model

    @property
    def scoring(self) -> Scoring:
        return self._any.scoring

    @property
    def metric(self) -> str:
        return self._any.metric

    @property
    def chunk(self) -> int:
        return self._any.chunk

    @property
    def on_pass(self) -> OnPass:
        return self._any.on_pass

    @on_pass.setter
    def on_pass(self, called: OnPass) -> None:
        for evaluator in self.evaluators.values():
            evaluator.on_pass = called

    def evaluate_many(
        self, paths: Sequence[Path]
    ) -> Iterator[tuple[Path, Evaluation | CandidateFailed]]:
        """See :meth:`PopulationEvaluator.evaluate_many`."""
        for evaluator, own in self._grouped(paths):
            yield from evaluator.evaluate_many(own)

    def predictions(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Predictions]]:
        """See :meth:`PopulationEvaluator.predictions`."""
        for evaluator, own in self._grouped(paths):
            yield from evaluator.predictions(own)

    def statistics(self, paths: Sequence[Path]) -> dict[Path, BNStatistics | CandidateFailed]:
        """See :meth:`PopulationEvaluator.statistics`."""
        found: dict[Path, BNStatistics | CandidateFailed] = {}
        for evaluator, own in self._grouped(paths):
            found |= evaluator.statistics(own)
        return found

    def _grouped(self, paths: Sequence[Path]) -> Iterator[tuple[PopulationEvaluator, list[Path]]]:
        """Paths of each resolution that has some, in the order of the evaluators."""
        unknown = [path for path in paths if path.resolution not in self.evaluators]
        if unknown:
            raise PathError(
                f"the path {unknown[0]}: expected a resolution of {list(self.evaluators)}"
            )
        for resolution, evaluator in self.evaluators.items():
            own = [path for path in paths if path.resolution == resolution]
            if own:
                yield evaluator, own


PathEvaluator = PopulationEvaluator | ResizedEvaluator
"""What a search evaluates its candidates with."""
