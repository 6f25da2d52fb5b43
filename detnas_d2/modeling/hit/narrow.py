"""A detector at fewer channels of its neck and head than it was built with.

Every tensor of the narrower detector is a corner of the wide one's: a layer has its first output
channels, which read the first input channels (slimmable networks, arXiv 1812.08928). Which layers
those are, and where convolutions have groups or blocks a shortcut then, is read off the narrower
detector, built without memory; so whatever stands on the neck (region proposals, heads of all
kinds) follows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detnas_d2.modeling.weights_fit import WeightsError

_TENSORS = ("_parameters", "_buffers")  # of a module, by name
_CANDIDATE = re.compile(r"^.*?\.candidates\.[^.]+")


@dataclass(frozen=True)
class Difference:
    """How a module of a narrower detector differs.

    Args:
        module: its name in the model that a config builds.
        candidate: name of the candidate of a layer that it belongs to, "" for none.
        shapes: of its own parameters and buffers that are smaller.
        numbers: attributes that differ, e.g. ``groups`` of a depthwise convolution.
    """

    module: str
    candidate: str
    shapes: Mapping[str, torch.Size]
    numbers: Mapping[str, int]


class NeckWidths:
    """Numbers of channels that the neck and head of a supernet run at.

    Args:
        channels: rising; the supernet is built with the last.
        build: makes the supernet's model with one of them, on the meta device.
    """

    def __init__(self, channels: tuple[int, ...], build: Callable[[int], nn.Module]) -> None:
        self.channels = channels
        self._build = build
        self._differences: dict[int, tuple[Difference, ...]] = {}

    @contextmanager
    def at(
        self,
        channels: int,
        modules: Mapping[str, nn.Module],
        prefix: str,
        candidates: Collection[str],
    ) -> Iterator[None]:
        """Within the block the model is the narrower one; gradients and running statistics are of
        the corners.

        Args:
            modules: by name.
            prefix: of the names of the model in ``modules``, which it may be a part of.
            candidates: names of those that run; others stay as they are.
        """
        if channels == self.channels[-1]:
            yield
            return
        if not self._differences:
            *fewer, most = self.channels
            wide = self._build(most)  # afresh: training has changed numbers of the model itself
            self._differences = {c: _differences(self._build(c), wide) for c in fewer}
        undo: list[tuple[dict[str, object], str, object]] = []
        try:
            for difference in self._differences[channels]:
                if not difference.candidate or prefix + difference.candidate in candidates:
                    _narrow(modules[prefix + difference.module], difference, undo)
            yield
        finally:
            for values, key, value in reversed(undo):
                values[key] = value


def corner(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The leading part of a tensor."""
    return tensor[tuple(slice(size) for size in shape)]


def _differences(narrow: nn.Module, wide: nn.Module) -> tuple[Difference, ...]:
    """What ``wide`` would have to change to become ``narrow``; modules by their names below the
    model that the neck is in.
    """
    widths, found = dict(wide.named_modules()), []
    for name, module in narrow.named_modules():
        other = widths[name]
        tensors = dict(_own_tensors(other))
        shapes = {
            key: tensor.shape
            for key, tensor in _own_tensors(module)
            if tensor.shape != tensors[key].shape
        }
        numbers = {
            key: value
            for key, value in vars(module).items()
            if type(value) in (int, bool) and value != vars(other)[key]
        }
        if shapes or numbers:
            candidate = _CANDIDATE.match(name)
            found.append(Difference(name, candidate[0] if candidate else "", shapes, numbers))
    return tuple(found)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _narrow(
    module: nn.Module, difference: Difference, undo: list[tuple[dict[str, object], str, object]]
) -> None:
    own = vars(module)
    for kind in _TENSORS:
        tensors = own[kind]
        for key in tensors.keys() & difference.shapes.keys():
            undo.append((tensors, key, tensors[key]))
            tensors[key] = corner(tensors[key], difference.shapes[key])
    for key, value in difference.numbers.items():
        undo.append((own, key, own[key]))
        own[key] = value


def narrowed_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], key: str
) -> dict[str, Tensor]:
    """``state`` with the corners that a model with fewer channels of neck and head has.

    Args:
        expected: the model's.
        key: of a tensor of the neck that has as many rows as it has channels.

    Raises:
        WeightsError: the model has more channels than the weights.
    """
    if key not in state or key not in expected:
        return dict(state)
    wide, narrow = len(state[key]), len(expected[key])
    if narrow > wide:
        raise WeightsError(
            f"the weights are of a neck of {wide} channels, the model's has {narrow}; expected at "
            f"most {wide}, see MODEL.HIT.NETWORK and MODEL.HIT.NECK_CHANNELS"
        )

    def fitting(name: str, tensor: Tensor) -> Tensor:
        shape = expected[name].shape if name in expected else tensor.shape
        # Other differences, in the number of classes, are none of this one's.
        follows = len(shape) == tensor.dim() and all(
            own == there or own * wide == there * narrow
            for own, there in zip(shape, tensor.shape, strict=True)
        )
        return corner(tensor, shape) if follows else tensor

    return {name: fitting(name, tensor) for name, tensor in state.items()}
