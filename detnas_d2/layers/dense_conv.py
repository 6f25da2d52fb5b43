"""3x3 convolutions of necks and heads, without gradients through ``ops.conv3x3``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers.batch_norm_mode import stats_hook
from detnas_d2.layers.batch_statistics import BatchNorms
from detnas_d2.layers.folded_norm import fold
from detnas_d2.layers.fused_ops import NORMS, Pending, hooked, values_alone
from detnas_d2.layers.fused_shuffle import materialise
from detnas_d2.layers.kept_weights import KeepsWeights
from detnas_d2.layers.over_ranks import on_one_machine, several_processes
from detnas_d2.ops.autotune import AutotuneCache, Trial, size_class
from detnas_d2.ops.conv3x3 import takes_packed_weights
from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import takes
from detnas_d2.ops.self_check import Verdict, compare

TILE = 4  # outputs of a tile in each direction
LEAST_CHANNELS = 64
LEAST_TILES = 16
LEAST_PIXELS = 10
"""The operator's least number of channels, of tiles, and of pixels for each tile. Below,
transforming weights and maps costs what products save, or nearly: which way is faster would differ
from run to run."""
_MOST_TILES = 1024  # of a trial: more tiles do not change which way is faster


class Conv3x3(KeepsWeights, Conv2d):
    """A 3x3 convolution, with its norm and activation, that the operator may run.

    A BatchNorm is folded into the operator's weights, in recalibration made of its statistics.
    Without a norm the weights are kept as the operator reads them, four times as large, while their
    values stay the same.
    Where gradients are recorded, and everywhere else that the operator does not fit, it is
    Detectron2's convolution. Made of one by :func:`use_conv3x3`.

    Attributes:
        fused_ops: see the config key ``MODEL.DETNAS.FUSED_OPS``.
        autotune: what was tried out.
    """

    fused_ops: str
    autotune: AutotuneCache

    def forward(self, x: Tensor) -> Tensor:
        if not self._by_operator(x):
            return super().forward(x)
        norm, activation = self.norm, self.activation
        relu = activation is F.relu or (type(activation) is nn.ReLU and not hooked(activation))
        if norm is None and takes_packed_weights(x):
            (y,) = self._packed([x], relu)
        elif norm is None:
            y, _ = ops.conv3x3(x, self.weight, self.bias, relu)
        elif not _plain(norm):
            y, relu = norm(ops.conv3x3(x, self.weight, self.bias)[0]), False
        elif stats_hook(norm) is None:
            own = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
            y, _ = ops.conv3x3(x, *fold(self.weight, self.bias, *own), relu)
        else:
            y, stats = ops.conv3x3(x, self.weight, self.bias, False, True)
            assert stats is not None
            affine = BatchNorms().affine(norm, stats, y.shape[0] * y.shape[2] * y.shape[3])
            y = materialise(Pending(y, *affine, relu))
        return y if relu or activation is None else activation(y)

    def runs(self, xs: Sequence[Tensor]) -> bool:
        """Whether the operator runs any of these maps."""
        return any(map(self._by_operator, xs))

    def of_maps(self, xs: Sequence[Tensor], relu: bool = False) -> list[Tensor]:
        """The outputs of several maps, such as the levels of a pyramid; ``relu``: of the outputs.

        Where the operator runs one of them, those that are too small for it alone go with it.
        """
        alone = [not self._by_operator(x) for x in xs]
        if all(alone) or not self._plain() or not takes_packed_weights(xs[0]):
            ys = [self(x) for x in xs]
            return [F.relu_(y) for y in ys] if relu else ys
        together = [
            not apart or (self._accepts(x) and not pays(x, self.out_channels))
            for x, apart in zip(xs, alone, strict=True)
        ]
        found = iter(self._packed([x for x, one in zip(xs, together, strict=True) if one], relu))
        ys = []
        for x, one in zip(xs, together, strict=True):
            y = next(found) if one else self(x)
            ys.append(F.relu_(y) if relu and not one else y)
        return ys

    def _plain(self) -> bool:
        return self.norm is None and self.activation is None and not hooked(self)

    def _packed(self, xs: list[Tensor], relu: bool) -> list[Tensor]:
        packed = self.kept(partial(ops.pack_conv3x3, self.weight))
        return ops.conv3x3_packed(xs, self.weight, packed, self.bias, relu)

    def _by_operator(self, x: Tensor) -> bool:
        if not self._accepts(x) or not pays(x, self.out_channels):
            return False
        return self.fused_ops == "on" or self._chosen(x)

    def _accepts(self, x: Tensor) -> bool:
        if self.fused_ops == "off" or not values_alone() or not x.is_cpu or not takes(x):
            return False
        if not x.dtype == self.weight.dtype == torch.float32:
            return False
        return x.dim() == 4 and x.numel() > 0

    def _chosen(self, x: Tensor) -> bool:
        if several_processes() and not (self.autotune.path and on_one_machine()):
            return False  # processes could not agree
        n, c, h, w = x.shape
        count = size_class(min(tiles(x), _MOST_TILES))
        threads = torch.get_num_threads()
        out = self.out_channels
        known, asked = self.autotune.known.setdefault(self, {}), (c, out, count, threads)
        if asked not in known:
            key = f"conv3x3 {c} to {out} channels, {count} tiles, {threads} threads"
            known[asked] = self.autotune.use_ops(key, partial(_trial, (n, c, h, w), out))
        return known[asked]


def tiles(x: Tensor) -> int:
    """Tiles of the map in the operator."""
    return x.shape[0] * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)


def pays(x: Tensor, out_channels: int) -> bool:
    """Whether the operator may be the faster way."""
    if min(x.shape[1], out_channels) < LEAST_CHANNELS:
        return False
    count = tiles(x)
    return count >= LEAST_TILES and x.numel() // x.shape[1] >= LEAST_PIXELS * count


def use_conv3x3(modules: Iterable[nn.Module], fused_ops: str, autotune: AutotuneCache) -> None:
    """Makes a :class:`Conv3x3` of every module that can be one, in its place: what refers to it,
    its parameters and hooks stay. With ``fused_ops`` "off" none is made."""
    for module in modules:
        if type(module) is Conv3x3 or (fused_ops != "off" and _fits(module)):
            if type(module) is nn.Conv2d:  # what Detectron2's has
                module.norm = module.activation = None  # type: ignore[assignment]
            module.__class__ = Conv3x3
            module.fused_ops, module.autotune = fused_ops, autotune  # type: ignore[assignment]


def _fits(module: nn.Module) -> bool:
    if type(module) not in (nn.Conv2d, Conv2d) or not has_extension():
        return False
    assert isinstance(module, nn.Conv2d)
    return (
        module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.padding == (1, 1)
        and module.padding_mode == "zeros"
        and module.groups == 1
    )


def _plain(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm in evaluation or recalibration, with nothing hooked in."""
    if type(norm) not in NORMS or norm.training or hooked(norm):
        return False
    return norm.running_mean is not None and getattr(norm.weight, "dtype", None) == torch.float32


def _trial(shape: tuple[int, int, int, int], out_channels: int) -> Trial:
    """The operator and PyTorch's convolution in the layout that suits it best."""
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    across, down = -(-w // TILE), -(-h // TILE)
    h = min(h, -(-_MOST_TILES // across) * TILE)
    n = max(1, min(n, _MOST_TILES // (across * down)))

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).contiguous(memory_format=torch.channels_last)

    weight = drawn(out_channels, c, 3, 3) / (9 * c) ** 0.5
    x, checked = drawn(n, c, h, w), drawn(2, c, 9, 11)

    @torch.no_grad()
    def operators(x: Tensor = x) -> Tensor:
        return ops.conv3x3(x, weight)[0]

    @torch.no_grad()
    def modules(x: Tensor = x) -> Tensor:
        return F.conv2d(x, weight, padding=1)

    def check() -> Verdict:
        exact = F.conv2d(checked.double(), weight.double(), padding=1)
        found, trusted = ({"output": way(checked)} for way in (operators, modules))
        return compare(found, trusted, {"output": exact}, torch.float32)

    return Trial(operators, modules, check)
