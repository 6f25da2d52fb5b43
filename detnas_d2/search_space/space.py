"""Single-path search spaces as data, and paths through them as values."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import digest

# DetNAS (arXiv 1903.10979) section 3.2; the order fixes what an index means in released encodings.
SHUFFLE_OPS = ("3x3", "5x5", "7x7", "xception")

SKIP = "skip"
"""The identity: a layer less. Layers of stride 2 have no such candidate."""

Choices = tuple[int, ...]
"""Indices of a path's operations, one per layer."""


class PathError(InputError):
    """A path text or index list that the search space does not contain."""


@dataclass(frozen=True)
class LayerSpec:
    """One searchable layer.

    Args:
        index: position in the path, from 0.
        stage: stage of the layer, from 0.
        in_channels, out_channels: channels of its input and output.
        stride: 1 or 2; 2 in the first layer of each stage.
        reduction: input image size over the layer's *output* size (4, 8, 16 or 32).
        ops: names of the candidates, in index order.
        levels: pyramid levels that run through the layer; ``reduction`` is the first one's, each
            further one is half the size.
    """

    index: int
    stage: int
    in_channels: int
    out_channels: int
    stride: int
    reduction: int
    ops: tuple[str, ...]
    levels: int = 1


class PathSpace(ABC):
    """Base of all spaces of single paths: names, layers, and paths from text and indices.

    A subclass gives ``name``, ``stage_depths`` (layers of each group that ``/`` separates in
    texts) and ``layers``.
    """

    name: str
    stage_depths: tuple[int, ...]
    counted: ClassVar[str] = "the searchable layers"
    """What the costs of its paths are of, in words."""

    @property
    @abstractmethod
    def layers(self) -> tuple[LayerSpec, ...]:
        """Every layer with its candidates."""

    @property
    def num_layers(self) -> int:
        return sum(self.stage_depths)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of candidates of each layer."""
        return tuple(len(layer.ops) for layer in self.layers)

    def path(self, source: str | Iterable[int | str] | Path) -> Path:
        """The path that ``source`` describes.

        Args:
            source: op names or indices, as a list or as text; in text they are separated by
                blanks or commas, ``/`` may stand between stages and ``@`` before a resolution.

        Raises:
            PathError: naming the entry that is wrong and what was expected.
        """
        if isinstance(source, Path):
            if source.space != self:
                raise PathError(f"path of space {source.space.name!r} given to {self.name!r}")
            return source
        resolution = None
        if isinstance(source, str):
            source, resolution = resolution_of(source)
            entries: list[int | str] = list(self._split(source))
        else:
            entries = list(source)
        if len(entries) != self.num_layers:
            raise PathError(
                f"space {self.name!r} has {self.num_layers} layers, the path {source!r} has "
                f"{len(entries)}"
            )
        choices = tuple(self._choice(i, entry) for i, entry in enumerate(entries))
        return Path(self, choices, resolution)

    def _split(self, text: str) -> Iterator[str]:
        stages = text.replace(",", " ").split("/")
        if len(stages) > 1:
            depths = tuple(len(stage.split()) for stage in stages)
            if depths != self.stage_depths:
                raise PathError(
                    f"space {self.name!r} has stages of {self.stage_depths} blocks, the path "
                    f"{text!r} has {depths}"
                )
        for stage in stages:
            yield from stage.split()

    def _choice(self, layer: int, entry: int | str) -> int:
        ops = self.layers[layer].ops
        if isinstance(entry, str) and entry in ops:
            return ops.index(entry)
        try:
            index = int(entry)
        except ValueError:
            index = -1
        if isinstance(entry, bool) or index != entry and str(index) != entry:
            index = -1
        if not 0 <= index < len(ops):
            raise PathError(
                f"layer {layer}: {entry!r} is not an operation of it in space {self.name!r}; "
                f"expected one of {', '.join(ops)} or an index 0..{len(ops) - 1}"
            )
        return index

    def uniform_path(self, op: str) -> Path:
        """The path that chooses ``op`` everywhere (all-3x3 is the hand-made ShuffleNetV2).

        Raises:
            PathError: a layer does not have it.
        """
        return self.path([op] * self.num_layers)

    def first_path(self) -> Path:
        """The path of every layer's first candidate: an example."""
        return Path(self, (0,) * self.num_layers)

    def random_path(self, rng: random.Random) -> Path:
        """A path drawn uniformly from the space."""
        return Path(self, tuple(rng.randrange(n) for n in self.cardinalities))


