"""Weights kept as operators read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from detnas_d2.ops.extension import has_extension
from detnas_d2.ops.registration import operator

if has_extension():
    _digest = operator("digest")


class KeepsWeights:
    """Of a layer: keeps its weight, on the CPU, in another form while its values stay the same."""

    weight: Tensor

    def __getstate__(self) -> dict[str, Any]:
        """Without the other form, which copies and files need not have."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def kept(self, made: Callable[[], Tensor], *about: object) -> Tensor:
        """What ``made`` makes of the weight, anew only if that or ``about`` is another."""
        key, found = (_digest([self.weight]), *about), self.__dict__.get("_kept")
        if found is None or found[0] != key:
            found = self.__dict__["_kept"] = (key, made())
        return found[1]
