import re

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from detnas_d2.layers import ConvNormAct
from detnas_d2.search_space.hit_network import rules_of
from detnas_d2.search_space.operations import (
    CANDIDATES,
    DENSE,
    OperationError,
    build_operation,
    get_operation,
    operation_cost,
)

# The names in the released lists, "{a,b}" spelled out.
RELEASED = {
    "backbone": "skip ir_k3_e1 ir_k3_e1_r2 ir_k3_e1_r3 ir_k3_e3 ir_k3_e3_r2 ir_k3_e3_r3 ir_k3_e6 "
    "ir_k3_e6_r2 ir_k3_e6_r3 ir_k3_s2 ir_k5_e1 ir_k5_e1_r2 ir_k5_e1_r3 ir_k5_e3 ir_k5_e6 "
    "ir_k5_e6_r2 ir_k5_e6_r3 ir_k5_s2 ir_k7_e6 sep_k3 sep_k5 conv1 conv3",
    "neck": "skip ir_k3_e1 ir_k3_e1_d2 ir_k3_e3 ir_k3_e6 ir_k3_e6_d3 ir_k3_s2 ir_k5_e1 "
    "ir_k5_e1_d2 ir_k5_e3 ir_k5_e6 ir_k5_e6_d2 ir_k5_e6_d3 ir_k5_s2 ir_k7_e3 ir_k7_e6 sd_k3_d1 "
    "sd_k3_d3 sd_k5_d2 sd_k5_d3 conv_1x1",
    "head": "skip ir_k3_e1 ir_k3_e1_r2 ir_k3_e3 ir_k3_e6 ir_k3_e6_r2 ir_k3_s2 ir_k5_e1 "
    "ir_k5_e1_r2 ir_k5_e3 ir_k5_e6 ir_k5_e6_r2 ir_k5_s2 ir_k7_e3 ir_k7_e6 sep_k3 sep_k5 conv1 "
    "conv3 conv5 avgpool",
}


def our_name(released: str) -> str:
    """Our name of an operation as the released code calls it (``ir_k5_e6_r2``, ``sd_k3_d1``)."""
    plain = {"skip": "skip", "conv1": "conv_k1", "conv_1x1": "conv_k1", "conv3": "conv_k3"}
    plain |= {"ir_k3_s2": "ir_k3_e1_g2", "ir_k5_s2": "ir_k5_e1_g2", "conv5": "conv_k5_d1"}
    if released in plain:
        return plain[released]
    match = re.match(r"^(ir|sd|sep)_k(\d)(?:_e(\d))?(?:_[rd](\d))?$", released)
    kind, kernel, expansion, dilation = match.groups()
    if kind == "ir":
        suffix = "" if kernel == "7" else f"_d{dilation or 1}"
        return get_operation(f"ir_k{kernel}_e{expansion}{suffix}").name
    return get_operation(f"sep_k{kernel}_d{dilation or 1}").name


def test_table_is_the_completed_union_of_the_released_lists():
    assert len(CANDIDATES) == len(set(CANDIDATES)) == 32
    assert [len(names.split()) for names in RELEASED.values()] == [24, 21, 21]
    names = {name for text in RELEASED.values() for name in text.split()}
    ours = {our_name(name) for name in names - {"avgpool"}}
    added = {"ir_k5_e3_d2", "ir_k5_e3_d3", "ir_k7_e1", "sep_k3_d2"}
    assert set(CANDIDATES) - ours == added
    assert ours - set(CANDIDATES) == {"conv_k5_d1"}
    # Different operations in the released lists: 28 of ours, conv5, avgpool, the neck's conv_1x1.
    assert len(ours & set(CANDIDATES)) + 3 == 31


def test_unknown_names_are_refused():
    with pytest.raises(OperationError, match="ir_k9"):
        get_operation("ir_k9")


@pytest.mark.parametrize("part", ["backbone", "neck"])
@pytest.mark.parametrize(("cin", "cout", "stride"), [(8, 8, 1), (8, 16, 1), (8, 8, 2)])
def test_shape_and_cost_of_every_operation(part, cin, cout, stride):
    height, width = 9, 14
    x = torch.randn(1, cin, height, width)
    for name in (*CANDIDATES, *DENSE):
        rules = rules_of(part)
        module = build_operation(
            name, cin, cout, stride=stride, norm=nn.BatchNorm2d, rules=rules
        ).eval()
        out = module(x)
        assert out.shape == (1, cout, -(-height // stride), -(-width // stride)), name
        cost = operation_cost(
            name, cin, cout, stride=stride, height=height, width=width, rules=rules
        )
        flops = FlopCountAnalysis(module, x).unsupported_ops_warnings(False)
        by_operator = flops.uncalled_modules_warnings(False).by_operator()
        assert cost.macs == by_operator["conv"], name
        assert cost.params == sum(p.numel() for p in module.parameters()), name


def test_rules_of_the_parts():
    def build(name, part):
        return build_operation(name, 8, 8, stride=1, norm=nn.BatchNorm2d, rules=rules_of(part))

    for part, in_neck in (("backbone", False), ("head", False), ("neck", True)):
        assert build("sep_k3_d1", part).residual is in_neck
        assert build("ir_k3_e3_d1", part).residual
        conv1, conv3 = build("conv_k1", part), build("conv_k3", part)
        assert (conv1.conv.bias is not None, conv1.relu) == (in_neck, not in_neck)
        assert (conv3.conv.bias is None) and conv3.relu
        assert isinstance(build("skip", part), nn.Identity)
    changed = build_operation("skip", 8, 4, stride=1, norm=nn.BatchNorm2d, rules=rules_of("neck"))
    assert isinstance(changed, ConvNormAct) and changed.relu
