"""The DetNAS backbone: stem, choice or fixed blocks, optional last convolution."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from detectron2.modeling import Backbone
from torch import Tensor, nn

from detnas_d2.layers import ConvNormAct, NormFactory
from detnas_d2.layers.fused_ops import by_batch
from detnas_d2.layers.fused_shuffle import fused_forward
from detnas_d2.modeling.choice_block import ChoiceBlock
from detnas_d2.modeling.prefix_walk import PrefixWalk
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space import LayerSpec, Path, SearchSpace
from detnas_d2.search_space.shuffle_ops import build_block

INITS = ("imagenet", "default")
FUSED_OPS = ("off", "on", "auto", "measured")

Layers = Callable[[Tensor], list[Tensor]]
"""Some layers of a path: from the input of the first to the outputs that are asked for."""
Around = Callable[[int, tuple[int, ...], Layers, Tensor], list[Tensor]]
"""around(start, depths, layers, x) gives ``layers(x)``: from the output at depth ``start`` (-1: the
images) those at ``depths``, and of the last convolution if it is a feature."""


class ShuffleNetBackbone(Backbone):
    """Base of supernet and decoded backbone.

    Input: images (N, 3, H, W). Output: dict of features; "stage1" ... "stage4" with strides 4, 8,
    16, 32, and "last" (stride 32) where a last convolution is asked for.

    Args:
        space: the search space that gives depths and channels.
        build_blocks: makes the module of all layers.
        norm: makes a normalisation layer from a channel number.
        out_features: names of the features to return.
        last_conv: append the 1x1 convolution to ``space.last_channels``.
        init: "default" or "imagenet", see the config key ``MODEL.DETNAS.INIT``.

    Attributes:
        fused_ops: one of ``FUSED_OPS``, see the config key ``MODEL.DETNAS.FUSED_OPS``.
        autotune: what was tried out.
    """

    fused_ops = "auto"

    def __init__(
        self,
        space: SearchSpace,
        build_blocks: Callable[[Sequence[LayerSpec]], nn.Module],
        *,
        norm: NormFactory,
        out_features: Sequence[str],
        last_conv: bool = False,
        init: str = "default",
    ) -> None:
        super().__init__()
        self.space = space
        self.autotune = AutotuneCache()
        self.stem = ConvNormAct(3, space.stem_channels, 3, norm=norm, stride=2, bias=True)
        self.blocks: Any = build_blocks(space.layers)  # what run_layer and layer_block take
        self.last = (
            ConvNormAct(space.stage_channels[-1], space.last_channels, norm=norm, bias=True)
            if last_conv
            else None
        )
        ends = {layer.stage: layer.index for layer in space.layers}
        self._feature_after = {index: f"stage{stage + 1}" for stage, index in ends.items()}
        self._out_feature_strides = {f"stage{s + 1}": 4 * 2**s for s in ends}
        self._out_feature_channels = {
            f"stage{s + 1}": c for s, c in enumerate(space.stage_channels)
        }
        if last_conv:
            self._out_feature_strides["last"] = 4 * 2 ** max(ends)
            self._out_feature_channels["last"] = space.last_channels
        unknown = sorted(set(out_features) - set(self._out_feature_strides))
        if unknown or not out_features:
            raise ValueError(
                f"out_features {list(out_features)}: expected some of "
                f"{', '.join(self._out_feature_strides)}"
            )
        self._out_features = list(out_features)
        init_shufflenet(self, init)

    def run_layer(self, index: int, x: Tensor) -> Tensor:
        """Output of layer ``index`` for its input ``x``."""
        return self.blocks[index](x)

    def layer_block(self, index: int) -> nn.Module:
        """The block that :meth:`run_layer` runs."""
        return self.blocks[index]

    def layer_blocks(self, first: int = 0) -> list[nn.Module]:
        """The blocks of the layers from ``first`` on."""
        return list(self.blocks)[first:]

    def _run(
        self, images: Tensor, outputs: dict[int, Tensor], wanted: Collection[int]
    ) -> Tensor | None:
        """Adds the outputs ``wanted``, by depth, to ``outputs``; returns that of the last
        convolution if it is a feature.

        Depth d is the output of the first d layers, 0 that of the stem. Continues from the deepest
        output there is.
        """
        start = max(outputs, default=-1)
        x = outputs.get(start, images)
        last = self.last if "last" in self._out_features else None
        if self.fused_ops != "off" and start < len(self.blocks):
            blocks = self.layer_blocks(max(start, 0))
            stem = self.stem if start < 0 else None
            tried = self.fused_ops == "measured" or (self.fused_ops == "auto" and x.is_cuda)
            found = fused_forward(
                stem, blocks, last, x, wanted, max(start, 0), (self.blocks, *self.blocks),
                self.autotune if tried else None, self._batches,
            )  # fmt: skip
            if found is not None:
                outputs.update(found[0])
                return found[1]
        for depth in range(start + 1, len(self.blocks) + 1):
            layer = partial(self.run_layer, depth - 1) if depth else self.stem
            x = by_batch(layer, x, self._batches)
            if depth in wanted:
                outputs[depth] = x
        return None if last is None else by_batch(last, x, self._batches)

    @property
    def _batches(self) -> int:
        """That an input has one after the other, each to be normalised by itself."""
        return 1

    def _walk_step(self) -> tuple[dict[int, Tensor], frozenset[int]]:
        """Outputs that there are already, and the depths to keep besides the features."""
        return {}, frozenset()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.dim() != 4:
            raise ValueError(f"expected images (N, 3, H, W), got shape {tuple(x.shape)}")
        names = {i + 1: n for i, n in self._feature_after.items() if n in self._out_features}
        outputs, keep = self._walk_step()
        last = self._run(x, outputs, keep.union(names))
        features = {name: outputs[depth] for depth, name in names.items()}
        return features if last is None else {**features, "last": last}


class DecodedBackbone(ShuffleNetBackbone):
    """The plain backbone of one path.

    Args:
        options: ``out_features``, ``last_conv`` and ``init`` of :class:`ShuffleNetBackbone`.
    """

    def __init__(
        self,
        path: Path,
        *,
        norm: NormFactory,
        shuffle_method: int,
        **options: Any,
    ) -> None:
        if not isinstance(path.space, SearchSpace):
            raise ValueError(f"path of space {path.space.name!r}, expected one of a DetNAS space")

        def build(layers: Sequence[LayerSpec]) -> nn.Module:
            return nn.ModuleList(
                build_block(layer, op, norm, shuffle_method)
                for layer, op in zip(layers, path.ops, strict=True)
            )

        super().__init__(path.space, build, norm=norm, **options)
        self.path = path


class Supernet(ShuffleNetBackbone):
    """All paths of a space with shared weights; a forward pass runs the active one.

    Detectron2's meta-architectures call ``backbone(images)`` without further argument, so the
    path is set around their call with :meth:`active` (or ``activate`` for a whole model).
    Without one, ``forward`` raises ``RuntimeError``.

    Args:
        options: ``out_features``, ``last_conv`` and ``init`` of :class:`ShuffleNetBackbone`.

    Attributes:
        walk: what the paths of a population share, see :func:`detnas_d2.modeling.supernet.walking`.
        around: runs the layers of the active path, see
            :func:`detnas_d2.modeling.supernet.running_through`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        norm: NormFactory,
        shuffle_method: int,
        **options: Any,
    ) -> None:
        def choice_block(layer: LayerSpec) -> ChoiceBlock:
            return ChoiceBlock(layer.ops, lambda op: build_block(layer, op, norm, shuffle_method))

        def build(layers: Sequence[LayerSpec]) -> nn.Module:
            return nn.ModuleList(map(choice_block, layers))

        super().__init__(space, build, norm=norm, **options)
        self._active: Path | None = None
        self.walk: PrefixWalk | None = None
        self.around: Around | None = None

    @property
    def active_path(self) -> Path:
        if self._active is None:
            raise RuntimeError(
                "no path is active: call the supernet inside `with activate(model, path):`"
            )
        return self._active

    @contextmanager
    def active(self, path: Path) -> Iterator[None]:
        """Makes ``path`` the active path for the duration of a ``with`` block."""
        if path.space != self.space:
            raise ValueError(
                f"path of space {path.space.name!r}, supernet of space {self.space.name!r}"
            )
        previous, self._active = self._active, path
        try:
            yield
        finally:
            self._active = previous

    def run_layer(self, index: int, x: Tensor) -> Tensor:
        return self.blocks[index](x, self.active_path.choices[index])

    def layer_block(self, index: int) -> nn.Module:
        block = self.blocks[index]
        return block.candidates[block.ops[self.active_path.choices[index]]]

    def layer_blocks(self, first: int = 0) -> list[nn.Module]:
        pairs = list(zip(self.blocks, self.active_path.choices, strict=True))
        return [block.candidates[block.ops[choice]] for block, choice in pairs[first:]]

    def path_modules(self, start: int) -> list[nn.Module]:
        """What the active path runs from the output at depth ``start`` on (-1: from the images)."""
        blocks = self.layer_blocks(max(start, 0))
        last = self.last if "last" in self._out_features else None
        ends = (self.stem if start < 0 else None, last)
        return [*blocks, *(module for module in ends if module is not None)]

    def _run(
        self, images: Tensor, outputs: dict[int, Tensor], wanted: Collection[int]
    ) -> Tensor | None:
        if self.around is None:
            return super()._run(images, outputs, wanted)
        start = max(outputs, default=-1)
        depths = tuple(sorted(depth for depth in wanted if depth > start))
        run = super()._run

        def layers(x: Tensor) -> list[Tensor]:
            found = {} if start < 0 else {start: x}
            last = run(x, found, wanted)
            return [found[depth] for depth in depths] + ([] if last is None else [last])

        found = self.around(start, depths, layers, outputs.get(start, images))
        outputs.update(zip(depths, found, strict=False))
        return found[-1] if len(found) > len(depths) else None

    @property
    def _batches(self) -> int:
        return 1 if self.walk is None else self.walk.batches

    def _walk_step(self) -> tuple[dict[int, Tensor], frozenset[int]]:
        if self.walk is None:
            return super()._walk_step()
        return self.walk.enter(self.active_path), self.walk.keep(self.active_path)


def init_shufflenet(backbone: ShuffleNetBackbone, init: str) -> None:
    """Initial weights as released (see the config key ``MODEL.DETNAS.INIT``)."""
    if init not in INITS:
        raise ValueError(f"init {init!r}: expected one of {', '.join(INITS)}")
    assert backbone.stem.conv.bias is not None
    nn.init.normal_(backbone.stem.conv.weight, 0, 0.01)
    nn.init.zeros_(backbone.stem.conv.bias)
    if init == "default":
        return
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module is not backbone.stem.conv:
            # weight.shape[1]: input channels of a group, so 1 for a depthwise convolution.
            nn.init.normal_(module.weight, 0, 1.0 / module.weight.shape[1])
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, 1e-4)
