"""Weights of torchvision's ResNets in Detectron2's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torchvision.models import resnet18, resnet50

from detnas_d2.config.tools import base_config
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.checks.run import weights_warnings
from detnas_d2.modeling import WeightsError
from detnas_d2.modeling.baselines.resnet_names import DEVIATION, MEAN
from tests.helpers import resnet_features


def config(depth: int) -> CfgNode:
    cfg = base_config()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = depth, False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    return cfg


def model(depth: int) -> torch.nn.Module:
    found = torch.nn.Module()
    found.backbone = build_backbone(config(depth)).eval()
    return found


def test_features_are_theirs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, ours = resnet18(weights=None).eval(), model(18)
    file = str(tmp_path / "resnet18.pth")
    torch.save({f"module.{key}": value for key, value in theirs.state_dict().items()}, file)
    DetNASCheckpointer(ours).load(file)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = ours.backbone.bottom_up(image)["res5"]
        expected = resnet_features(theirs, image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(WeightsError, match="fit the model in part only"):
        DetNASCheckpointer(model(50)).load(file)


def test_settings_that_do_not_go_with_them() -> None:
    with torch.device("meta"):
        state = resnet50(weights=None).state_dict()
    cfg = config(50)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True  # and Detectron2's BGR, with Caffe's deviations
    (text,) = weights_warnings(cfg, state)
    for told in (
        "INPUT.FORMAT BGR, expected RGB",
        "MODEL.PIXEL_MEAN [103.53, 116.28, 123.675], expected [123.675",
        "MODEL.PIXEL_STD [1.0, 1.0, 1.0], expected [58.395",
        "STRIDE_IN_1X1 True, expected False",
    ):
        assert told in text
    assert not weights_warnings(cfg, {f"backbone.{key}": value for key, value in state.items()})
    cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "RGB", False
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(MEAN), list(DEVIATION)
    assert not weights_warnings(cfg, state)
