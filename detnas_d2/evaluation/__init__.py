"""Scores of candidates: recalibration, inference and metrics, one path or a population."""

from detnas_d2.evaluation.candidate import CandidateRecord, Evaluation
from detnas_d2.evaluation.classification import ClassificationEvaluator
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.recalibration import BNStatistics, override_bn_stats, recalibrate
from detnas_d2.evaluation.sequential import SequentialEvaluator
from detnas_d2.utils.errors import CandidateFailed

__all__ = [
    "BNStatistics",
    "CandidateFailed",
    "CandidateRecord",
    "ClassificationEvaluator",
    "Evaluation",
    "PopulationEvaluator",
    "SequentialEvaluator",
    "override_bn_stats",
    "recalibrate",
]
