"""Counted costs: the released networks' published numbers, and fvcore's own count."""

from __future__ import annotations

import json
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from detnas_d2.analysis.complexity import PARTS, analyze, as_json
from detnas_d2.engine.architectures import decode_backbones
from detnas_d2.search_space import SPACES, Cost, build_cost_table
from tests.experiments import load
from tests.helpers import detector_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "DetNAS" / "released"

# Parameters: backbone, neck, proposal generator, head. The released head has 15,623,573: it
# predicts a box for the background class too, 4 outputs of 1,024 weights and a bias.
RELEASED_HEAD = 15_623_573 - 4 * 1025
RELEASED = {
    "detnasnet_300M_fpn_coco": (1_849_680, 2_668_544, 593_935, RELEASED_HEAD),
    "detnasnet_1.3G_fpn_coco": (8_415_216, 2_820_096, 593_935, RELEASED_HEAD),
    "detnasnet_3.8G_fpn_coco": (26_724_428, 3_183_616, 593_935, RELEASED_HEAD),
    "detnasnet_300M_retinanet_coco": (2_041_888, 3_237_888, 0, 6_463_220),
}


def config(kind: str = "faster") -> CfgNode:
    cfg = detector_config(kind)
    decode_backbones(cfg)
    cfg.MODEL.DETNAS.PATH = str(SPACES["detnas_tiny"].random_path(random.Random(0)))
    return cfg


def released(name: str) -> CfgNode:
    return load(f"DetNAS/released/{name}" + ("" if "3.8G" in name else ".yaml"))


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_of_the_released_networks(name: str) -> None:
    cfg = released(name)
    costs = analyze(cfg, input_size=(64, 64), proposals=1)
    assert tuple(costs[part].params for part in PARTS) == RELEASED[name]
    space = SPACES[cfg.MODEL.DETNAS.SPACE]
    body = build_cost_table(space, (64, 64)).cost(space.path(cfg.MODEL.DETNAS.PATH))
    assert costs["backbone"] == body


def test_multiply_adds_of_a_released_detector() -> None:
    costs = analyze(released("detnasnet_300M_fpn_coco"))
    assert costs["total"].macs == 232_245_428_608
    assert sum((costs[part] for part in PARTS), Cost()) == costs["total"]
    # 800 x 1200 is padded to 800 x 1216, and not more.
    assert analyze(released("detnasnet_300M_fpn_coco"), input_size=(800, 1216)) == costs


class Outputs(nn.Module):
    """What fvcore can trace: tensors in, a list of tensors out."""

    def __init__(self, run: object, module: nn.Module) -> None:
        super().__init__()
        self.run, self.module = run, module

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs = self.run(*inputs)
        if isinstance(outputs, dict):
            return list(outputs.values())
        return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


def fvcore_macs(run: object, module: nn.Module, *inputs: Tensor) -> int:
    analysis = FlopCountAnalysis(Outputs(run, module), inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = analysis.by_operator()
    return sum(int(counts[operator]) for operator in ("conv", "linear", "addmm"))


@pytest.mark.parametrize("kind", ["faster", "mask", "retinanet"])
def test_fvcore_counts_the_same(kind: str) -> None:
    cfg = config(kind)
    costs = analyze(cfg, input_size=(64, 90), proposals=7)
    model = build_model(cfg).eval()
    image = torch.rand(1, 3, 64, 96)
    backbone = fvcore_macs(model.backbone, model.backbone, image)
    body = fvcore_macs(model.backbone.bottom_up, model.backbone, image)
    assert costs["backbone"].macs == body
    assert costs["neck"].macs == backbone - body
    features = model.backbone(image)
    if kind == "retinanet":
        levels = [features[f] for f in model.head_in_features]
        heads = fvcore_macs(lambda *x: sum(model.head(list(x)), []), model.head, *levels)
        assert costs["proposal_generator"] == Cost()
    else:
        levels = list(features.values())
        rpn = model.proposal_generator.rpn_head
        proposals = fvcore_macs(lambda *x: sum(rpn(list(x)), []), rpn, *levels)
        assert costs["proposal_generator"].macs == proposals
        box = model.roi_heads
        heads = fvcore_macs(
            lambda x: box.box_predictor(box.box_head(x)), box, torch.rand(7, 16, 7, 7)
        )
        if kind == "mask":
            regions = torch.rand(7, 16, 14, 14)
            heads += fvcore_macs(box.mask_head.layers, box.mask_head, regions)
    assert costs["head"].macs == heads
    assert costs["total"].params == sum(p.numel() for p in model.parameters())


def test_mask_head_runs_on_detections() -> None:
    cfg = config("mask")
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    counts = [analyze(cfg, input_size=(64, 64), proposals=n)["head"].macs for n in (4, 5, 6, 7)]
    box = counts[3] - counts[2]
    assert counts[2] - counts[1] == box
    assert counts[1] - counts[0] > box


def test_cascade_counts_every_stage() -> None:
    cfg = config()
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    one = analyze(cfg, input_size=(64, 64), proposals=3)["head"]
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    assert analyze(cfg, input_size=(64, 64), proposals=3)["head"] == Cost(
        3 * one.params, 3 * one.macs
    )


def test_classifier() -> None:
    cfg = config()
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = "build_detnas_backbone"
    cfg.MODEL.DETNAS.LAST_CONV = True
    cfg.MODEL.DETNAS.OUT_FEATURES = ["last"]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 10
    space = SPACES["detnas_tiny"]
    body = build_cost_table(space, (64, 64)).cost(space.path(cfg.MODEL.DETNAS.PATH))
    costs = analyze(cfg, input_size=(64, 64))
    # The last convolution, with bias and norm, belongs to the backbone.
    weights = space.stage_channels[-1] * space.last_channels
    assert costs["backbone"] == body + Cost(weights + 3 * space.last_channels, weights * 4)
    assert costs["head"] == Cost(10 * space.last_channels + 10, 10 * space.last_channels)
    assert costs["neck"] == costs["proposal_generator"] == Cost()


def test_models_it_cannot_count() -> None:
    cfg = config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    with pytest.raises(ValueError, match="cannot analyze a SemanticSegmentor"):
        analyze(cfg)


def test_program_prints_json_or_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = str(ROOT / "projects" / "DetNAS" / "analyze_net.py")
    file = str(CONFIGS / "detnasnet_300M_fpn_coco.yaml")
    command = [program, "--config-file", file, "--input-size", "64", "96", "--proposals", "2"]
    expected = analyze(released("detnasnet_300M_fpn_coco"), input_size=(64, 96), proposals=2)
    run = subprocess.run(
        [sys.executable, *command, "--json", "--convention", "mmdet"],
        capture_output=True,
        text=True,
        check=True,
    )
    mmdet = analyze(
        released("detnasnet_300M_fpn_coco"),
        input_size=(64, 96),
        proposals=2,
        convention="mmdet",
    )
    told = json.loads(run.stdout)
    (network,) = told.pop("networks")  # counted by kernel: tests/programs/test_analyze.py
    assert told == as_json(mmdet) and network["architecture"].startswith("7x7 5x5 7x7 3x3 /")
    assert mmdet["head"].params - expected["head"].params == 4 * 1025
    monkeypatch.setattr(sys, "argv", [*command, "MODEL.ROI_BOX_HEAD.NUM_FC", "2"])
    runpy.run_path(program, run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in lines[1 : len(PARTS) + 2]] == [*PARTS, "total"]
    params = expected["head"].params + 1024 * 1025
    assert int(lines[4][1].replace(",", "")) == params
