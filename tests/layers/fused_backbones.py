"""Backbones whose BatchNorms are anything, and comparisons with their modules."""

from __future__ import annotations

import copy
import random
from functools import partial

import torch
from torch import Tensor, nn

from detnas_d2.layers import get_norm
from detnas_d2.modeling import DecodedBackbone
from detnas_d2.search_space import SPACES

TINY = SPACES["detnas_tiny"]
FEATURES = ["stage1", "stage2", "stage3", "stage4"]


def backbone(method: int = 2, seed: int = 0, norm: str = "BN", last: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    net = DecodedBackbone(
        TINY.random_path(random.Random(seed)),
        norm=partial(get_norm, norm),
        shuffle_method=method,
        out_features=[*FEATURES, "last"] if last else FEATURES,
        last_conv=last,
        init="default",
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


def pair(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The network through the operators, and a copy through its modules."""
    reference = copy.deepcopy(net)
    net.fused_ops, reference.fused_ops = "on", "off"
    return net, reference


def assert_close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-3)
    assert error < tolerance, f"{what}: {error:.2g}"
