"""Settings by which candidates are scored, read off a config once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from detnas_d2.config.resolutions import at_resolution, resolutions_of
from detnas_d2.config.tools import flatten
from detnas_d2.data import build_calibration_batches, build_test_loader, register_datasets
from detnas_d2.data.loaders.cached import CACHE_FILE
from detnas_d2.data.loaders.calibration import CalibrationBatches
from detnas_d2.evaluation.evaluators import keypoint_sigmas
from detnas_d2.evaluation.scorable import check_scorable
from detnas_d2.evaluation.scoring import DEFAULT_METRICS, check_metric, evaluator_type
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class CalibrationSettings:
    """Images that BatchNorm statistics are computed on.

    Attributes:
        images: their number.
        batch_size: over all processes.
        seed: chooses them, and is that of the model's random choices.
        together: batches that run together at most, with the same results; 0: what fits the device.
    """

    dataset: str
    images: int
    batch_size: int
    seed: int
    together: int


@dataclass(frozen=True)
class EvaluationSettings:
    """Scoring of candidates: on what, by which metric, with which means.

    Datasets need not be registered before :meth:`check`.

    Attributes:
        validation: dataset that candidates are scored on.
        named_metric: ``SEARCH.METRIC``, "" for the usual one of the dataset.
        masks, keypoints: whether the model predicts masks, and how many keypoints.
        sigmas: of COCO's keypoint similarity; None without keypoints, empty for COCO's own.
        chunk: candidates evaluated together.
        scoring_workers: processes per rank.
        cuda_graphs: see the config key ``SEARCH.CUDA_GRAPHS``.
        image_cache_gib: of decoded images at most, in ``cache_file`` in ``output_dir``.
        described: what else decides a candidate's fitness: splits, test-time input, model.
        open_images, open_calibration, register: make the loaders, ready the datasets.
    """

    validation: str
    calibration: CalibrationSettings
    named_metric: str
    masks: bool
    keypoints: int
    sigmas: tuple[float, ...] | None
    chunk: int
    scoring_workers: int
    cuda_graphs: str
    image_cache_gib: float
    output_dir: str
    described: Mapping[str, Any]
    open_images: Callable[[str], Iterable[list[dict[str, Any]]]]
    open_calibration: Callable[..., CalibrationBatches]
    register: Callable[[Iterable[str]], None]
    cache_file: str = CACHE_FILE

    @classmethod
    def from_config(cls, cfg: CfgNode) -> EvaluationSettings:
        """Settings that ``cfg.SEARCH`` and the keys of the model give.

        Raises:
            InputError: no dataset to score on or to calibrate with.
        """
        search = cfg.SEARCH
        if not (search.VAL or cfg.DATASETS.TEST):
            raise InputError("SEARCH.VAL and DATASETS.TEST are empty: nothing scores candidates")
        if not (search.CALIBRATION.DATASET or cfg.DATASETS.TRAIN):
            raise InputError(
                "SEARCH.CALIBRATION.DATASET and DATASETS.TRAIN are empty: nothing to calibrate with"
            )
        model = {k: v for k, v in flatten(cfg.MODEL).items() if k not in ("WEIGHTS", "DEVICE")}
        if not model.get("HIT.NECK_CHANNELS"):  # as before there was this key: such searches go on
            model.pop("HIT.NECK_CHANNELS", None)
        return cls(
            validation=search.VAL or cfg.DATASETS.TEST[0],
            calibration=CalibrationSettings(
                dataset=search.CALIBRATION.DATASET or cfg.DATASETS.TRAIN[0],
                images=search.CALIBRATION.IMAGES,
                batch_size=search.CALIBRATION.BATCH_SIZE,
                seed=search.CALIBRATION.SEED,
                together=search.CALIBRATION.TOGETHER,
            ),
            named_metric=search.METRIC,
            masks=cfg.MODEL.MASK_ON,
            keypoints=cfg.MODEL.KEYPOINT_ON and cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS,
            sigmas=keypoint_sigmas(cfg),
            chunk=search.CHUNK,
            scoring_workers=search.SCORING_WORKERS,
            cuda_graphs=search.CUDA_GRAPHS,
            image_cache_gib=search.IMAGE_CACHE_GIB,
            output_dir=cfg.OUTPUT_DIR,
            described={
                "split": dict(cfg.DATASETS.SEARCH_SPLIT),
                "input": {k: cfg.INPUT[k] for k in ("MIN_SIZE_TEST", "MAX_SIZE_TEST", "FORMAT")},
                "model": model,
                "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
                "cost_input": list(search.MAX_MACS_INPUT),
                # Left out where it is 1, so that searches that were begun without the key go on.
                **({"batch_size": batch} if (batch := cfg.TEST.BATCH_SIZE) > 1 else {}),
            },
            open_images=partial(build_test_loader, cfg),
            open_calibration=partial(build_calibration_batches, cfg),
            register=partial(register_datasets, cfg),
        )

    @property
    def datasets(self) -> tuple[str, str]:
        """Names of what candidates are scored and calibrated on."""
        return self.validation, self.calibration.dataset

    @property
    def metric(self) -> str:
        """The metric to maximise, "task/name", of the registered dataset."""
        return self.named_metric or DEFAULT_METRICS[evaluator_type(self.validation)]

    @property
    def task(self) -> str:
        """The part of :attr:`metric` before "/"."""
        return self.metric.partition("/")[0]

    def data_loader(self) -> Any:
        """Loader of this rank's share of the images that candidates are scored on."""
        return self.open_images(self.validation)

    def calibration_batches(self) -> CalibrationBatches:
        """This rank's share of the calibration images."""
        of = self.calibration
        return self.open_calibration(
            of.dataset, num_images=of.images, batch_size=of.batch_size, seed=of.seed
        )

    def fingerprint(self) -> dict[str, Any]:
        """All that, besides weights, space, searcher and latencies, decides which candidates there
        are and their fitness.
        """
        of = self.calibration
        return {
            "validation": self.validation,
            "calibration": {
                "DATASET": of.dataset,
                "IMAGES": of.images,
                "BATCH_SIZE": of.batch_size,
                "SEED": of.seed,
            },
            "metric": self.metric,
            **self.described,
        }

    def check(self) -> None:
        """Registers the datasets, and checks that candidates can get a score on them.

        Raises:
            InputError: naming the dataset, and what is unknown or the objects that the metric
                lacks.
        """
        self.register(self.datasets)
        check_metric(
            self.metric,
            self.validation,
            masks=self.masks,
            keypoints=self.keypoints,
            sigmas=self.sigmas,
        )
        check_scorable(self.validation, self.metric)
        wanted, dataset = self.calibration.images, self.calibration.dataset
        there = len(DatasetCatalog.get(dataset))
        if wanted > there:
            raise InputError(
                f"SEARCH.CALIBRATION.IMAGES is {wanted}: expected at most {there}, the images of "
                f"{dataset!r}"
            )


def resized_settings(cfg: CfgNode) -> dict[int, EvaluationSettings]:
    """Settings at each of ``SEARCH.RESOLUTIONS``: those of the config at that resolution.

    The files of decoded images share ``SEARCH.IMAGE_CACHE_GIB`` by the pixels of their images.
    """
    resolutions = resolutions_of(cfg)
    pixels = sum(resolution**2 for resolution in resolutions)
    return {
        resolution: replace(
            EvaluationSettings.from_config(at_resolution(cfg, resolution)),
            image_cache_gib=cfg.SEARCH.IMAGE_CACHE_GIB * resolution**2 / pixels,
            cache_file=f"images_{resolution}.cache",
        )
        for resolution in resolutions
    }
