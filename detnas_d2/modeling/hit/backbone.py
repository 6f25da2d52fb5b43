"""The Hit-Detector backbone: stem, searchable layers, fixed tail."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling import Backbone
from torch import Tensor, nn

from detnas_d2.layers import ConvNormAct, NormFactory
from detnas_d2.modeling.searchable_layers import PartLayers
from detnas_d2.search_space.hit_network import HitNetwork
from detnas_d2.search_space.operations import BODY_RULES, build_operation


class HitBackbone(Backbone):
    """Stem, layers and tail of a :class:`HitNetwork`.

    Input: images (N, 3, H, W). Output: dict of features "stage1" ... "stage4" with strides 4, 8,
    16, 32; the tail belongs to the last.

    Args:
        network: the frame.
        layers: its searchable layers, fixed or not.
        norm: makes a normalisation layer from a channel number.
        out_features: names of the features to return.
    """

    def __init__(
        self,
        network: HitNetwork,
        layers: PartLayers,
        *,
        norm: NormFactory,
        out_features: Sequence[str],
    ) -> None:
        super().__init__()
        self.network = network
        self.stem = ConvNormAct(3, network.stem_channels, 3, norm=norm, stride=2, bias=True)
        self.stem_ops = _fixed_chain(network.stem_channels, network.stem_ops, norm)
        self.layers = layers
        self.tail = _fixed_chain(network.stage_channels[-1][-1], network.tail, norm)
        ends = {layer.stage: layer.index for layer in layers.layers}
        self._feature_after = {index: f"stage{stage + 1}" for stage, index in ends.items()}
        self._out_feature_strides = {f"stage{s + 1}": 4 * 2**s for s in ends}
        self._out_feature_channels = {
            f"stage{s + 1}": c for s, c in enumerate(network.feature_channels)
        }
        if not out_features or set(out_features) - set(self._out_feature_strides):
            raise ValueError(
                f"out_features {list(out_features)}: expected some of "
                f"{', '.join(self._out_feature_strides)}"
            )
        self._out_features = list(out_features)
        init_convolutions(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.dim() != 4:
            raise ValueError(f"expected images (N, 3, H, W), got shape {tuple(x.shape)}")
        outputs = {}
        x = self.stem_ops(self.stem(x))
        last = len(self.layers) - 1
        for index in range(len(self.layers)):
            x = self.layers(index, x)
            if index == last:
                x = self.tail(x)
            name = self._feature_after.get(index)
            if name in self._out_features:
                outputs[name] = x
        return outputs


def _fixed_chain(channels: int, ops: Sequence[tuple[str, int]], norm: NormFactory) -> nn.Sequential:
    """Operations one after the other at stride 1, the first with ``channels`` input channels."""
    chain: list[nn.Module] = []
    for op, width in ops:
        chain.append(build_operation(op, channels, width, stride=1, norm=norm, rules=BODY_RULES))
        channels = width
    return nn.Sequential(*chain)


def init_convolutions(module: nn.Module) -> None:
    """Initial weights as released: convolutions Kaiming normal by fan-out, biases 0."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
