"""Memory outside of graphs that they read their input from and leave their results in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

Layout = tuple[object, ...]

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def layout(t: Tensor) -> Layout:
    """Shape, strides, dtype and device."""
    return (tuple(t.shape), t.stride(), t.dtype, t.device)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same layout and bits, NaNs included."""
    if layout(a) != layout(b) or a.is_complex():
        return False
    dtype = _BITS[a.element_size()]
    return torch.equal(a.view(dtype), b.view(dtype))


def copied(t: Tensor) -> Tensor:
    """A copy with the same strides."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)


class Buffers:
    """A tensor for each place and layout, made when it is first asked for.

    All graphs share them: a graph's input is copied in before it runs, its results are copied out
    before another does.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, Layout], Tensor] = {}

    def like(self, t: Tensor, place: object) -> Tensor:
        """An own one for each ``place``; its values are anything."""
        key = (place, layout(t))
        if key not in self._known:
            self._known[key] = torch.empty_strided(
                t.shape, t.stride(), dtype=t.dtype, device=t.device
            )
        return self._known[key]

    def clear(self) -> None:
        self._known.clear()


class Results:
    """Where a graph leaves its results: maps one by one, vectors and scalars of a dtype joined, as
    statistics are hundreds, of which each would be a launch.

    Args:
        like: tensors of the layouts that every run of the graph makes.
    """

    def __init__(self, like: Sequence[Tensor], buffers: Buffers) -> None:
        self._shapes = [t.shape for t in like]
        groups: defaultdict[torch.dtype, list[int]] = defaultdict(list)
        self._maps: dict[int, Tensor] = {}
        for i, t in enumerate(like):
            if t.dim() < 2:
                groups[t.dtype].append(i)
            else:
                self._maps[i] = buffers.like(t, i)
        self._joined: list[tuple[list[int], Tensor]] = []
        for dtype, places in groups.items():
            whole = like[places[0]].new_empty(sum(like[i].numel() for i in places))
            self._joined.append((places, buffers.like(whole, ("vectors", dtype))))

    def write(self, found: Sequence[Tensor]) -> None:
        """Part of the graph: copies what it made."""
        for i, buffer in self._maps.items():
            buffer.copy_(found[i])
        for places, buffer in self._joined:
            torch.cat([found[i].reshape(-1) for i in places], out=buffer)

    def spoil(self) -> None:
        """Turns every bit, so that nothing is taken for the result of a run that did not write."""
        for buffer in (*self._maps.values(), *(joined for _, joined in self._joined)):
            buffer.view(_BITS[buffer.element_size()]).bitwise_not_()

    def read(self) -> list[Tensor]:
        """Copies that later runs leave alone, vectors as views of one."""
        out: list[Tensor] = [torch.empty(0)] * len(self._shapes)
        for i, buffer in self._maps.items():
            out[i] = copied(buffer)
        for places, buffer in self._joined:
            sizes = [self._shapes[i].numel() for i in places]
            for i, part in zip(places, torch.split(buffer.clone(), sizes), strict=True):
                out[i] = part.view(self._shapes[i])
        return out
