from __future__ import annotations

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from detnas_d2.layers import SyncBatchNorm, get_norm


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", SyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
    ],
)
def test_names(name: str, kind: type) -> None:
    norm = get_norm(name, 48)
    assert isinstance(norm, kind)
    assert norm(torch.rand(2, 48, 3, 3)).shape == (2, 48, 3, 3)


@pytest.mark.parametrize("channels", [1, 6, 7, 16, 24, 58, 256, 1728])
def test_group_norm_divides_any_channel_number(channels: int) -> None:
    norm = get_norm("GN", channels)
    assert norm(torch.rand(2, channels, 5, 5)).isfinite().all()
    assert channels // norm.num_groups >= min(4, channels)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="'BatchNorm': expected one of BN, SyncBN"):
        get_norm("BatchNorm", 8)


def test_sync_bn_is_bn_in_one_process() -> None:
    torch.manual_seed(0)
    ours, theirs = get_norm("SyncBN", 5, momentum=0.01), nn.BatchNorm2d(5, momentum=0.01)
    x = torch.randn(3, 5, 4, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))
