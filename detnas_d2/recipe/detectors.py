"""The config keys of the detectors, as trees: what the demos and the configs for own data have."""

from __future__ import annotations

from typing import Any

from detnas_d2.recipe.choice import LARGE, SMALL, Recipe

Tree = dict[str, Any]

_LEVELS = ["p2", "p3", "p4", "p5", "p6"]
_STAGES = ["stage1", "stage2", "stage3", "stage4"]

# Of images as they are read: DetNAS's, and Hit-Detector's in the order of INPUT.FORMAT.
_RAW = {"PIXEL_MEAN": [0.0, 0.0, 0.0], "PIXEL_STD": [1.0, 1.0, 1.0]}
_BGR = {"PIXEL_MEAN": [103.53, 116.28, 123.675], "PIXEL_STD": [57.375, 57.12, 58.395]}

HIT_OPS = {
    SMALL: {
        "BACKBONE": ["skip", "ir_k3_e3_d1", "ir_k5_e3_d1", "sep_k3_d1", "conv_k3"],
        "NECK": ["skip", "sep_k3_d1", "sep_k3_d3", "ir_k3_e1_d1", "conv_k1"],
        "HEAD": ["skip", "ir_k3_e3_d1", "sep_k3_d1", "conv_k1", "conv_k3"],
    },
    LARGE: {
        "BACKBONE": [
            "ir_k3_e3_d1", "ir_k3_e3_d2", "ir_k3_e6_d1", "ir_k5_e3_d1", "ir_k5_e6_d1",
            "ir_k5_e6_d2", "ir_k7_e6", "skip",
        ],
        "NECK": [
            "conv_k1", "ir_k3_e6_d3", "ir_k5_e6_d1", "ir_k5_e6_d3", "sep_k3_d1", "sep_k3_d3",
            "sep_k5_d2", "sep_k5_d3",
        ],
        "HEAD": [
            "ir_k3_e3_d1", "ir_k3_e6_d1", "ir_k3_e6_d2", "ir_k5_e3_d1", "ir_k5_e6_d1", "ir_k7_e6",
        ],
    },
}  # fmt: skip
"""Sub-spaces of Hit-Detector's parts, as screening found them."""
HIT_BY_HAND = {
    "BACKBONE": " / ".join(["ir_k3_e3_d1 ir_k3_e3_d1"] * 4),
    "NECK": "conv_k1 conv_k1 conv_k1 conv_k1 / sep_k3_d1 sep_k3_d1 sep_k3_d1 sep_k3_d1",
    "HEAD": "ir_k3_e3_d1 ir_k3_e3_d1",
}
"""A genotype of the frame hit_tiny, made by hand."""


def model_of(recipe: Recipe, classes: int) -> Tree:
    """MODEL of a network that is trained."""
    model = _small(recipe, classes) if recipe.pattern == SMALL else _large(recipe, classes)
    model["ANCHOR_GENERATOR"] = {
        "SIZES": [[size] for size in recipe.anchors],
        "ASPECT_RATIOS": [list(recipe.ratios)],
    }
    if recipe.method == "detnas":
        model |= _RAW
        model["BACKBONE"] = {"NAME": "build_detnas_fpn_backbone"}
        model["DETNAS"] = _detnas(recipe)
        model["ROI_BOX_HEAD"]["NAME"] = "DetNASConvFCHead"
        return model
    model |= _BGR
    model["BACKBONE"] = {"NAME": "build_hit_pafpn_backbone", "FREEZE_AT": 0}
    model["FPN"] = {"IN_FEATURES": _STAGES}
    norm = {"NORM": "BN", "RECOMPUTE": False} if recipe.pattern == SMALL else {"NORM": "SyncBN"}
    model["HIT"] = {"NETWORK": recipe.space, **norm}
    head = model["ROI_BOX_HEAD"]
    pooling = {key: value for key, value in head.items() if key.startswith(("POOLER", "SMOOTH"))}
    model["ROI_BOX_HEAD"] = {"NAME": "HitBoxHead", **pooling}
    return model


def _detnas(recipe: Recipe) -> Tree:
    if recipe.pattern == SMALL:
        return {"SPACE": recipe.space}
    return {"SPACE": recipe.space, "NORM": "SyncBN", "NORM_MOMENTUM": 0.01}


