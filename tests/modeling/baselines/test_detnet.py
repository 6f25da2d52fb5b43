"""DetNet-59 and its pyramid."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import nn

from detnas_d2.modeling import adapt_state_dict
from tests.experiments import load
from tests.helpers import classification_batch, training_batch

DETECTOR = "DetNAS/baselines/pipeline.yaml:detnet59"
CLASSIFIER = "DetNAS/baselines/detnet59_imagenet.yaml"


def config(name: str, device: str) -> CfgNode:
    cfg = load(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    return cfg


def built(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(config(name, "meta"))


def bottleneck(cin: int, width: int, cout: int, *, projected: bool) -> int:
    """Parameters of 1x1, 3x3, 1x1 convolutions without bias, each with a BatchNorm's two."""
    convs = cin * width + 9 * width * width + width * cout + 2 * (2 * width + cout)
    return convs + projected * (cin * cout + 2 * cout)


def test_parameters_by_hand() -> None:
    model = built(CLASSIFIER).backbone
    expected = {
        "stem": 3 * 49 * 64 + 2 * 64,
        "res2": bottleneck(64, 64, 256, projected=True)
        + 2 * bottleneck(256, 64, 256, projected=False),
        "res3": bottleneck(256, 128, 512, projected=True)
        + 3 * bottleneck(512, 128, 512, projected=False),
        "res4": bottleneck(512, 256, 1024, projected=True)
        + 5 * bottleneck(1024, 256, 1024, projected=False),
        "res5": bottleneck(1024, 256, 1024, projected=True)
        + 2 * bottleneck(1024, 256, 1024, projected=False),
    }
    expected["res6"] = expected["res5"]
    found = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    assert found == expected
    assert sum(found.values()) == 17_347_648
    # 59 weighted layers on the longest way, the linear one counted.
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert len([n for n in convs if "shortcut" not in n]) + 1 == 59


def test_upper_stages_keep_the_resolution_and_are_dilated() -> None:
    cfg = config(DETECTOR, "meta")
    with torch.device("meta"):
        backbone = build_backbone(cfg).eval()
        features = backbone.bottom_up(torch.empty(1, 3, 96, 64))
        levels = backbone(torch.empty(1, 3, 96, 64))
    assert {name: tuple(f.shape[1:]) for name, f in features.items()} == {
        "res2": (256, 24, 16),
        "res3": (512, 12, 8),
        "res4": (1024, 6, 4),
        "res5": (1024, 6, 4),
        "res6": (1024, 6, 4),
    }
    assert [tuple(levels[f"p{i}"].shape[2:]) for i in range(2, 7)] == [
        (24, 16),
        (12, 8),
        *[(6, 4)] * 3,
    ]
    strides = [shape.stride for shape in backbone.output_shape().values()]
    assert strides == [4, 8, 16, 16, 16] and backbone.size_divisibility == 16
    for stage in (backbone.bottom_up.res5, backbone.bottom_up.res6):
        assert [block.conv2.dilation for block in stage] == [(2, 2)] * 3
        assert [block.shortcut is not None for block in stage] == [True, False, False]


def test_levels_of_one_stride_are_added_as_they_are() -> None:
    torch.manual_seed(0)
    cfg = config(DETECTOR, "cpu")
    cfg.MODEL.FPN.NORM = ""
    neck = build_backbone(cfg).eval().pyramid
    features = {f"res{i}": torch.randn(1, c, 3, 2) for i, c in ((4, 1024), (5, 1024), (6, 1024))}
    laterals = [neck.inner_blocks[i](features[f"res{i + 2}"]) for i in (2, 3, 4)]
    expected = neck.layer_blocks[2](sum(laterals))
    fine = {"res2": torch.zeros(1, 256, 12, 8), "res3": torch.zeros(1, 512, 6, 4)}
    torch.testing.assert_close(neck({**fine, **features})["res4"], expected)


def test_boxes_are_pooled_at_the_true_stride() -> None:
    pooler = built(DETECTOR).roi_heads.box_pooler
    assert [p.spatial_scale for p in pooler.level_poolers] == [1 / 4, 1 / 8, 1 / 16, 1 / 16]
    # A plane that holds its own x coordinate: a large box, of the last level, reads its centre.
    plane = torch.arange(64).float().expand(1, 1, 64, 64) * 16
    features = [torch.zeros(1, 1, 256, 256), torch.zeros(1, 1, 128, 128), plane * 0, plane]
    boxes = [Boxes(torch.tensor([[100.0, 100.0, 700.0, 700.0]]))]
    assert pooler(features, boxes).mean().item() == pytest.approx(400, abs=1)


def test_classifier_weights_load_into_the_detector() -> None:
    state = {k: v for k, v in built(CLASSIFIER).state_dict().items() if "linear" not in k}
    detector = built(DETECTOR)
    adapted = adapt_state_dict(state, detector)
    own = {k for k in detector.state_dict() if ".bottom_up." in k}
    assert own <= set(adapted)
    assert adapt_state_dict(adapted, detector) == adapted


def test_unknown_feature() -> None:
    cfg = config(DETECTOR, "meta")
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res7"]
    with pytest.raises(ValueError, match=r"no feature \['res7'\]: expected some of stem, res2"):
        build_backbone(cfg)


@pytest.mark.parametrize("name", [DETECTOR, CLASSIFIER])
def test_takes_a_training_step(name: str) -> None:
    torch.manual_seed(0)
    cfg = config(name, "cpu")
    cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = "BN"
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    model = build_model(cfg)
    if name == CLASSIFIER:
        batch = classification_batch(64, [0, 1])
    else:
        batch = training_batch(sizes=((64, 64),) * 2, classes=(0, 1))
    with EventStorage(0):
        losses = model(batch)
    sum(losses.values()).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert all(loss.isfinite() for loss in losses.values())
