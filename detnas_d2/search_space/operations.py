"""The operation table of Hit-Detector (arXiv 2003.11818 section 3.2): names, blocks, costs.

The paper screens N = 32 operations but lists neither them nor the code that does it. These 32 are
the closure of what the released network code names:

* the released lists (backbone 24, neck 21, head 21 names) hold 31 different operations once
  spelling is unified (``_rN`` and ``_dN`` are both dilation, ``sd`` and ``sep`` are both separable
  convolutions, ``_s2`` is meant as two groups);
* 28 of those are kept. Left out are ``avgpool`` and ``conv5`` (in the head's list only; the
  first cannot even be built there) and the neck's ``conv_1x1``, which is ``conv_k1`` under the
  neck's rules (:class:`OpRules`);
* four are added to make the families complete: ``ir_k5_e3_d2``, ``ir_k5_e3_d3``, ``ir_k7_e1`` and
  ``sep_k3_d2``. That gives 32.

An operation has one name. Dense dilated convolutions (Figure 3 of the paper, the influence of
single operations) are available beside the 32: ``conv_k3_d2``, ``conv_k5_d1`` and so on;
``conv_k3`` is the one without dilation.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from detnas_d2.files.errors import InputError
from detnas_d2.layers import ConvNormAct, InvertedResidual, NormFactory, SeparableConv
from detnas_d2.search_space.costs import Cost, conv_cost


class OperationError(InputError):
    """A name that the operation table does not contain."""


@dataclass(frozen=True)
class OpRules:
    """Where the parts of the released detector treat the same operation differently.

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


def _table() -> tuple[Operation, ...]:
    ops = [Operation("skip", "skip")]
    for k in (3, 5):
        for e in (1, 3, 6):
            for d in (1, 2, 3):
                ops.append(Operation(f"ir_k{k}_e{e}_d{d}", "ir", k, e, d))
    ops += [Operation(f"ir_k7_e{e}", "ir", 7, e) for e in (1, 3, 6)]
    ops += [Operation(f"ir_k{k}_e1_g2", "ir", k, 1, groups=2) for k in (3, 5)]
    for k in (3, 5):
        ops += [Operation(f"sep_k{k}_d{d}", "sep", k, dilation=d) for d in (1, 2, 3)]
    ops += [Operation(f"conv_k{k}", "conv", k) for k in (1, 3)]
    return tuple(ops)


def _dense() -> tuple[Operation, ...]:
    pairs = [(3, 2), (3, 3), (5, 1), (5, 2), (5, 3)]
    return tuple(Operation(f"conv_k{k}_d{d}", "conv", k, dilation=d) for k, d in pairs)


CANDIDATES: tuple[str, ...] = tuple(op.name for op in _table())
"""The 32 operations that are screened."""
DENSE: tuple[str, ...] = ("conv_k3", *(op.name for op in _dense()))
"""Dense convolutions for the study of operation influence."""
_BY_NAME = {op.name: op for op in (*_table(), *_dense())}


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
    """Cost of an operation on one input of ``height`` x ``width``; conventions of ``costs``."""
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
