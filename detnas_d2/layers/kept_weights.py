"""Weights kept as operators read them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import operator

if has_extension():
    _digest = operator("digest")

MOST_BYTES = 2**29
"""That one block of :func:`weights_stay` keeps; what comes first stays, as in a loop over several
candidates what was used last comes again last."""


class _Staying:
    """What modules made of tensors that stay as they are.

    Args:
        model: whose modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = set(model.modules())
        self._room = MOST_BYTES
        self._made: dict[Hashable, tuple[Sequence[Tensor], Any]] = {}

    def find(self, module: object, tensors: Sequence[Tensor], *about: Hashable) -> Any:
        """What was kept of these tensors and ``about``, or None."""
        found = self._made.get((module, about, *map(id, tensors)))
        return None if found is None else found[1]

    def keep(
        self, made: Any, size: int, module: object, tensors: Sequence[Tensor], *about: Hashable
    ) -> None:
        """Keeps what takes ``size`` bytes, while there is room for it."""
        if size <= self._room:
            self._room -= size  # the tensors are held too: none of their ids can be another's
            self._made[(module, about, *map(id, tensors))] = (tensors, made)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.blocks: list[_Staying] = []


_own = _OfThread()


@contextmanager
def weights_stay(model: nn.Module) -> Iterator[None]:
    """Within the block, a loop over images, nothing writes to the model's parameters and buffers.

    On the CPU, what modules make of them (BatchNorms folded in, weights as operators read them) is
    then looked up by value once, and afterwards by which tensors it is made of, without reading
    them. Other tensors in their place, such as another candidate's statistics, are followed; a
    write within the block, or another ``eps``, is not. It holds for this thread alone and ends with
    the block, whose next forward pass follows every write.

    What was made is kept until the block ends, up to ``MOST_BYTES`` of it.
    """
    blocks, own = _own.blocks, _Staying(model)
    blocks.append(own)
    try:
        yield
    finally:
        blocks.remove(own)


def staying(module: object) -> _Staying | None:
    """What is kept of the module within the innermost of the blocks that it is in."""
    for block in reversed(_own.blocks):
        if module in block.modules:
            return block
    return None


class KeepsWeights:
    """Of a layer: keeps its weight, on the CPU, in another form while its values stay the same."""

    weight: Tensor

    def __getstate__(self) -> dict[str, Any]:
        """Without the other form, which copies and files need not have."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def kept(self, made: Callable[[], Tensor], *about: Hashable) -> Tensor:
        """What ``made`` makes of the weight, anew only if that or ``about`` is another."""
        block, parts = staying(self), (self.weight,)
        found = None if block is None else block.find(self, parts, *about)
        if found is None:
            found = self._looked_up(made, *about)
            if block is not None:
                block.keep(found, found.nbytes, self, parts, *about)
        return found

    def _looked_up(self, made: Callable[[], Tensor], *about: Hashable) -> Tensor:
        key, found = (*_digest([self.weight], [1]), *about), self.__dict__.get("_kept")
        if found is None or found[0] != key:
            found = self.__dict__["_kept"] = (key, made())
        return found[1]
