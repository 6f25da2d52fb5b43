"""Rules for the values of config keys: the project's and those of Detectron2 that it relies on.

Names that only the model's parts know (registries, search spaces) are checked where a run is
planned (:mod:`detnas_d2.engine.checks.models`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode

from detnas_d2.config.reading import ConfigError


@dataclass(frozen=True)
class Rule:
    """``allows`` may assume the type of the key's default; ``expected`` completes "expected"."""

    allows: Callable[[Any], bool]
    expected: str


def at_least(low: float) -> Rule:
    return Rule(lambda value: value >= low, f"{low} or more")


def within(low: float, high: float) -> Rule:
    return Rule(lambda value: low <= value <= high, f"a number from {low} to {high}")


def one_of(*names: Any) -> Rule:
    return Rule(lambda value: value in names, f"one of {', '.join(repr(name) for name in names)}")


def unset_or(unset: float, rule: Rule) -> Rule:
    return Rule(
        lambda value: value == unset or rule.allows(value), f"{unset} (not set), or {rule.expected}"
    )


def numbers(check: Callable[[Any], bool], expected: str, count: int | None = None) -> Rule:
    def allows(value: Any) -> bool:
        good = all(_is_number(item) and check(item) for item in value)
        return good and (len(value) == count if count else len(value) > 0)

    how_many = f"{count} " if count else "a list of "
    return Rule(allows, f"{how_many}{expected}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _texts(value: Any) -> bool:
    return all(isinstance(item, str) and item for item in value)


def _rising(value: Any) -> bool:
    good = all(_is_size(item) for item in value)
    return good and all(a < b for a, b in zip(value, value[1:], strict=False))


def _nested_positive(value: Any) -> bool:
    rows = [row if isinstance(row, (list, tuple)) else [row] for row in value]
    return bool(rows) and all(
        row and all(_is_number(item) and item > 0 and math.isfinite(item) for item in row)
        for row in rows
    )


def _is_device(value: str) -> bool:
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


def _objectives(value: Any) -> bool:
    if not value or value[0] != "fitness" or len(value) > 3:
        return False
    costs = value[1:]
    return all(cost in COSTS for cost in costs) and len(set(costs)) == len(costs)


def _weight_decay(value: Any) -> bool:
    return value is None or (_is_number(value) and value >= 0)


FOOTPRINTS = ("memory_bytes", "file_bytes")
"""What a path costs besides, which candidates record where it is an objective."""
COSTS = ("macs", "params", "latency_ms", *FOOTPRINTS)
"""What a path costs, as candidates record it."""
_POSITIVE, _NOT_NEGATIVE = at_least(1), at_least(0)
_SHARE = within(0, 1)
_ABOVE_0_TO_1 = Rule(lambda value: 0 < value <= 1, "a number above 0, at most 1")
_BELOW_1 = Rule(lambda value: 0 <= value < 1, "a number from 0 to below 1")
_ABOVE_0 = Rule(lambda value: value > 0, "a number above 0")
_IMAGE_SIZE = numbers(_is_size, "positive integers, height and width", 2)
_NAMES = Rule(_texts, "a list of names")
_SOME_NAMES = Rule(lambda value: len(value) > 0 and _texts(value), "a list of names, not empty")
_DECAY = Rule(_weight_decay, "0 or more, or None")
_FUSED = one_of("off", "on", "auto", "measured")

RULES: dict[str, Rule] = {
    "SEED": within(0, 2**63 - 1),
    "MODEL.DEVICE": Rule(_is_device, "a device of torch, e.g. cuda or cpu"),
    "MODEL.PIXEL_MEAN": numbers(math.isfinite, "numbers, one for each channel"),
    "MODEL.PIXEL_STD": numbers(lambda v: 0 < v < math.inf, "numbers above 0"),
    "MODEL.FPN.OUT_CHANNELS": _POSITIVE,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.FPN.IN_FEATURES": _NAMES,
    "MODEL.RPN.IN_FEATURES": _SOME_NAMES,
    "MODEL.ROI_HEADS.IN_FEATURES": _SOME_NAMES,
    "MODEL.RETINANET.IN_FEATURES": _SOME_NAMES,
    "MODEL.ANCHOR_GENERATOR.SIZES": Rule(_nested_positive, "a list of lists of sizes above 0"),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": Rule(
        _nested_positive, "a list of lists of ratios above 0"
    ),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _POSITIVE,
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.NMS_THRESH": _ABOVE_0_TO_1,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _POSITIVE,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _POSITIVE,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _POSITIVE,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _POSITIVE,
    "MODEL.ROI_HEADS.NUM_CLASSES": _POSITIVE,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _POSITIVE,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _BELOW_1,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _ABOVE_0_TO_1,
    "MODEL.ROI_BOX_HEAD.NUM_FC": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _POSITIVE,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _POSITIVE,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": _POSITIVE,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": _NOT_NEGATIVE,
    "MODEL.RETINANET.NUM_CLASSES": _POSITIVE,
    "MODEL.RETINANET.NUM_CONVS": _NOT_NEGATIVE,
    "MODEL.RETINANET.SCORE_THRESH_TEST": _BELOW_1,
    "MODEL.RETINANET.NMS_THRESH_TEST": _ABOVE_0_TO_1,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": _POSITIVE,
    "MODEL.RETINANET.PRIOR_PROB": Rule(lambda v: 0 < v < 1, "a number between 0 and 1"),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _POSITIVE,
    "MODEL.DETNAS.NORM_MOMENTUM": _ABOVE_0_TO_1,
    "MODEL.DETNAS.SHUFFLE_METHOD": one_of(1, 2),
    "MODEL.DETNAS.INIT": one_of("imagenet", "default"),
    "MODEL.DETNAS.OUT_FEATURES": _SOME_NAMES,
    "MODEL.DETNAS.FUSED_OPS": _FUSED,
    "MODEL.CLASSIFIER.NUM_CLASSES": _POSITIVE,
    "MODEL.CLASSIFIER.DROPOUT": _BELOW_1,
    "MODEL.CLASSIFIER.LABEL_SMOOTHING": _BELOW_1,
    "MODEL.HIT.OUT_FEATURES": _SOME_NAMES,
    "MODEL.HIT.SEARCHABLE_PARTS": _NAMES,
    "MODEL.HIT.NECK_CHANNELS": Rule(_rising, "rising positive integers, or []"),
    "MODEL.HIT.STRATEGY": one_of("gradient", "sampling"),
    "MODEL.HIT.REPLACED.PART": one_of("backbone", "neck", "head"),
    "MODEL.HIT.REPLACED.LAYER": at_least(-1),
    "MODEL.HIT.SHARED_OPS": one_of("", "backbone", "neck", "head"),
    "MODEL.HIT.FUSED_OPS": one_of("off", "cpu", "auto", "measured", "on"),
    "INPUT.MIN_SIZE_TRAIN": numbers(_is_size, "positive integers"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": _POSITIVE,
    "INPUT.MIN_SIZE_TEST": _NOT_NEGATIVE,
    "INPUT.MAX_SIZE_TEST": _POSITIVE,
    "INPUT.RANDOM_FLIP": one_of("none", "horizontal", "vertical"),
    "INPUT.FORMAT": one_of("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": one_of("polygon", "bitmask"),
    "INPUT.CLASSIFICATION.CROP_SIZE": _POSITIVE,
    "INPUT.CLASSIFICATION.RESIZE_SIZE": _POSITIVE,
    "INPUT.CLASSIFICATION.MIN_SCALE": _ABOVE_0_TO_1,
    "INPUT.CLASSIFICATION.COLOR_JITTER": _SHARE,
    "INPUT.CLASSIFICATION.TEST_BATCH_SIZE": _POSITIVE,
    "TEST.BATCH_SIZE": _POSITIVE,
    "DATASETS.TRAIN": _NAMES,
    "DATASETS.TEST": _NAMES,
    "DATASETS.SEARCH_SPLIT.SIZE": _NOT_NEGATIVE,
    "DATASETS.SEARCH_SPLIT.FRACTION": _BELOW_1,
    "DATASETS.DIGITS.SCENE_SIZE": _POSITIVE,
    "DATASETS.DIGITS.NUM_TRAIN": _POSITIVE,
    "DATASETS.DIGITS.NUM_VAL": _POSITIVE,
    "DATASETS.DIGITS.NUM_TEST": _POSITIVE,
    "DATASETS.DIGITS.PATCH_SIZE": _POSITIVE,
    "DATASETS.DIGITS.PATCHES_PER_DIGIT": _POSITIVE,
    "DATALOADER.NUM_WORKERS": _NOT_NEGATIVE,
    "SOLVER.OPTIMIZER": one_of("SGD", "AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupLinearLR"),
    "SOLVER.MAX_ITER": _POSITIVE,
    "SOLVER.BASE_LR": within(0, 1000),
    "SOLVER.MOMENTUM": _BELOW_1,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": _DECAY,
    "SOLVER.WEIGHT_DECAY_BIAS": _DECAY,
    "SOLVER.GAMMA": _ABOVE_0_TO_1,
    "SOLVER.STEPS": Rule(_rising, "rising positive iterations"),
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": _NOT_NEGATIVE,
    "SOLVER.WARMUP_METHOD": one_of("constant", "linear"),
    "SOLVER.CHECKPOINT_PERIOD": _POSITIVE,
    "SOLVER.IMS_PER_BATCH": _POSITIVE,
    "SOLVER.REFERENCE_WORLD_SIZE": _NOT_NEGATIVE,
    "SOLVER.BIAS_LR_FACTOR": _NOT_NEGATIVE,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _ABOVE_0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": _ABOVE_0,
    "TEST.EVAL_PERIOD": _NOT_NEGATIVE,
    "TEST.DETECTIONS_PER_IMAGE": _POSITIVE,
    "TEST.AUG.ENABLED": Rule(
        lambda value: not value, "False: these commands do not augment images in evaluation"
    ),
    "TEST.PRECISE_BN.NUM_ITER": _POSITIVE,
    "SUPERNET.PATH_SAMPLING": one_of("uniform", "flops_bins", "fair", "sandwich"),
    "SUPERNET.SANDWICH_PATHS": _NOT_NEGATIVE,
    "SUPERNET.DISTILL_WEIGHT": _NOT_NEGATIVE,
    "SUPERNET.FLOPS_BINS": Rule(
        lambda value: len(value) > 1 and _rising(value), "two or more rising multiply-adds"
    ),
    "SUPERNET.CHECK.PATHS": _NOT_NEGATIVE,
    "SUPERNET.CHECK.IMAGES": _POSITIVE,
    "SUPERNET.CHECK.CALIBRATION_IMAGES": _POSITIVE,
    "SUPERNET.CHECK.PERIOD": at_least(-1),
    "SUPERNET.CHECK.STANDALONE": at_least(-1),
    "SEARCH.STRATEGY": one_of("evolution", "random", "regularized", "predictor"),
    "SEARCH.OBJECTIVES": Rule(
        _objectives, f"['fitness'], or with it one or two costs of {', '.join(map(repr, COSTS))}"
    ),
    "SEARCH.BUDGETS": Rule(
        lambda value: all(_is_number(item) and item > 0 for item in value), "numbers above 0"
    ),
    "SEARCH.PRESET": one_of("paper", "release"),
    "SEARCH.ATTEMPTS": _POSITIVE,
    "SEARCH.MAX_FAILURES": _NOT_NEGATIVE,
    "SEARCH.POPULATION": _NOT_NEGATIVE,
    "SEARCH.GENERATIONS": _NOT_NEGATIVE,
    "SEARCH.PARENTS": _NOT_NEGATIVE,
    "SEARCH.MUTATION": at_least(-1),
    "SEARCH.CROSSOVER": at_least(-1),
    "SEARCH.RANDOM": at_least(-1),
    "SEARCH.MUTATION_PROB": unset_or(-1.0, _SHARE),
    "SEARCH.NUM_SAMPLES": _NOT_NEGATIVE,
    "SEARCH.REGULARIZED.ALIVE": _NOT_NEGATIVE,
    "SEARCH.REGULARIZED.SAMPLE": _NOT_NEGATIVE,
    "SEARCH.PREDICTOR.POOL": _POSITIVE,
    "SEARCH.PREDICTOR.RANDOM_SHARE": _BELOW_1,
    "SEARCH.RESOLUTIONS": Rule(_rising, "rising positive integers, or []"),
    "SEARCH.MAX_MACS": _NOT_NEGATIVE,
    "SEARCH.MIN_MACS": _NOT_NEGATIVE,
    "SEARCH.MAX_PARAMS": _NOT_NEGATIVE,
    "SEARCH.MAX_LATENCY_MS": _NOT_NEGATIVE,
    "SEARCH.MAX_MACS_INPUT": _IMAGE_SIZE,
    "SEARCH.CHUNK": _POSITIVE,
    "SEARCH.SCORING_WORKERS": _NOT_NEGATIVE,
    "SEARCH.CUDA_GRAPHS": one_of("auto", "off"),
    "SEARCH.IMAGE_CACHE_GIB": _NOT_NEGATIVE,
    "SEARCH.CALIBRATION.IMAGES": _POSITIVE,
    "SEARCH.CALIBRATION.BATCH_SIZE": _POSITIVE,
    "SEARCH.CALIBRATION.SEED": _NOT_NEGATIVE,
    "SEARCH.CALIBRATION.TOGETHER": _NOT_NEGATIVE,
    "HIT_SEARCH.ARCH_TRAIN": _NAMES,
    "HIT_SEARCH.ARCH_START_ITER": at_least(-1),
    "HIT_SEARCH.ARCH_LR": _ABOVE_0,
    "HIT_SEARCH.ARCH_BETAS": numbers(lambda v: 0 <= v < 1, "numbers from 0 to below 1", 2),
    "HIT_SEARCH.COST_WEIGHT": _NOT_NEGATIVE,
    "HIT_SEARCH.COST_UNIT": _ABOVE_0,
    "HIT_SEARCH.COST_INPUT": _IMAGE_SIZE,
    "HIT_SEARCH.COST_PROPOSALS": _POSITIVE,
    "HIT_SEARCH.COST_REGION": _NOT_NEGATIVE,
    "HIT_SEARCH.SCREENING.GROUP_SPARSITY": _NOT_NEGATIVE,
    "HIT_SEARCH.SCREENING.SPARSITY_TERM": one_of("sparse", "min"),
    "HIT_SEARCH.SCREENING.KEEP": _POSITIVE,
    "HIT_SEARCH.SCREENING.REMOVE_START": _NOT_NEGATIVE,
    "HIT_SEARCH.SCREENING.REMOVE_END": _NOT_NEGATIVE,
    "HIT_SEARCH.SCREENING.RECORD_PERIOD": _POSITIVE,
    "OUTPUT_DIR": Rule(lambda value: value.strip() != "" and "\0" not in value, "a folder"),
}


def check_values(cfg: CfgNode, places: Mapping[str, str], where: str) -> None:
    """Compares every value with :data:`RULES`; all numbers must be finite.

    Args:
        places: dotted key -> where it was set; ``where`` for the others.

    Raises:
        ConfigError: naming place, key and value, and what was expected.
    """
    for key, value in _values(cfg):
        rule, place = RULES.get(key), places.get(key, where)
        if not _is_finite(value):
            raise ConfigError(f"{place}: {key} is {value!r}: expected finite numbers")
        if rule is not None and not rule.allows(value):
            raise ConfigError(f"{place}: {key} is {value!r}: expected {rule.expected}")
    count = len(cfg.MODEL.PIXEL_MEAN)
    if count != len(cfg.MODEL.PIXEL_STD) or count != (1 if cfg.INPUT.FORMAT == "L" else 3):
        place = places.get("MODEL.PIXEL_MEAN", places.get("MODEL.PIXEL_STD", where))
        raise ConfigError(
            f"{place}: MODEL.PIXEL_MEAN has {count} and MODEL.PIXEL_STD {len(cfg.MODEL.PIXEL_STD)} "
            f"numbers: expected one for each channel of INPUT.FORMAT {cfg.INPUT.FORMAT}"
        )


def _values(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _values(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_finite(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
