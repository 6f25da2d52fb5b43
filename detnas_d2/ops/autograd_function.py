"""Functions with a gradient, made of two functions; arguments and results may be lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor


def function(forward: Callable, backward: Callable) -> Callable:
    """A ``torch.autograd.Function`` of ``forward(ctx, *args)`` and ``backward(ctx, *grads)``."""
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    kind: Any = type("Function", (torch.autograd.Function,), methods)
    return kind.apply


def function_of_lists(forward: Callable, backward: Callable) -> Callable:
    """The same where arguments, results and gradients may be lists.

    Autograd does not look into lists: their items become arguments and results of their own.
    ``backward`` may return None for a list.
    """

    def flat_forward(ctx, sizes, *items):
        output = forward(ctx, *_nested(items, sizes))
        results, ctx.result_sizes = _flat((output,) if isinstance(output, Tensor) else output)
        ctx.sizes = tuple(sizes)
        sizes[:] = ctx.result_sizes  # for the caller
        return tuple(results)

    def flat_backward(ctx, *grads):
        found: list[object] = [None]
        for grad, size in zip(
            backward(ctx, *_nested(grads, ctx.result_sizes)), ctx.sizes, strict=True
        ):
            found += [grad] if size is None else grad or [None] * size
        return tuple(found)

    apply_flat = function(flat_forward, flat_backward)

    def apply(*args):
        items, sizes = _flat(args)
        results = apply_flat(sizes, *items)
        return results[0] if sizes == [None] else _nested(results, sizes)

    return apply


def _flat(values: Iterable[object]) -> tuple[list[object], list[int | None]]:
    """All values, lists' items one by one, and the sizes of the lists; None for what is none."""
    items: list[object] = []
    sizes: list[int | None] = []
    for value in values:
        items += value if isinstance(value, list) else [value]
        sizes.append(len(value) if isinstance(value, list) else None)
    return items, sizes


def _nested(items: Iterable[object], sizes: Sequence[int | None]) -> tuple[object, ...]:
    rest = iter(items)
    return tuple(next(rest) if size is None else list(islice(rest, size)) for size in sizes)
