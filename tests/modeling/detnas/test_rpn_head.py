"""The region proposal head for Adam: what is its own, and why."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead, build_rpn_head
from torch.nn.functional import binary_cross_entropy_with_logits

from detnas_d2.modeling import DetNASRPNHead

SHAPES = [ShapeSpec(channels=24, stride=8), ShapeSpec(channels=24, stride=16)]


def head(name: str, seed: int) -> StandardRPNHead:
    cfg = get_cfg()
    cfg.MODEL.RPN.HEAD_NAME = name
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    torch.manual_seed(seed)
    return build_rpn_head(cfg, SHAPES)


def test_like_detectron2s_but_for_the_objectness() -> None:
    ours, theirs = (head(name, 0).state_dict() for name in ("DetNASRPNHead", "StandardRPNHead"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    differing = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    assert differing == {"objectness_logits.weight"}
    weights = torch.stack([head("DetNASRPNHead", i).objectness_logits.weight for i in range(50)])
    assert weights.std().item() == pytest.approx(24**-0.5, rel=0.05)
    assert isinstance(head("DetNASRPNHead", 0), DetNASRPNHead)


def signs_after_learning_background(rpn: StandardRPNHead) -> int:
    """Of 24 objectness weights, those of the rarer sign after 60 steps at the demo's rate."""
    optimizer = torch.optim.AdamW(rpn.parameters(), lr=0.003)
    generator = torch.Generator().manual_seed(7)
    for _ in range(60):
        features = [torch.randn(2, 24, 8, 8, generator=generator) for _ in SHAPES]
        logits = torch.cat([level.flatten() for level in rpn(features)[0]])
        loss = binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    positive = int((rpn.objectness_logits.weight[0] > 0).sum())
    return min(positive, 24 - positive)


def test_adam_leaves_weights_of_both_signs() -> None:
    found = {
        name: [signs_after_learning_background(head(name, seed)) for seed in range(5)]
        for name in ("StandardRPNHead", "DetNASRPNHead")
    }
    assert max(found["StandardRPNHead"]) == 0
    assert min(found["DetNASRPNHead"]) >= 2