def _small(recipe: Recipe, classes: int) -> Tree:
    """The demo's: a head that is off the answer "background" after a few hundred images."""
    return {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "WEIGHTS": "",
        "FPN": {"IN_FEATURES": _STAGES, "OUT_CHANNELS": 24, "NORM": "BN"},
        "RPN": {
            "HEAD_NAME": "DetNASRPNHead",
            "IN_FEATURES": _LEVELS,
            "PRE_NMS_TOPK_TRAIN": 4 * recipe.proposals,
            "PRE_NMS_TOPK_TEST": 2 * recipe.proposals,
            "POST_NMS_TOPK_TRAIN": 2 * recipe.proposals,
            "POST_NMS_TOPK_TEST": recipe.proposals,
            "BATCH_SIZE_PER_IMAGE": 64,
        },
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": _LEVELS[:3],
            "NUM_CLASSES": classes,
            "BATCH_SIZE_PER_IMAGE": 32,
            "POSITIVE_FRACTION": 0.5,
        },
        "ROI_BOX_HEAD": {
            "NUM_CONV": 1,
            "CONV_DIM": 48,
            "NUM_FC": 0,
            "NORM": "BN",
            "POOLER_RESOLUTION": 5,
            "POOLER_SAMPLING_RATIO": 1,
        },
    }


def _large(recipe: Recipe, classes: int) -> Tree:
    """DetNAS section 4.1 and the released code: FPN, 4conv1fc head, SyncBN in both."""
    return {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "WEIGHTS": "",
        "FPN": {"IN_FEATURES": _STAGES, "NORM": "SyncBN"},
        "RPN": {
            "IN_FEATURES": _LEVELS,
            "PRE_NMS_TOPK_TRAIN": 2000,
            "PRE_NMS_TOPK_TEST": recipe.proposals,
            "POST_NMS_TOPK_TRAIN": 1000,
            "POST_NMS_TOPK_TEST": recipe.proposals,
            "SMOOTH_L1_BETA": 0.1111111,
            "BOUNDARY_THRESH": 0,
        },
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": _LEVELS[:4],
            "NUM_CLASSES": classes,
        },
        "ROI_BOX_HEAD": {
            "NUM_CONV": 4,
            "NUM_FC": 1,
            "NORM": "SyncBN",
            "SMOOTH_L1_BETA": 1.0,
            "POOLER_RESOLUTION": 7,
            "POOLER_TYPE": "ROIAlign",
            "POOLER_SAMPLING_RATIO": 2,
        },
    }


def solver_of(recipe: Recipe, iterations: int, rate: float) -> Tree:
    """SOLVER of a training of so many iterations."""
    shared = {
        "IMS_PER_BATCH": recipe.batch,
        "BASE_LR": round(rate, 6),
        "MAX_ITER": iterations,
        "STEPS": [],
        "LR_SCHEDULER_NAME": "WarmupCosineLR",
        "CHECKPOINT_PERIOD": min(max(iterations // 10, 20), 1000),
    }
    clip = {"ENABLED": True}
    if recipe.pattern == SMALL:
        return shared | {
            "OPTIMIZER": "AdamW",
            "WEIGHT_DECAY": 0.01,
            "WEIGHT_DECAY_NORM": 0.0,
            "WARMUP_ITERS": min(40, iterations // 5),
            "CLIP_GRADIENTS": clip | {"CLIP_TYPE": "norm", "CLIP_VALUE": 1.0},
        }
    return shared | {
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0001,
        "WEIGHT_DECAY_BIAS": 0.0,
        "BIAS_LR_FACTOR": 2.0,
        "WARMUP_ITERS": min(400, iterations // 5),
        "CLIP_GRADIENTS": clip | {"CLIP_TYPE": "full_model", "CLIP_VALUE": 35.0},
    }


def input_of(recipe: Recipe) -> Tree:
    """INPUT: sizes of images; around the chosen one in training where there is a GPU."""
    sides = [recipe.side]
    if recipe.pattern == LARGE:
        sides = [round(recipe.side * share / 32) * 32 for share in (0.87, 0.93, 1.0, 1.07)]
    return {
        "FORMAT": "BGR",
        "MIN_SIZE_TRAIN": sides,
        "MAX_SIZE_TRAIN": round(recipe.longest * max(sides) / recipe.side),
        "MIN_SIZE_TEST": recipe.side,
        "MAX_SIZE_TEST": recipe.longest,
        "RANDOM_FLIP": "horizontal",
    }
