"""The searchable layers of one part of a detector: fixed, relaxed, or one choice at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from detnas_d2.layers import NormFactory
from detnas_d2.modeling.choice_block import ChoiceBlock
from detnas_d2.modeling.mixed_block import MixedBlock
from detnas_d2.search_space import LayerSpec
from detnas_d2.search_space.hit_network import HitNetwork, rules_of
from detnas_d2.search_space.operations import build_operation

BuildOperation = Callable[[LayerSpec, str], nn.Module]


def operation_builder(part: str, norm: NormFactory) -> BuildOperation:
    """Builder of the operations of a Hit-Detector part."""

    def build(layer: LayerSpec, op: str) -> nn.Module:
        return build_operation(
            op,
            layer.in_channels,
            layer.out_channels,
            stride=layer.stride,
            norm=norm,
            rules=rules_of(part),
        )

    return build


class PartLayers(nn.Module):
    """The layers of one part; called as ``layers(index, x)``, input and output (N, C, H, W)."""

    def __init__(self, part: str, layers: Sequence[LayerSpec]) -> None:
        super().__init__()
        self.part = part
        self.layers = tuple(layers)

    def __len__(self) -> int:
        return len(self.layers)


class FixedLayers(PartLayers):
    """One operation per layer: a decoded part.

    Args:
        ops: name of each layer's operation.
    """

    def __init__(
        self, part: str, layers: Sequence[LayerSpec], ops: Sequence[str], build: BuildOperation
    ) -> None:
        super().__init__(part, layers)
        self.ops = tuple(ops)
        self.blocks = nn.ModuleList(
            build(layer, op) for layer, op in zip(self.layers, self.ops, strict=True)
        )

    def forward(self, index: int, x: Tensor) -> Tensor:
        return self.blocks[index](x)


class RelaxedLayers(PartLayers):
    """All candidates of every layer, weighted by the softmax of architecture parameters (eq. 5).

    ``alpha`` (layers, candidates) is what the paper calls alpha in the backbone, beta in the neck
    and gamma in the head; where a layer does not have a candidate its probability is 0. Candidates
    can be removed from all layers of the part; which are left is part of the state dict.

    Args:
        recompute: see :class:`MixedBlock`.

    Attributes:
        ops: names of the candidates of all layers together, each once.
        offered: which of them a layer has (layers, candidates).
    """

    remaining: Tensor
    offered: Tensor

    def __init__(
        self,
        part: str,
        layers: Sequence[LayerSpec],
        build: BuildOperation,
        *,
        recompute: bool = True,
    ) -> None:
        super().__init__(part, layers)
        self.ops = tuple(dict.fromkeys(op for layer in self.layers for op in layer.ops))
        self.blocks = nn.ModuleList(
            MixedBlock(layer.ops, partial(build, layer), recompute=recompute)
            for layer in self.layers
        )
        self.alpha = nn.Parameter(torch.zeros(len(self.layers), len(self.ops)))
        self.register_buffer("remaining", torch.ones(len(self.ops), dtype=torch.bool))
        offered = torch.tensor([[op in layer.ops for op in self.ops] for layer in self.layers])
        self.register_buffer("offered", offered, persistent=False)
        # Column of alpha of each of a layer's candidates.
        self._columns = [[self.ops.index(op) for op in layer.ops] for layer in self.layers]
        self._active = tuple(range(len(self.ops)))
        self.register_load_state_dict_post_hook(_refresh)  # no lambda: models are pickled

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the candidates that are left."""
        return self._active

    @property
    def active_ops(self) -> tuple[str, ...]:
        """Names of the candidates that are left."""
        return tuple(self.ops[i] for i in self._active)

    def remove(self, op: str) -> None:
        """Removes a candidate from all layers.

        Raises:
            ValueError: it is not among those left, or is the last one of a layer.
        """
        left = set(self.active_ops)
        if op not in left or any(left.intersection(layer.ops) == {op} for layer in self.layers):
            raise ValueError(f"cannot remove {op!r} from part {self.part!r}: {self.active_ops}")
        self.remaining[self.ops.index(op)] = False
        self._refresh()

    def _refresh(self) -> None:
        # Kept as a tuple too: reading the buffer in every forward would synchronise a GPU.
        self._active = tuple(self.remaining.nonzero().flatten().tolist())

    def probabilities(self) -> Tensor:
        """Softmax over a layer's remaining candidates (layers, candidates); 0 for the others."""
        absent = ~(self.remaining & self.offered).to(self.alpha.device)
        return self.alpha.masked_fill(absent, float("-inf")).softmax(dim=1)

    def entropy(self) -> Tensor:
        """Mean entropy of a layer's choice in nats; at most log(candidates)."""
        p = self.probabilities()
        return -torch.special.xlogy(p, p).sum(1).mean()

    def decode(self) -> tuple[str, ...]:
        """The most probable operation of every layer (the first of equals)."""
        return tuple(self.ops[i] for i in self.probabilities().argmax(dim=1).tolist())

    def forward(self, index: int, x: Tensor) -> Tensor:
        absent = ~(self.remaining & self.offered[index])
        weights = self.alpha[index].masked_fill(absent, float("-inf")).softmax(dim=0)
        columns = self._columns[index]
        if columns != list(range(len(self.ops))):
            weights = weights[columns]
        active = None
        if len(self._active) < len(self.ops):
            active = [i for i, column in enumerate(columns) if column in self._active]
        return self.blocks[index](x, weights, active)


def _refresh(layers: RelaxedLayers, keys: object) -> None:
    layers._refresh()


class ChoiceLayers(PartLayers):
    """All candidates of every layer, one of which is run: single-path training and evolution.

    Args:
        network: the frame that the part belongs to.
    """

    def __init__(
        self,
        part: str,
        layers: Sequence[LayerSpec],
        build: BuildOperation,
        *,
        network: HitNetwork,
    ) -> None:
        super().__init__(part, layers)
        self.network = network
        self.blocks = nn.ModuleList(
            ChoiceBlock(layer.ops, partial(build, layer)) for layer in self.layers
        )
        self._choices: tuple[int, ...] | None = None

    @contextmanager
    def active(self, choices: tuple[int, ...]) -> Iterator[None]:
        """Makes ``choices`` (an index per layer) the ones that run in a ``with`` block."""
        if len(choices) != len(self.layers):
            raise ValueError(f"part {self.part!r} has {len(self.layers)} layers, not {choices}")
        previous, self._choices = self._choices, tuple(choices)
        try:
            yield
        finally:
            self._choices = previous

    def forward(self, index: int, x: Tensor) -> Tensor:
        if self._choices is None:
            raise RuntimeError(
                f"no path is active in part {self.part!r}: call it inside `with activate(...)`"
            )
        return self.blocks[index](x, self._choices[index])


def relaxed_parts(model: nn.Module) -> dict[str, RelaxedLayers]:
    """Part name -> relaxed layers, of all relaxed parts inside ``model``."""
    return {m.part: m for m in model.modules() if isinstance(m, RelaxedLayers)}
