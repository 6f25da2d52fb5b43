"""A layer of a supernet: all candidates side by side, one of them run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ChoiceBlock(nn.Module):
    """Candidates of one layer, of which a forward pass runs exactly one.

    Args:
        ops: names of the candidates, in index order; also their names in the state dict.
        build: makes the module of a candidate from its name.
    """

    def __init__(self, ops: tuple[str, ...], build: Callable[[str], nn.Module]) -> None:
        super().__init__()
        self.ops = ops
        self.candidates = nn.ModuleDict({op: build(op) for op in ops})

    def forward(self, x: Tensor, choice: int) -> Tensor:
        """Runs candidate ``choice`` (an index into ``ops``)."""
        return self.candidates[self.ops[choice]](x)