def space_digest(space: PathSpace) -> str:
    """12 hexadecimal digits of the layers of a space: channels, strides, operations."""
    return digest([list(asdict(layer).values()) for layer in space.layers])


@dataclass(frozen=True)
class SearchSpace(PathSpace):
    """A DetNAS search space: a stem and stages of choice blocks.

    Args:
        name: the name used in configs.
        stem_channels: output channels of the 3x3 stride-2 stem.
        stage_channels: output channels of each stage.
        stage_depths: number of choice blocks of each stage.
        last_channels: output channels of the optional last 1x1 convolution.
        ops: names of the candidates of every choice block, or of those of each stage (see
            ``shuffle_ops``). ``skip`` is left out in the first block of a stage, of stride 2.
    """

    name: str
    stem_channels: int
    stage_channels: tuple[int, ...]
    stage_depths: tuple[int, ...]
    last_channels: int
    ops: tuple[str, ...] | tuple[tuple[str, ...], ...] = SHUFFLE_OPS

    def __post_init__(self) -> None:
        if len(self.stage_channels) != len(self.stage_depths):
            raise ValueError(
                f"space {self.name!r}: {len(self.stage_channels)} stage_channels but "
                f"{len(self.stage_depths)} stage_depths"
            )
        if any(depth < 1 for depth in self.stage_depths):
            raise ValueError(f"space {self.name!r}: every stage needs at least one block")
        if any(channels % 2 for channels in self.stage_channels):
            raise ValueError(f"space {self.name!r}: stage_channels must be even (channel split)")
        if len(self.stage_ops) != len(self.stage_depths):
            raise ValueError(
                f"space {self.name!r}: ops of {len(self.stage_ops)} stages but "
                f"{len(self.stage_depths)} stage_depths"
            )
        for stage, ops in enumerate(self.stage_ops, start=1):
            if len(set(ops)) != len(ops):
                raise ValueError(f"space {self.name!r}: stage {stage} names an operation twice")
            if not set(ops) - {SKIP}:
                raise ValueError(
                    f"space {self.name!r}: stage {stage} needs an operation besides {SKIP!r}"
                )

    @property
    def stage_ops(self) -> tuple[tuple[str, ...], ...]:
        """Names of the candidates of each stage."""
        stages: list[tuple[str, ...]] = [ops for ops in self.ops if isinstance(ops, tuple)]
        if stages:
            return tuple(stages)
        return (tuple(str(op) for op in self.ops),) * len(self.stage_depths)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        specs: list[LayerSpec] = []
        in_channels = self.stem_channels
        stages = zip(self.stage_channels, self.stage_depths, self.stage_ops, strict=True)
        for stage, (channels, depth, all_ops) in enumerate(stages):
            for position in range(depth):
                stride = 2 if position == 0 else 1
                reduction = 4 * 2**stage
                ops = all_ops if stride == 1 else tuple(op for op in all_ops if op != SKIP)
                specs.append(
                    LayerSpec(len(specs), stage, in_channels, channels, stride, reduction, ops)
                )
                in_channels = channels
        return tuple(specs)


