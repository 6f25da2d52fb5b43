"""Every Hit-Detector config builds; parameters of baselines and ablations."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.tools import load_config

CONFIGS = Path(__file__).parents[3] / "configs" / "HitDetector"
FILES = sorted(
    str(f.relative_to(CONFIGS))
    for f in CONFIGS.rglob("*.yaml")
    if "STAGES" not in yaml.safe_load(f.read_text())
)
# What a pipeline completes with operations or a genotype.
INCOMPLETE = {
    "demo/train.yaml",
    "demo/pretrain.yaml",
    "demo/search.yaml",
    "bccd/train.yaml",
    "search/pretrain_imagenet.yaml",
    "search/search_coco.yaml",
}
# The same structure as another one with other numbers: reading them is enough.
REPEATED = ("influence_backbone", "influence_neck", "influence_head", "mu0", "search/screen_")
BUILT = ("ablations/influence_neck_conv_k5_d3_coco.yaml", "search/screen_head_coco.yaml")


def complete(name):
    repeated = any(word in name for word in REPEATED) and name not in BUILT
    return not (repeated or Path(name).name.startswith("Base") or name in INCOMPLETE)


@cache
def costs(name):
    return analyze(load_config(str(CONFIGS / name)), input_size=(128, 128), proposals=10)


@pytest.mark.parametrize("name", FILES)
def test_every_config_builds(name):
    if complete(name):
        assert costs(name)["backbone"].params > 0 and costs(name)["head"].params > 0
    else:
        load_config(str(CONFIGS / name))


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        # The paper's text: 11.649M and 2.263M.
        ("hitdetector_paper_coco_1x.yaml", "backbone", 11_649_000),
        ("hitdetector_paper_coco_1x.yaml", "neck", 2_263_000),
        # Table 1: R50 23.508M, FPN 3.344M, two fully connected layers 14.311M.
        ("baselines/faster_rcnn_r50_fpn_coco_1x.yaml", "neck", 3_344_000),
        ("baselines/faster_rcnn_r50_fpn_coco_1x.yaml", "head", 14_311_000 - 4 * 1025),
        # NAS-FPN on ResNet-50 and on DetNASNet: 30.448M and 29.673M.
        ("baselines/faster_rcnn_r50_nasfpn_coco_1x.yaml", "neck", 30_448_000),
        ("baselines/faster_rcnn_detnasnet_nasfpn_coco_1x.yaml", "neck", 29_673_000),
        ("baselines/faster_rcnn_detnasnet_nasfpn_coco_1x.yaml", "backbone", 9_401_328),
        # MobileNetV2 is 3,504,872 with a last convolution of 412,160 and a classifier of
        # 1,281,000; the stem here has a bias of 32.
        ("baselines/faster_rcnn_mobilenetv2_fpn_coco_1x.yaml", "backbone", 1_811_744),
        ("ablations/backbone_only_coco_1x.yaml", "backbone", 13_881_848),
        ("ablations/head_only_coco_1x.yaml", "head", 9_930_129),
    ],
)
def test_parameters(name, part, expected):
    tolerance = 1000 if expected % 1000 == 0 or "r50" in name else 0
    assert abs(costs(name)[part].params - expected) <= tolerance
