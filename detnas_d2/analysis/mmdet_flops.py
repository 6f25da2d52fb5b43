"""Parameters and "FLOPs" as mmdetection 1.x counts them, the convention of Hit-Detector's tables.

Its ``tools/get_flops.py`` adds to the multiply-adds of convolutions and linear layers one for each
output element of a convolution with bias, two for each input element of an affine BatchNorm, one
for each output element of a ReLU and one for each input element of a pooling layer. It sees modules
alone: the ReLU of the RPN, and pooling and upsampling inside FPNs, are functions there and free.
Linear layers' biases, additions and RoIAlign are free too. Frozen BatchNorms have parameters there,
and box heads regress the background's box as well: its weights and multiply-adds are added.

The tables' "800x1200" is 800x1216, padded to a multiple of 32, with 1,000 regions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from detnas_d2.search_space import Cost

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_RELU = {torch.ops.aten.relu.default, torch.ops.aten.relu_.default}
_MAX_POOL = torch.ops.aten.max_pool2d_with_indices.default


class ExtraCosts:
    """Costs that mmdetection counts beyond parameters and multiply-adds, part by part.

    Args:
        model: on the meta device, in eval mode.
        part_of: name of a module -> its part.
    """

    def __init__(self, model: nn.Module, part_of: Callable[[str], str]) -> None:
        self.part_of = part_of
        self.modules = dict(model.named_modules())
        self._costs: dict[str, Cost] = {}

    def cost(self, part: str) -> Cost:
        """Parameters and operations to be added to those of ``part``."""
        return self._costs.get(part, Cost())

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts the model's forward passes in a ``with`` block."""
        with ExitStack() as stack:
            functions = stack.enter_context(_Functions(self._add))
            for name, module in self.modules.items():
                part = self.part_of(name)
                self._add(part, params=_missing_parameters(module))
                for handle in (
                    module.register_forward_pre_hook(functions.enter_hook(part)),
                    module.register_forward_hook(self._hook(part)),
                    module.register_forward_hook(functions.leave_hook()),
                ):
                    stack.callback(handle.remove)
            yield

    def _add(self, part: str, *, params: int = 0, flops: int = 0) -> None:
        self._costs[part] = self.cost(part) + Cost(params, flops)

    def _hook(self, part: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            self._add(part, flops=_operations(module, part, inputs, output))

        return hook


class _Functions(TorchDispatchMode):
    """Counts ReLUs outside the RPN and the backbone's max pooling, modules or functions."""

    def __init__(self, add: Callable[..., None]) -> None:
        super().__init__()
        self.add = add
        self.parts: list[str] = []

    def enter_hook(self, part: str) -> Callable[..., None]:
        return lambda module, inputs: self.parts.append(part)

    def leave_hook(self) -> Callable[..., None]:
        return lambda module, inputs, output: (self.parts.pop(), None)[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        part = self.parts[-1] if self.parts else "head"
        relu = func in _RELU and part != "proposal_generator"
        if relu or (func is _MAX_POOL and part == "backbone"):
            self.add(part, flops=args[0].numel())
        return func(*args, **(kwargs or {}))


def _operations(module: nn.Module, part: str, inputs: tuple, output: Any) -> int:
    """Of one call of a module, besides its multiply-adds."""
    if isinstance(module, nn.Conv2d):
        return 0 if module.bias is None else output.numel()
    if isinstance(module, (_BatchNorm, FrozenBatchNorm2d)):
        return 2 * inputs[0].numel()
    if isinstance(module, _POOLS):
        return 0 if part == "backbone" else inputs[0].numel()
    if isinstance(module, FastRCNNOutputLayers):
        return len(inputs[0]) * module.bbox_pred.in_features * _background_outputs(module)
    return 0


def _missing_parameters(module: nn.Module) -> int:
    if isinstance(module, FrozenBatchNorm2d):
        return 2 * module.num_features
    if isinstance(module, FastRCNNOutputLayers):
        return (module.bbox_pred.in_features + 1) * _background_outputs(module)
    return 0


def _background_outputs(layers: FastRCNNOutputLayers) -> int:
    width = len(layers.box2box_transform.weights)
    return 0 if layers.bbox_pred.out_features == width else width