@dataclass(frozen=True)
class Path:
    """One choice per layer of a search space: an architecture, as a value.

    ``str(path)`` is its canonical text, op names with ``/`` between stages.

    Attributes:
        resolution: shortest side of the images that it is for, where that is searched too; its text
            then ends with it, as in ``@160``. None: those of the config.
    """

    space: PathSpace = field(repr=False)
    choices: tuple[int, ...]
    resolution: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(int(c) for c in self.choices))
        cardinalities = self.space.cardinalities
        if len(self.choices) != len(cardinalities) or not all(
            0 <= c < n for c, n in zip(self.choices, cardinalities, strict=True)
        ):
            raise PathError(f"{self.choices} is no path of space {self.space.name!r}")

    def at(self, resolution: int | None) -> Path:
        """The same for other images."""
        return replace(self, resolution=resolution)

    @property
    def ops(self) -> tuple[str, ...]:
        layers = self.space.layers
        return tuple(layer.ops[c] for layer, c in zip(layers, self.choices, strict=True))

    def __iter__(self) -> Iterator[int]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def __str__(self) -> str:
        names, texts = iter(self.ops), []
        for depth in self.space.stage_depths:
            texts.append(" ".join(next(names) for _ in range(depth)))
        text = " / ".join(texts)
        return text if self.resolution is None else f"{text} @{self.resolution}"


def resolution_of(text: str) -> tuple[str, int | None]:
    """Text of a path without its resolution, and that; None: it has none.

    Raises:
        PathError: what it ends with is no resolution.
    """
    ops, sign, resolution = text.partition("@")
    if not sign:
        return text, None
    if not resolution.strip().isdecimal() or int(resolution) < 1:
        raise PathError(
            f"the path {text!r} ends with '@{resolution}': expected the shortest side of its "
            "images, as in '@160'"
        )
    return ops, int(resolution)


# Channels and depths: DetNAS tables 1 and 2 and the released code (small: c1, n1; large: c2, n2).
# "detnas_demo" (the built-in demo on two CPU cores) and "detnas_tiny" are this project's own.
# "shufflenetv2_40" is for the hand-made ShuffleNetV2-40 that the paper compares the large space
# with (uniform path "3x3"), "scaled to 1.3G" to widths that were not released: here those of the
# large space times 1.11, to multiples of 8, the most hundredths whose body takes no more than
# DetNASNet's 1,269M.
# The elastic spaces are this project's too: DetNAS's depths and channels, with wider blocks, and
# blocks that may be skipped.
_DEMO_OPS = ("3x3", "7x7", "ir_k5_e3_d1", "conv_k3", SKIP)
ELASTIC_OPS = (*SHUFFLE_OPS, "3x3_e2", "5x5_e2", "7x7_e2", SKIP)
SPACES: dict[str, SearchSpace] = {
    space.name: space
    for space in (
        SearchSpace("detnas_small", 16, (64, 160, 320, 640), (4, 4, 8, 4), 1024),
        SearchSpace("detnas_large", 48, (96, 240, 480, 960), (8, 8, 16, 8), 1024),
        SearchSpace("detnas_3.8G", 72, (172, 432, 864, 1728), (8, 8, 16, 8), 1728),
        SearchSpace("shufflenetv2_40", 56, (104, 264, 536, 1064), (8, 8, 16, 8), 1024),
        SearchSpace("detnas_demo", 16, (24, 40, 64, 96), (2, 3, 3, 2), 256, _DEMO_OPS),
        SearchSpace("detnas_tiny", 8, (24, 48, 96, 192), (1, 1, 2, 1), 256),
        SearchSpace(
            "detnas_small_elastic", 16, (64, 160, 320, 640), (4, 4, 8, 4), 1024, ELASTIC_OPS
        ),
        SearchSpace(
            "detnas_large_elastic", 48, (96, 240, 480, 960), (8, 8, 16, 8), 1024, ELASTIC_OPS
        ),
    )
}


def get_space(name: str) -> SearchSpace:
    """The search space called ``name``; ``PathError`` lists the names there are."""
    try:
        return SPACES[name]
    except KeyError:
        raise PathError(
            f"MODEL.DETNAS.SPACE is {name!r}: expected one of {', '.join(SPACES)}"
        ) from None
