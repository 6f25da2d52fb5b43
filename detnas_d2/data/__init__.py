"""Datasets, search splits, resumable training batches and the built-in demo."""

from detnas_d2.data.checks.data_state import DataState, data_changes, data_state
from detnas_d2.data.checks.report import DatasetError, DatasetReport, Problem
from detnas_d2.data.checks.validation import validate_dataset
from detnas_d2.data.datasets.digits_dataset import (
    DIGITS_NAMES,
    DigitsSettings,
    register_digits,
)
from detnas_d2.data.datasets.registration import register_datasets
from detnas_d2.data.loaders.cached import cached_loaders, drop_cache
from detnas_d2.data.loaders.calibration import CalibrationBatches, build_calibration_batches
from detnas_d2.data.loaders.classification import ClassificationMapper
from detnas_d2.data.loaders.evaluation import build_eval_loader, build_test_loader
from detnas_d2.data.loaders.sampling import TrainingBatchSampler, aspect_flags
from detnas_d2.data.loaders.seeded_map import SeededMapDataset
from detnas_d2.data.loaders.train import build_train_loader, resumable_loader

__all__ = [
    "CalibrationBatches",
    "ClassificationMapper",
    "DIGITS_NAMES",
    "DataState",
    "DatasetError",
    "DatasetReport",
    "DigitsSettings",
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
    "register_digits",
    "resumable_loader",
    "validate_dataset",
]
