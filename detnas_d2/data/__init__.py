"""Data sets, search splits, resumable training batches and the built-in demo."""

from detnas_d2.data.cached_loaders import cached_loaders, drop_cache
from detnas_d2.data.calibration import CalibrationBatches, build_calibration_batches
from detnas_d2.data.classification import ClassificationMapper
from detnas_d2.data.classification_evaluation import ClassificationEvaluator
from detnas_d2.data.data_state import DataState, data_changes, data_state
from detnas_d2.data.digits_dataset import DIGITS_NAMES
from detnas_d2.data.eval_loader import build_eval_loader, build_test_loader
from detnas_d2.data.registration import register_datasets
from detnas_d2.data.report import DatasetError, DatasetReport, Problem
from detnas_d2.data.sampling import TrainingBatchSampler, aspect_flags
from detnas_d2.data.seeded_map import SeededMapDataset
from detnas_d2.data.train_loader import build_train_loader, resumable_loader
from detnas_d2.data.validation import validate_dataset

__all__ = [
    "CalibrationBatches",
    "ClassificationEvaluator",
    "ClassificationMapper",
    "DIGITS_NAMES",
    "DataState",
    "DatasetError",
    "DatasetReport",
    "Problem",
    "SeededMapDataset",
    "TrainingBatchSampler",
    "aspect_flags",
    "build_calibration_batches",
    "build_eval_loader",
    "build_test_loader",
    "build_train_loader",
    "cached_loaders",
    "data_changes",
    "data_state",
    "drop_cache",
    "register_datasets",
    "resumable_loader",
    "validate_dataset",
]
