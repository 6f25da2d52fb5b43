"""Further cases: siblings of those in ``malformed_values`` and ``malformed_files``."""

from __future__ import annotations

from tests.campaigns.malformed_case import MARK, H, Q, R, S, cfgtext, edit, pipe

_BASE = "_BASE_: train_ok.yaml\nVERSION: 2\n"

for key, value in [
    ("SOLVER.WARMUP_FACTOR", -1.0),
    ("SOLVER.WARMUP_METHOD", "cubic"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0),
    ("SOLVER.BASE_LR", "float('nan')"),
    ("TEST.AUG.ENABLED", True),
    ("MODEL.PIXEL_MEAN", [0.0, 0.0, "x"]),
    ("INPUT.CLASSIFICATION.MIN_SCALE", 0.0),
    ("SUPERNET.PATH_SAMPLING", "spos"),
    ("SUPERNET.PATH_SAMPLING", "sandwich"),
    ("SUPERNET.SANDWICH_PATHS", -1),
    ("SUPERNET.DISTILL_WEIGHT", -0.5),
    ("DATASETS.SEARCH_SPLIT.SEED", "x"),
    ("MODEL.DETNAS.NORM", "XN"),
    ("MODEL.DETNAS.INIT", "zeros"),
    ("MODEL.DEVICE", "meta"),
    ("DATASETS.TRAIN", "(5,)"),
]:
    S(key, value)
for key, value in [
    ("SEARCH.CHUNK", 2.5),
    ("SEARCH.MAX_MACS_INPUT", "[64, 0]"),
    ("SEARCH.CALIBRATION.IMAGES", 9),
    ("SEARCH.POPULATION", 1025),
    ("SEARCH.MUTATION_PROB", float("nan")),
]:
    Q(key, value)
for key, value in [
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 2.0),
    ("MODEL.MASK_ON", "maybe"),
    ("MODEL.DETNAS.NORM_MOMENTUM", 0.0),
]:
    R(key, value)
for key, value in [("HIT_SEARCH.COST_WEIGHT", float("inf")), ("MODEL.HIT.STRATEGY", "random")]:
    H(key, value)
edit("FOLDER ..", "R", {"FOLDER": ".."}, "FOLDER")
edit("FOLDER a/../../..", "R", {"FOLDER": "a/../../../x"}, "FOLDER")
edit("NAME ..", "R", {"NAME": ".."}, "NAME")
edit("NAME with a line end", "R", {"NAME": "a\nb"}, "NAME")
edit("REPEAT 0", "R", {"REPEAT": 0}, "REPEAT")
edit("unknown key", "R", {"WEIGHT": "supernet"}, "WEIGHT")
cfgtext(
    "!!python/object/new", f"{_BASE}SEED: !!python/object/new:os.system ['touch {MARK}']\n", "SEED"
)
cfgtext("_BASE_ list with a cycle", "_BASE_: [train_ok.yaml, other.yaml]\nVERSION: 2\n", "_BASE_")
cfgtext("_BASE_ detectron2://", "_BASE_: detectron2://x.yaml\nVERSION: 2\n", "local")
cfgtext("duplicate key in a node", f"{_BASE}SOLVER: {{MAX_ITER: 2, MAX_ITER: 3}}\n", "MAX_ITER")
cfgtext(
    "merge key of an alias", f"{_BASE}SOLVER: &s {{MAX_ITER: 2}}\nTEST:\n  <<: *s\n", "MAX_ITER"
)
pipe("--num-machines 0", None, "num-machines", cli=("--num-machines", "0"))
pipe("--machine-rank -1", None, "machine-rank", cli=("--machine-rank", "-1"))
pipe("duplicate STAGES", "STAGES: []\nSTAGES: []\n", "STAGES")
pipe(
    "OUTPUT_DIR empty",
    "OUTPUT_DIR: ''\nSTAGES:\n  - {NAME: a, KIND: train, CONFIG: train.yaml}\n",
    "OUTPUT_DIR",
)
