"""Datasets, search splits, resumable training batches and the built-in demo.

A name is imported from its module when it is first used, so that what needs neither torch nor
Detectron2 (:mod:`detnas_d2.data.recognition`) is there at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "checks.data_state": ("DataState", "data_changes", "data_state"),
    "checks.report": ("DatasetError", "DatasetReport", "Problem"),
    "checks.validation": ("validate_dataset",),
    "datasets.digits_dataset": ("DIGITS_NAMES", "DigitsSettings", "register_digits"),
    "datasets.registration": ("register_datasets",),
    "loaders.cached": ("cached_loaders", "drop_cache"),
    "loaders.calibration": ("CalibrationBatches", "build_calibration_batches"),
    "loaders.classification": ("ClassificationMapper",),
    "loaders.evaluation": ("build_eval_loader", "build_test_loader"),
    "loaders.sampling": ("TrainingBatchSampler", "aspect_flags"),
    "loaders.seeded_map": ("SeededMapDataset",),
    "loaders.train": ("build_train_loader", "resumable_loader"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
