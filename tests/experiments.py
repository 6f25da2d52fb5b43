"""Every config of configs/: its files, the stages of its pipelines, and the variants in comments.

A config is named by its file below configs/, e.g. ``DetNAS/fpn_coco/retrain.yaml``; by pipeline and
stage, ``DetNAS/fpn_coco/pipeline.yaml:searched``; or as one of :data:`VARIANTS`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from detnas_d2.config.tools import load_config
from detnas_d2.pipeline.definition import Pipeline, Stage, read_pipeline

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml"))


@cache
def content(name: str) -> dict[str, Any]:
    """A file itself, without its bases."""
    return yaml.safe_load((CONFIGS / name).read_text()) or {}


PIPELINES = [name for name in FILES if "STAGES" in content(name)]
SEVERAL = [name for name in FILES if "PIPELINES" in content(name)]
MODELS = [name for name in FILES if name not in (*PIPELINES, *SEVERAL)]

# Name -> file and overrides: what comments in the files offer and no pipeline runs.
VARIANTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "DetNAS/imagenet/supernet.yaml, released sampling": (
        "DetNAS/imagenet/supernet.yaml",
        ("SUPERNET.PATH_SAMPLING", "flops_bins"),
    ),
    "DetNAS/released/detnasnet_3.8G_fpn_coco": (
        "DetNAS/released/detnasnet_1.3G_fpn_coco.yaml",
        ("MODEL.DETNAS.SPACE", "detnas_3.8G"),
    ),
    "HitDetector/baselines/faster_rcnn_r50.yaml, PAFPN": (
        "HitDetector/baselines/faster_rcnn_r50.yaml",
        (
            *("MODEL.BACKBONE.NAME", "build_hit_pafpn_backbone"),
            *("MODEL.HIT.BOTTOM_UP", "build_resnet_backbone"),
            "MODEL.HIT.GENOTYPE.NECK",
            "conv_k1 conv_k1 conv_k1 conv_k1 / conv_k3 conv_k3 conv_k3 conv_k3",
        ),
    ),
    **{
        f"HitDetector/search/screen.yaml, mu {mu}": (
            "HitDetector/search/screen.yaml",
            ("HIT_SEARCH.SCREENING.GROUP_SPARSITY", mu),
        )
        for mu in (0.01, 0.0)
    },
}


@cache
def pipeline(name: str) -> Pipeline:
    return read_pipeline(str(CONFIGS / name))


def _overrides(stage: Stage) -> tuple[str, ...]:
    """Of a stage, with its path if that stands in the pipeline's file."""
    return (*stage.opts, *(("MODEL.DETNAS.PATH", stage.path) if "/" in stage.path else ()))


def _stages() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Name -> file and overrides of stages, one of those that share both."""
    found: dict[tuple[str, tuple[Any, ...]], str] = {}
    for name in PIPELINES:
        for stage in pipeline(name).stages:
            file = (CONFIGS / name).parent / stage.config
            key = str(file.resolve().relative_to(CONFIGS)), _overrides(stage)
            if key[1]:
                found.setdefault(key, f"{name}:{stage.name}")
    return {name: key for key, name in found.items()}


EXPERIMENTS = {**{name: (name, ()) for name in MODELS}, **_stages(), **VARIANTS}
"""Name -> file and overrides of every config that a command or a stage begins with."""


@cache
def _loaded(file: str, opts: tuple[Any, ...]) -> CfgNode:
    cfg = load_config(str(CONFIGS / file), opts)
    cfg.freeze()
    return cfg


def frozen(name: str) -> CfgNode:
    """The config of one of :data:`EXPERIMENTS` or of any stage, without what stages before find."""
    if name in EXPERIMENTS:
        return _loaded(*EXPERIMENTS[name])
    file, _, stage_name = name.partition(":")
    stage = pipeline(file).stage(stage_name)
    config = ((CONFIGS / file).parent / stage.config).resolve().relative_to(CONFIGS)
    return _loaded(str(config), _overrides(stage))


def load(name: str) -> CfgNode:
    """:func:`frozen`, to be altered."""
    cfg = frozen(name).clone()
    cfg.defrost()
    return cfg


def folder_of(name: str) -> Path:
    """Folder of a config's file."""
    file = EXPERIMENTS[name][0]
    return (CONFIGS / file).parent
