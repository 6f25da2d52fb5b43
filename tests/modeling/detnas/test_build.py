"""What the config keys of backbone, neck and box head do to the model."""

from __future__ import annotations

import random

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detnas_d2.engine.architectures import decode_backbones
from detnas_d2.layers import SyncBatchNorm
from detnas_d2.modeling import DecodedBackbone, Supernet, activate
from detnas_d2.search_space import SPACES
from tests.helpers import detector_config

PATH = SPACES["detnas_tiny"].random_path(random.Random(0))


def searched(kind: str = "faster") -> CfgNode:
    cfg = detector_config(kind)
    decode_backbones(cfg)
    cfg.MODEL.DETNAS.PATH = str(PATH)
    return cfg


@pytest.mark.parametrize(
    ("name", "kind", "features"),
    [
        ("build_detnas_supernet_backbone", Supernet, "stage1 stage4"),
        ("build_detnas_backbone", DecodedBackbone, "stage1 stage4"),
        ("build_detnas_supernet_fpn_backbone", Supernet, "p2 p3 p4 p5 p6"),
        ("build_detnas_fpn_backbone", DecodedBackbone, "p2 p3 p4 p5 p6"),
        ("build_detnas_supernet_retinanet_fpn_backbone", Supernet, "p3 p4 p5 p6 p7"),
        ("build_detnas_retinanet_fpn_backbone", DecodedBackbone, "p3 p4 p5 p6 p7"),
    ],
)
def test_registered_backbones(name: str, kind: type, features: str) -> None:
    cfg = detector_config("retinanet" if "retinanet" in name else "faster")
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.DETNAS.PATH = str(PATH) if kind is DecodedBackbone else ""
    cfg.MODEL.DETNAS.OUT_FEATURES = ["stage1", "stage4"]
    model = build_backbone(cfg)
    bottom_up = getattr(model, "bottom_up", model)
    assert isinstance(bottom_up, kind)
    assert " ".join(model.output_shape()) == features
    image = torch.rand(1, 3, 64, 96)
    if kind is Supernet:
        with activate(model, PATH):
            outputs = model(image)
    else:
        assert bottom_up.path == PATH
        outputs = model(image)
    for feature, shape in model.output_shape().items():
        size = (-(-64 // shape.stride), -(-96 // shape.stride))
        assert outputs[feature].shape == (1, shape.channels, *size)


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("keep", [False, True])
def test_biases_before_norms(keep: bool) -> None:
    cfg = searched()
    cfg.MODEL.FPN.NORM = "BN"
    cfg.MODEL.DETNAS.CONV_BIAS_BEFORE_NORM = keep
    model = build_model(cfg)
    neck = [c for n, m in model.backbone.named_children() if n != "bottom_up" for c in m.modules()]
    convs = [c for c in neck if isinstance(c, nn.Conv2d)]
    convs += convolutions(model.roi_heads.box_head)
    assert len(convs) == 9
    for conv in convs:
        assert (conv.bias is not None) == keep
        assert not keep or (conv.bias == 0).all() and conv.bias.requires_grad
    # The backbone's convolutions are what they are: a bias in the stem alone.
    biased = [c for c in convolutions(model.backbone.bottom_up) if c.bias is not None]
    assert biased == [model.backbone.bottom_up.stem.conv]


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("BN", nn.BatchNorm2d), ("SyncBN", SyncBatchNorm), ("FrozenBN", FrozenBatchNorm2d)],
)
def test_norms_and_their_momentum_reach_every_part(norm: str, kind: type) -> None:
    cfg = searched()
    cfg.MODEL.DETNAS.NORM = cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = norm
    cfg.MODEL.DETNAS.NORM_MOMENTUM = 0.03
    model = build_model(cfg)
    parts = {
        "backbone": model.backbone.bottom_up.blocks[0].main[0].norm,
        "lateral": model.backbone.fpn_lateral3.norm,
        "output": model.backbone.fpn_output2.norm,
        "head": model.roi_heads.box_head.conv1.norm,
    }
    for part, module in parts.items():
        assert type(module) is kind, part
    momenta = {m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    assert momenta == (set() if norm == "FrozenBN" else {0.03})


def test_without_norms_neck_and_head_have_none() -> None:
    cfg = searched()
    cfg.MODEL.ROI_BOX_HEAD.NORM = ""
    model = build_model(cfg)
    norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    assert norms and all("bottom_up" in name for name in norms)
    assert all(conv.bias is not None for conv in convolutions(model.roi_heads.box_head))


def test_box_head_starts_as_released() -> None:
    torch.manual_seed(0)
    cfg = searched()
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 64
    head = build_model(cfg).roi_heads.box_head
    assert head.conv1.weight.std().item() == pytest.approx(0.01, rel=0.05)
    bound = (3 / head.fc1.in_features) ** 0.5  # kaiming_uniform, a = 1
    assert head.fc1.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_p6_of_retinanet_is_made_from_p5() -> None:
    model = build_backbone(searched("retinanet")).eval()
    assert model.top_block.in_feature == "p5"
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 128, 128))
        p6 = model.top_block.p6(outputs["p5"])
        torch.testing.assert_close(outputs["p6"], p6)
        torch.testing.assert_close(outputs["p7"], model.top_block.p7(p6.relu()))
