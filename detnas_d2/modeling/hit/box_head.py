"""The Hit-Detector box head: searchable layers, one fully connected layer."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from torch import Tensor, nn

from detnas_d2.modeling.hit.backbone import init_convolutions
from detnas_d2.modeling.hit.build import hit_network, part_layers
from detnas_d2.modeling.searchable_layers import PartLayers


@ROI_BOX_HEAD_REGISTRY.register()
class HitBoxHead(nn.Module):
    """Layers of the head part on pooled regions, then a fully connected layer and ReLU.

    Input (R, C, S, S), output (R, fc_channels).

    Args:
        input_shape: channels, height and width of a pooled region.
        layers: the searchable layers.
        fc_channels: width of the fully connected layer.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, layers: PartLayers, fc_channels: int) -> None:
        super().__init__()
        if input_shape.channels != layers.layers[0].in_channels:
            raise ValueError(
                f"the head's layers have {layers.layers[0].in_channels} channels, its input "
                f"{input_shape.channels}"
            )
        self.layers = layers
        inputs = input_shape.channels * input_shape.height * input_shape.width
        self.fc = nn.Linear(inputs, fc_channels)
        init_convolutions(self.layers)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        network = hit_network(cfg)
        return {
            "input_shape": input_shape,
            "layers": part_layers(cfg, "head", network.head_layer_specs),
            "fc_channels": network.fc_channels,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=self.fc.out_features)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(len(self.layers)):
            x = self.layers(index, x)
        return F.relu_(self.fc(x.flatten(1)))
