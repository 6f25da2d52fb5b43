"""The operation table of Hit-Detector (arXiv 2003.11818 section 3.2): names, blocks, costs.

``CANDIDATES`` are the N = 32 operations that the paper screens, listed in its appendix 6.1:
inverted residuals, separable and dense convolutions, by kernel, expansion and dilation. Five others
are in the released code's lists, or needed for its networks (``OTHERS``): ``skip``, ``conv_k1``,
``ir_k7_e3`` and inverted residuals with two groups. An operation has one name; ``conv_k3`` is the
appendix's "conv k3 d1", ``ir_k7_e1`` its "ir k7 d1 e1". The released lists call dilation ``_rN``
or ``_dN``, separable convolutions ``sd`` or ``sep`` and two groups ``_s2``; their ``avgpool``
cannot be built there, and the neck's ``conv_1x1`` is ``conv_k1`` under the neck's rules
(:class:`OpRules`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from detnas_d2.layers import ConvNormAct, InvertedResidual, NormFactory, SeparableConv
from detnas_d2.search_space.counting import Cost, conv_cost
from detnas_d2.utils.errors import InputError


class OperationError(InputError):
    """A name that the operation table does not contain."""


@dataclass(frozen=True)
class OpRules:
    """Differences between the parts of the released detector in the same operation.

    Args:
        separable_residual: separable convolutions add their input where the shapes allow it.
        conv1_bias: ``conv_k1`` has a bias.
        conv1_relu: ``conv_k1`` ends in ReLU.
    """

    separable_residual: bool = False
    conv1_bias: bool = False
    conv1_relu: bool = True


BODY_RULES = OpRules()
"""Backbone and head."""
NECK_RULES = OpRules(separable_residual=True, conv1_bias=True, conv1_relu=False)


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        kind: "skip", "ir" (inverted residual), "sep" (separable convolution) or "conv".
        kernel: kernel side; expansion: hidden channels over input channels (ir);
        dilation: of the spatial convolution; groups: of the 1x1 convolutions (ir).
    """

    name: str
    kind: str
    kernel: int = 1
    expansion: int = 1
    dilation: int = 1
    groups: int = 1


def _candidates() -> tuple[Operation, ...]:
    ops = []
    for k in (3, 5):
        for e in (1, 3, 6):
            for d in (1, 2, 3):
                ops.append(Operation(f"ir_k{k}_e{e}_d{d}", "ir", k, e, d))
    ops += [Operation(f"ir_k7_e{e}", "ir", 7, e) for e in (1, 6)]
    for k in (3, 5):
        ops += [Operation(f"sep_k{k}_d{d}", "sep", k, dilation=d) for d in (1, 2, 3)]
    ops.append(Operation("conv_k3", "conv", 3))
    pairs = [(3, 2), (3, 3), (5, 1), (5, 2), (5, 3)]
    ops += [Operation(f"conv_k{k}_d{d}", "conv", k, dilation=d) for k, d in pairs]
    return tuple(ops)


def _others() -> tuple[Operation, ...]:
    grouped = [Operation(f"ir_k{k}_e1_g2", "ir", k, 1, groups=2) for k in (3, 5)]
    return (
        Operation("skip", "skip"),
        Operation("ir_k7_e3", "ir", 7, 3),
        *grouped,
        Operation("conv_k1", "conv", 1),
    )


CANDIDATES: tuple[str, ...] = tuple(op.name for op in _candidates())
"""The 32 operations that are screened (appendix 6.1)."""
OTHERS: tuple[str, ...] = tuple(op.name for op in _others())
"""Operations of the released code that are not among them."""
SCREENED: dict[str, tuple[str, ...]] = {
    "backbone": (
        *("ir_k3_e3_d1", "ir_k3_e6_d1", "ir_k3_e3_d2", "ir_k5_e3_d1"),
        *("ir_k5_e6_d1", "ir_k5_e6_d2", "ir_k5_e6_d3", "ir_k7_e6"),
    ),
    "neck": (
        *("conv_k3_d3", "conv_k5_d1", "ir_k3_e1_d2", "ir_k5_e3_d1"),
        *("sep_k3_d1", "sep_k3_d3", "sep_k5_d2", "sep_k5_d3"),
    ),
    "head": (
        *("ir_k3_e3_d1", "ir_k3_e6_d1", "ir_k3_e6_d2", "ir_k5_e3_d1"),
        *("ir_k5_e6_d1", "ir_k7_e6", "conv_k3", "conv_k5_d1"),
    ),
}
"""The sub-spaces that the authors' screening kept (appendix 6.2).

The appendix prints "ir k5 d1 e3" twice for the backbone; the second one is read as "ir k5 d1 e6",
which is in the head's list and in the released backbone.
"""
_BY_NAME = {op.name: op for op in (*_candidates(), *_others())}


def get_operation(name: str) -> Operation:
    """The operation called ``name``.

    Raises:
        OperationError: no such operation.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise OperationError(
            f"no operation {name!r}; expected one of {', '.join(_BY_NAME)}"
        ) from None


def build_operation(
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    norm: NormFactory,
    rules: OpRules,
) -> nn.Module:
    """The module of an operation: (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)).

    ``skip`` is the identity, or a 1x1 convolution with norm and ReLU where channels or stride
    change.
    """
    op = get_operation(name)
    if op.kind == "skip":
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        return ConvNormAct(in_channels, out_channels, norm=norm, stride=stride)
    if op.kind == "ir":
        return InvertedResidual(
            in_channels,
            out_channels,
            kernel=op.kernel,
            expansion=op.expansion,
            stride=stride,
            dilation=op.dilation,
            groups=op.groups,
            norm=norm,
        )
    if op.kind == "sep":
        return SeparableConv(
            in_channels,
            out_channels,
            kernel=op.kernel,
            stride=stride,
            dilation=op.dilation,
            residual=rules.separable_residual,
            norm=norm,
        )
    pointwise = op.kernel == 1
    return ConvNormAct(
        in_channels,
        out_channels,
        op.kernel,
        norm=norm,
        stride=stride,
        dilation=op.dilation,
        bias=pointwise and rules.conv1_bias,
        relu=rules.conv1_relu if pointwise else True,
    )


def operation_cost(
    name: str,
    in_channels: int,
    out_channels: int,
    *,
    stride: int,
    height: int,
    width: int,
    rules: OpRules,
) -> Cost:
    """Cost of an operation on one input of ``height`` x ``width``; conventions of ``counting``."""
    op = get_operation(name)
    out_h, out_w = -(-height // stride), -(-width // stride)
    if op.kind == "skip":
        if stride == 1 and in_channels == out_channels:
            return Cost()
        return conv_cost(out_h, out_w, in_channels, out_channels)
    if op.kind == "ir":
        mid = in_channels * op.expansion
        return (
            conv_cost(height, width, in_channels, mid, groups=op.groups)
            + conv_cost(out_h, out_w, mid, mid, op.kernel, mid)
            + conv_cost(out_h, out_w, mid, out_channels, groups=op.groups)
        )
    if op.kind == "sep":
        depthwise = conv_cost(out_h, out_w, in_channels, in_channels, op.kernel, in_channels)
        return depthwise + conv_cost(out_h, out_w, in_channels, out_channels)
    cost = conv_cost(out_h, out_w, in_channels, out_channels, op.kernel)
    if op.kernel == 1 and rules.conv1_bias:
        cost += Cost(params=out_channels)
    return cost
