"""The fixed frame of a Hit-Detector: depths, channels and levels of its three parts."""

from __future__ import annotations

from dataclasses import dataclass

from detnas_d2.search_space.operations import BODY_RULES, NECK_RULES, OpRules
from detnas_d2.search_space.space import LayerSpec
from detnas_d2.utils.errors import InputError

PARTS = ("backbone", "neck", "head")


@dataclass(frozen=True)
class HitNetwork:
    """Everything about a Hit-Detector but its operations.

    Args:
        name: the name used in configs.
        stage_channels: output channels of every searchable backbone layer, stage by stage; the
            first layer of a stage has stride 2.
        stem_channels: output channels of the 3x3 stride-2 stem.
        stem_ops: fixed (operation, output channels) between the stem and the first stage.
        tail: fixed (operation, output channels) after the last stage; part of its feature.
        neck_channels: channels of the pyramid and of the head's layers.
        head_layers: number of searchable layers of the head.
        fc_channels: width of the head's fully connected layer.
    """

    name: str
    stage_channels: tuple[tuple[int, ...], ...]
    stem_channels: int = 16
    stem_ops: tuple[tuple[str, int], ...] = ()
    tail: tuple[tuple[str, int], ...] = ()
    neck_channels: int = 256
    head_layers: int = 4
    fc_channels: int = 512

    @property
    def stage_depths(self) -> tuple[int, ...]:
        return tuple(len(stage) for stage in self.stage_channels)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the backbone's features stage1, stage2, ..."""
        channels = [stage[-1] for stage in self.stage_channels]
        if self.tail:
            channels[-1] = self.tail[-1][1]
        return tuple(channels)

    def depths(self, part: str, levels: int = 4) -> tuple[int, ...]:
        """Number of searchable layers of each group (stage, pyramid step, head) of a part."""
        if part == "backbone":
            return self.stage_depths
        if part == "neck":
            return (levels, levels)
        if part == "head":
            return (self.head_layers,)
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}")

    def backbone_layers(self, ops: tuple[str, ...]) -> tuple[LayerSpec, ...]:
        """The searchable layers of the backbone with candidates ``ops``."""
        specs: list[LayerSpec] = []
        channels = self.stem_ops[-1][1] if self.stem_ops else self.stem_channels
        for stage, widths in enumerate(self.stage_channels):
            for position, width in enumerate(widths):
                stride = 2 if position == 0 else 1
                reduction = 4 * 2**stage
                specs.append(LayerSpec(len(specs), stage, channels, width, stride, reduction, ops))
                channels = width
        return tuple(specs)

    def neck_layers(
        self,
        ops: tuple[str, ...],
        in_channels: tuple[int, ...] | None = None,
        strides: tuple[int, ...] = (4, 8, 16, 32),
    ) -> tuple[LayerSpec, ...]:
        """The searchable layers of the neck: one per level, then again one per level.

        Args:
            in_channels: channels of the levels; default: those of this network's backbone.
            strides: strides of the levels.
        """
        width = self.neck_channels
        first = in_channels or self.feature_channels[-len(strides) :]
        specs: list[LayerSpec] = []
        for step, channels in enumerate((first, (width,) * len(strides))):
            for cin, stride in zip(channels, strides, strict=True):
                specs.append(LayerSpec(len(specs), step, cin, width, 1, stride, ops))
        return tuple(specs)

    def head_layer_specs(self, ops: tuple[str, ...]) -> tuple[LayerSpec, ...]:
        """The searchable layers of the head, which see pooled regions (reduction 1)."""
        width = self.neck_channels
        return tuple(LayerSpec(i, 0, width, width, 1, 1, ops) for i in range(self.head_layers))

    def dense_head_layers(
        self, ops: tuple[str, ...], strides: tuple[int, ...]
    ) -> tuple[LayerSpec, ...]:
        """The searchable layers of a one-stage head, which see every pyramid level.

        Args:
            strides: strides of the levels, each twice the one before.
        """
        width = self.neck_channels
        return tuple(
            LayerSpec(i, 0, width, width, 1, strides[0], ops, levels=len(strides))
            for i in range(self.head_layers)
        )

    def layers(self, part: str, ops: tuple[str, ...]) -> tuple[LayerSpec, ...]:
        """The searchable layers of a part on this network's own backbone."""
        if part == "backbone":
            return self.backbone_layers(ops)
        if part == "neck":
            return self.neck_layers(ops)
        if part == "head":
            return self.head_layer_specs(ops)
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}")


def rules_of(part: str) -> OpRules:
    """Rules of a part for the operations that the released parts treat differently."""
    return NECK_RULES if part == "neck" else BODY_RULES


# "hit": the released network. "hit_paper": the paper's text; it does not reproduce the parameter
# counts of the paper's own table, the release does. "hit_half": half as deep, for the screening.
# "mobilenet_v2" and "fbnet_c": the frames of these baselines. FBNet-C's last convolution is its
# coarsest feature, as in the paper's 21.40M parameters; MobileNetV2's is in the paper's 19.61M
# though no feature is made from it, and left out here.
# "hit_tiny" and "hit_tiny_half" are this project's own: the built-in demo on two CPU cores.
_TAIL = (("ir_k3_e3_d1", 1024), ("conv_k1", 2048))
HIT_NETWORKS: dict[str, HitNetwork] = {
    network.name: network
    for network in (
        HitNetwork(
            "hit",
            ((48,) * 4, (96,) * 4, (184,) * 4 + (256,) * 4, (352,) * 4),
            tail=_TAIL,
        ),
        HitNetwork("hit_paper", ((48,) * 4, (96,) * 4, (256,) * 8, (352,) * 4)),
        HitNetwork("hit_half", ((48,) * 2, (96,) * 2, (256,) * 4, (352,) * 2)),
        HitNetwork(
            "mobilenet_v2",
            ((24,) * 2, (32,) * 3, (64,) * 4 + (96,) * 3, (160,) * 3 + (320,)),
            stem_channels=32,
            stem_ops=(("sep_k3_d1", 16),),
        ),
        HitNetwork(
            "fbnet_c",
            ((24,) * 4, (32,) * 4, (64,) * 4 + (112,) * 4, (184,) * 4 + (352,)),
            stem_ops=(("ir_k3_e1_d1", 16),),
            tail=(("conv_k1", 1984),),
        ),
        HitNetwork(
            "hit_tiny",
            ((16,) * 2, (24,) * 2, (40,) * 2, (64,) * 2),
            stem_channels=8,
            neck_channels=32,
            head_layers=2,
            fc_channels=64,
        ),
        HitNetwork(
            "hit_tiny_half",
            ((16,), (24,), (40,), (64,)),
            stem_channels=8,
            neck_channels=32,
            head_layers=2,
            fc_channels=64,
        ),
    )
}


def get_hit_network(name: str) -> HitNetwork:
    """The network frame called ``name``; ``InputError`` lists the names there are."""
    try:
        return HIT_NETWORKS[name]
    except KeyError:
        raise InputError(
            f"no Hit-Detector network {name!r}; expected one of {', '.join(HIT_NETWORKS)}"
        ) from None
