import re

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from detnas_d2.layers import ConvNormAct
from detnas_d2.search_space.hit_network import rules_of
from detnas_d2.search_space.operations import (
    CANDIDATES,
    OTHERS,
    SCREENED,
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


# Appendix 6.1 of arXiv 2003.11818, as printed.
APPENDIX = """
ir k3 d1 e1, ir k3 d1 e3, ir k3 d1 e6, ir k3 d2 e1, ir k3 d2 e3, ir k3 d2 e6, ir k3 d3 e1,
ir k3 d3 e3, ir k3 d3 e6, ir k5 d1 e1, ir k5 d1 e3, ir k5 d1 e6, ir k5 d2 e1, ir k5 d2 e3,
ir k5 d2 e6, ir k5 d3 e1, ir k5 d3 e3, ir k5 d3 e6, ir k7 d1 e1, ir k7 d1 e6, sep k3 d1, sep k3 d2,
sep k3 d3, sep k5 d1, sep k5 d2, sep k5 d3, conv k3 d1, conv k3 d2, conv k3 d3, conv k5 d1,
conv k5 d2, conv k5 d3
"""
# Appendix 6.2, as printed; one operation of the backbone stands there twice.
SCREENED_TEXT = {
    "backbone": "ir k3 d1 e3, ir k3 d1 e6, ir k3 d2 e3, ir k5 d1 e3, ir k5 d1 e3, ir k5 d2 e6, "
    "ir k5 d3 e6, ir k7 d1 e6",
    "neck": "conv k3 d3, conv k5 d1, ir k3 d2 e1, ir k5 d1 e3, sep k3 d1, sep k3 d3, sep k5 d2, "
    "sep k5 d3",
    "head": "ir k3 d1 e3, ir k3 d1 e6, ir k3 d2 e6, ir k5 d1 e3, ir k5 d1 e6, ir k7 d1 e6, "
    "conv k3 d1, conv k5 d1",
}


def name_in_appendix(name: str) -> str:
    op = get_operation(name)
    expansion = f" e{op.expansion}" if op.kind == "ir" else ""
    return f"{op.kind} k{op.kernel} d{op.dilation}{expansion}"


def test_candidates_are_the_papers_32():
    printed = [name.strip() for name in APPENDIX.split(",")]
    assert len(CANDIDATES) == len(printed) == 32
    assert {name_in_appendix(name) for name in CANDIDATES} == set(printed)


def test_screened_sub_spaces_are_the_papers():
    for part, text in SCREENED_TEXT.items():
        ours = [name_in_appendix(name) for name in SCREENED[part]]
        assert len(set(ours)) == 8 and set(SCREENED[part]) <= set(CANDIDATES)
        assert [o for o, p in zip(ours, text.split(", "), strict=True) if o != p] == (
            ["ir k5 d1 e6"] if part == "backbone" else []
        )


def test_table_has_every_operation_of_the_released_lists():
    assert [len(names.split()) for names in RELEASED.values()] == [24, 21, 21]
    names = {name for text in RELEASED.values() for name in text.split()}
    ours = {our_name(name) for name in names - {"avgpool"}}
    assert ours - set(CANDIDATES) == set(OTHERS)


def test_unknown_names_are_refused():
    with pytest.raises(OperationError, match="ir_k9"):
        get_operation("ir_k9")


@pytest.mark.parametrize("part", ["backbone", "neck"])
@pytest.mark.parametrize(("cin", "cout", "stride"), [(8, 8, 1), (8, 16, 1), (8, 8, 2)])
def test_shape_and_cost_of_every_operation(part, cin, cout, stride):
    height, width = 9, 14
    x = torch.randn(1, cin, height, width)
    for name in (*CANDIDATES, *OTHERS):
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
