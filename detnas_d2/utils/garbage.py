"""The garbage collector while many small objects come to stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_SELDOM = 50_000, 20, 100


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Looks for circles among objects a hundred times less often in the block.

    Of a large dataset these would be looked for again and again among all that was read so far.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
