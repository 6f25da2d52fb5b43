"""Choice of candidates: searchers, constraints, the history of a search, the search loop."""

from detnas_d2.search.constraints import Constraint, Limits, UnsatisfiableLimit
from detnas_d2.search.driver import ReplayError, TooManyFailures, open_history, run_search
from detnas_d2.search.evolution import Evolution, EvolutionSettings
from detnas_d2.search.history import FingerprintMismatch, History, HistoryError
from detnas_d2.search.nsga2 import NSGA2, NSGA2Settings
from detnas_d2.search.objectives import Objectives
from detnas_d2.search.predictor import PredictorSearch, PredictorSettings
from detnas_d2.search.progress import Progress
from detnas_d2.search.random_search import RandomSearch
from detnas_d2.search.regularized import RegularizedEvolution, RegularizedSettings
from detnas_d2.search.searcher import SearchSpaceExhausted

__all__ = [
    "NSGA2",
    "Constraint",
    "Evolution",
    "EvolutionSettings",
    "FingerprintMismatch",
    "History",
    "HistoryError",
    "Limits",
    "NSGA2Settings",
    "Objectives",
    "PredictorSearch",
    "PredictorSettings",
    "Progress",
    "RandomSearch",
    "RegularizedEvolution",
    "RegularizedSettings",
    "ReplayError",
    "SearchSpaceExhausted",
    "TooManyFailures",
    "UnsatisfiableLimit",
    "open_history",
    "run_search",
]
