"""The first linear layer of a box head, without gradients on maps as convolutions leave them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.fused_ops import hooked
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import operator, takes
from detnas_d2.utils.compat import has_global_hook, is_any_autocast_enabled

LEAST_REGIONS = 256
"""Below, packing the weights costs what the product saves."""

if has_extension():
    _digest = operator("digest")


class KeptMaps(nn.Flatten):
    """Leaves channels_last maps on the CPU to the :class:`LinearOfMaps` that follows, which reads
    them in place; flattens all others. Made by :func:`use_maps`."""

    _following: tuple[nn.Module, str]  # the module that both are children of, the linear one's name

    def forward(self, x: Tensor) -> Tensor:
        return x if self._keeps(x) else super().forward(x)

    def _keeps(self, x: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        if x.dim() != 4 or not x.is_cpu or not takes(x) or len(x) < LEAST_REGIONS:
            return False
        if has_global_hook() or is_any_autocast_enabled():
            return False
        parent, name = self._following
        linear = parent._modules.get(name)  # another one may have taken its place
        if type(linear) is not LinearOfMaps or hooked(linear) or hooked(self):
            return False
        if not x.dtype == linear.weight.dtype == torch.float32:
            return False
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class LinearOfMaps(nn.Linear):
    """A linear layer of flattened maps (N, C, H, W), which takes the maps, too.

    Their weights, the channels of a pixel together, are kept while the layer's stay the same.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Without the kept weights, which copies and files need not have."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            return super().forward(x)
        key, kept = (_digest([self.weight]), x.shape[1:]), self.__dict__.get("_kept")
        if kept is None or kept[0] != key:
            weight = self.weight.detach().view(-1, *x.shape[1:]).permute(0, 2, 3, 1)
            kept = (key, weight.reshape(self.out_features, self.in_features, 1, 1))
            self.__dict__["_kept"] = kept
        rows = x.permute(0, 2, 3, 1).reshape(len(x), self.in_features, 1, 1)
        y, _ = ops.pointwise_conv(rows, kept[1], bias=self.bias)
        return y.flatten(1)


def use_maps(parent: nn.Module, fused: bool = True) -> None:
    """Gives the two classes to flattening modules and the linear layers that alone read them, where
    they are PyTorch's; not ``fused``: gives them PyTorch's again.

    Args:
        parent: its children run one after the other.
    """
    plain: dict[type[nn.Module], type[nn.Module]] = {KeptMaps: nn.Flatten, LinearOfMaps: nn.Linear}
    children = list(parent.named_children())
    for (_, flatten), (name, linear) in zip(children, children[1:], strict=False):
        if fused and _fits(flatten, linear):
            flatten.__class__, linear.__class__ = KeptMaps, LinearOfMaps
            flatten.__dict__["_following"] = (parent, name)
        elif not fused:
            for module in (flatten, linear):
                module.__class__ = plain.get(type(module), type(module))


def _fits(flatten: nn.Module, linear: nn.Module) -> bool:
    if type(flatten) is not nn.Flatten or (flatten.start_dim, flatten.end_dim) != (1, -1):
        return False
    return type(linear) is nn.Linear and has_extension()
