"""TorchScript without its executor's optimisations, so that a call rounds as the ones after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from detnas_d2.utils.compat import drop_script_plans


@contextmanager
def plain_torchscript() -> Iterator[None]:
    """Within the block scripted functions run op by op, with torch's own backward passes.

    By default TorchScript's executor watches the first call of a function (per process and
    argument type) and runs the following ones by a plan of its own, whose gradients are rounded
    differently: RetinaNet's and FCOS's focal loss then depend on how many iterations this process
    has done, and a resumed training leaves the uninterrupted one. Without plans every call gives
    the bits of the function's Python code. Plans of functions that this process optimised before
    are dropped: they would be used whatever the setting. Of the calling thread; also a decorator.
    """
    drop_script_plans()
    with torch.jit.optimized_execution(False):
        yield
