"""The first linear layer of a box head, without gradients on maps as convolutions leave them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.fused_ops import hooked, values_alone
from detnas_d2.layers.kept_weights import KeepsWeights
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import takes

LEAST_REGIONS = 256
"""Below, packing the weights costs what the product saves."""


class KeptMaps(nn.Flatten):
    """Leaves channels_last maps on the CPU to the :class:`LinearOfMaps` that follows, which reads
    them in place; flattens all others. Made by :func:`use_maps`."""

    _following: tuple[nn.Module, str]  # the module that both are children of, the linear one's name

    def forward(self, x: Tensor) -> Tensor:
        return x if self._keeps(x) else super().forward(x)

    def _keeps(self, x: Tensor) -> bool:
        if not values_alone() or x.dim() != 4 or not x.is_cpu or not takes(x):
            return False
        if len(x) < LEAST_REGIONS:
            return False
        parent, name = self._following
        linear = parent._modules.get(name)  # another one may have taken its place
        if type(linear) is not LinearOfMaps or hooked(linear) or hooked(self):
            return False
        if not x.dtype == linear.weight.dtype == torch.float32:
            return False
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class LinearOfMaps(KeepsWeights, nn.Linear):
    """A linear layer of flattened maps (N, C, H, W), which takes the maps, too.

    Their weights, the channels of a pixel together, are kept while the layer's stay the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            return super().forward(x)
        shape = x.shape[1:]

        def by_pixels() -> Tensor:
            weight = self.weight.detach().view(-1, *shape).permute(0, 2, 3, 1)
            return weight.reshape(self.out_features, self.in_features, 1, 1)

        rows = x.permute(0, 2, 3, 1).reshape(len(x), self.in_features, 1, 1)
        y, _ = ops.pointwise_conv(rows, self.kept(by_pixels, shape), bias=self.bias)
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
