"""The score of untrained networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detnas_d2.data import register_datasets
from detnas_d2.engine.training_free import _log_determinant, relu_code_score, training_batch
from tests.engine.tiny_runs import Configs


class Toy(nn.Module):
    """Passes images through ReLUs, called in different ways."""

    def __init__(self, relu: object) -> None:
        super().__init__()
        self.backbone = relu

    def preprocess_image(self, batch: list[dict]) -> Tensor:
        return torch.stack([item["image"] for item in batch])


@pytest.mark.parametrize("relu", [F.relu, nn.ReLU(inplace=True), torch.relu_, lambda x: x.relu()])
def test_by_hand(relu: object) -> None:
    signs = torch.tensor([[1.0, -1, 1, 1], [1, 1, 1, -1], [-1, 1, -1, -1]])
    batch = [{"image": image} for image in signs]
    # Alike: 4 of 4 with itself, 2 of the first two, 0 and 2 with the third.
    kernel = torch.tensor([[4.0, 2, 0], [2, 4, 2], [0, 2, 4]])
    found = _log_determinant(Toy(relu), batch)
    assert found == pytest.approx(math.log(float(torch.det(kernel))))
    assert _log_determinant(Toy(relu), [batch[0], batch[0]]) == -math.inf


def test_networks_of_a_config(configs: Configs) -> None:
    cfg = configs("faster", "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone")
    register_datasets(cfg)
    batch = training_batch(cfg)
    assert len(batch) == 8 and {"image", "instances"} <= batch[0].keys()
    state = torch.get_rng_state()
    scores = []
    for op in ("3x3", "xception", "3x3"):
        cfg.MODEL.DETNAS.PATH = " ".join([op] * 5)
        scores.append(relu_code_score(cfg, batch))
    assert scores[0] == scores[2] != scores[1] and all(map(math.isfinite, scores))
    assert torch.equal(torch.get_rng_state(), state)
