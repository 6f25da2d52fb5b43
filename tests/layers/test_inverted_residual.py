import pytest
import torch
from torch import nn

from detnas_d2.layers import InvertedResidual, SeparableConv


def test_residual_is_added_exactly_where_shapes_allow():
    x = torch.randn(2, 4, 6, 6)
    for out, stride, added in ((4, 1, True), (4, 2, False), (6, 1, False)):
        block = InvertedResidual(4, out, kernel=3, expansion=3, stride=stride, norm=nn.BatchNorm2d)
        nn.init.zeros_(block.project.norm.weight)
        y = block(x)
        assert y.shape == (2, out, 6 // stride, 6 // stride)
        assert torch.equal(y, x if added else torch.zeros_like(y))


def test_no_relu_after_the_addition_and_none_on_the_projection():
    torch.manual_seed(0)
    for block in (
        InvertedResidual(4, 8, kernel=5, expansion=1, norm=nn.BatchNorm2d),
        SeparableConv(4, 8, kernel=3, residual=True, norm=nn.BatchNorm2d),
    ):
        assert block(torch.randn(2, 4, 6, 6)).min() < 0


def test_separable_residual_follows_its_rule():
    x = torch.randn(2, 4, 6, 6)
    for residual in (True, False):
        block = SeparableConv(4, 4, kernel=5, dilation=3, residual=residual, norm=nn.BatchNorm2d)
        nn.init.zeros_(block.project.norm.weight)
        assert torch.equal(block(x), x if residual else torch.zeros_like(x))


def test_groups_limit_what_a_channel_sees_before_the_shuffle():
    block = InvertedResidual(4, 4, kernel=3, expansion=1, groups=2, norm=nn.Identity)
    x = torch.randn(1, 4, 5, 5)
    changed = x.clone()
    changed[:, :2] += 1
    moved = (block.expand(x) != block.expand(changed)).flatten(2).any(2)[0]
    assert moved[2:].sum() == 0 and moved[:2].any()
    with pytest.raises(ValueError, match="groups 2"):
        InvertedResidual(3, 4, kernel=3, expansion=1, groups=2, norm=nn.BatchNorm2d)
