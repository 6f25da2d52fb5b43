"""Pipelines of both methods that run in seconds: ``python tests/campaigns/tiny.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from detnas_d2.config.tools import base_config
from detnas_d2.engine.architectures import decode_backbones
from detnas_d2.search_space import SPACES, build_cost_table
from tests.engine.hit_runs import DEMO, OPS
from tests.engine.tiny_runs import Configs, write_config

TINY = SPACES["detnas_tiny"]
ONE_STAGE = {
    "META_ARCHITECTURE": "HitRetinaNet",
    "BACKBONE": {"NAME": "build_hit_retinanet_pafpn_backbone"},
    "FPN": {"IN_FEATURES": ["stage2", "stage3", "stage4"]},
    "RETINANET": {
        "NORM": "GN",
        "NUM_CLASSES": 10,
        "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
        "SCORE_THRESH_TEST": 0.0,
    },
}


def detnas_pipeline(
    root: Path,
    *,
    scoring_workers: int = 2,
    networks: int = 2,
    generations: int = 3,
    kind: str = "faster",
    precise_bn: bool = False,
) -> Path:
    """Writes data, configs and a pipeline of DetNAS below ``root``; returns the pipeline's file.

    A supernet (8 iterations, a checkpoint every 2), a search (generations of 4), the searched
    network and a random one (6 iterations each); OUTPUT_DIR is root/runs.

    Args:
        networks: how many of the last two there are.
        kind: of detector, see :class:`Configs`.
        precise_bn: the networks are evaluated every 2 iterations, with ``TEST.PRECISE_BN``.
    """
    root.mkdir(parents=True, exist_ok=True)
    configs = Configs(root)
    train = configs(kind, "SOLVER.MAX_ITER", 8, "SOLVER.STEPS", (5,))
    write_config(train, root / "train.yaml")
    retrain = configs(kind)
    decode_backbones(retrain)
    retrain.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0  # an AP above zero
    retrain.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    if precise_bn:
        retrain.TEST.EVAL_PERIOD = 2
        retrain.TEST.PRECISE_BN.ENABLED, retrain.TEST.PRECISE_BN.NUM_ITER = True, 3
    write_config(retrain, root / "retrain.yaml")
    options = ("SEARCH.CHUNK", 2, "SEARCH.SCORING_WORKERS", scoring_workers)
    search = configs.search(*options, "SEARCH.GENERATIONS", generations, kind=kind)
    search.SEARCH.MAX_MACS = median_macs()
    search.SEARCH.RETRAIN_CONFIG = "retrain.yaml"
    search.MODEL.WEIGHTS = ""
    write_config(search, root / "search.yaml")
    drawn = {"KIND": "train", "CONFIG": "retrain.yaml"}
    stages: list[dict[str, Any]] = [
        {"NAME": "supernet", "KIND": "train", "CONFIG": "train.yaml"},
        {"NAME": "search", "KIND": "search", "CONFIG": "search.yaml", "WEIGHTS": "supernet"},
        {"NAME": "searched", **drawn, "WEIGHTS": "supernet", "PATH": "search"},
        {"NAME": "random_1", **drawn, "PATH": "random 1", "ROW": "random"},
    ][: 2 + networks]
    return _write_pipeline(root, stages, ["searched", "random"][:networks])


def median_macs() -> int:
    """The cost of the middle operation in every block, which a part of the paths keeps."""
    table = build_cost_table(TINY, (64, 64))
    return sorted(table.cost(TINY.uniform_path(op)).macs for op in TINY.ops)[2]


def hit_pipeline(root: Path, *, one_stage: bool = False) -> Path:
    """Writes configs and a pipeline of Hit-Detector below ``root``; returns the pipeline's file.

    Args:
        one_stage: searches and trains a HitRetinaNet; only the backbone is screened.

    Two screenings, the search (8 iterations each), the searched detector and a random one of the
    same cost (6 iterations each), on scenes of digits; OUTPUT_DIR is root/runs.
    """
    root.mkdir(parents=True, exist_ok=True)
    screening = {"KEEP": 2, "REMOVE_START": 4, "REMOVE_END": 6, "RECORD_PERIOD": 2}
    for part in ("backbone", "head"):
        searched = {"HIT": {"SEARCHABLE_PARTS": [part]}}
        _write_hit_config(root, f"screen_{part}", {"SCREENING": screening}, searched, base="screen")
    model = ONE_STAGE if one_stage else {}
    _write_hit_config(root, "search", {}, model)
    _write_hit_config(root, "train", {"ARCH_START_ITER": -1}, model, iterations=6)
    screens = ["screen_backbone"] if one_stage else ["screen_backbone", "screen_head"]
    train = {"KIND": "train", "CONFIG": "train.yaml", "MERGE": ["search"]}
    stages = [
        *({"NAME": name, "KIND": "screen", "CONFIG": f"{name}.yaml"} for name in screens),
        {"NAME": "search", "KIND": "gradient", "CONFIG": "search.yaml", "MERGE": screens},
        {"NAME": "searched", **train, "WEIGHTS": "search"},
        {"NAME": "random_1", **train, "RANDOM": 1, "ROW": "random"},
    ]
    return _write_pipeline(root, stages, ["searched", "random"])


def _write_hit_config(
    root: Path,
    name: str,
    search_keys: dict[str, Any],
    model: dict[str, Any] | None = None,
    iterations: int = 8,
    base: str = "",
) -> None:
    model = model or {}
    ops = dict.fromkeys(("BACKBONE", "NECK", "HEAD"), OPS)
    data = {
        "_BASE_": str(DEMO / f"{base or name}.yaml"),
        "MODEL": {
            **model,
            "HIT": {**model.get("HIT", {}), "NETWORK": "hit_tiny_half", "OPS": ops},
        },
        "DATASETS": {
            "DIGITS": {"SCENE_SIZE": 64, "NUM_TRAIN": 12, "NUM_TEST": 4},
            "CACHE_DIR": str(root / "cache"),
        },
        "INPUT": {
            "MIN_SIZE_TRAIN": [64],
            "MAX_SIZE_TRAIN": 64,
            "MIN_SIZE_TEST": 64,
            "MAX_SIZE_TEST": 64,
        },
        "SOLVER": {"IMS_PER_BATCH": 2, "CHECKPOINT_PERIOD": 2, "MAX_ITER": iterations},
        "HIT_SEARCH": {"ARCH_START_ITER": 2, **search_keys},
        "VERSION": base_config().VERSION,
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(data))


def _write_pipeline(root: Path, stages: list[dict[str, Any]], table: list[str]) -> Path:
    file = root / "pipeline.yaml"
    data = {"OUTPUT_DIR": str(root / "runs"), "STAGES": stages, "TABLE": table}
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(detnas_pipeline(place / "detnas"), hit_pipeline(place / "hit"), sep="\n")
