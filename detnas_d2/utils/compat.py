"""Names that PyTorch and Detectron2 do not promise to keep.

A version that changes one of them fails in tests/utils/test_compat.py, which says what each does.
Detectron2 is imported where it is needed, so that the operators do without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, reduce
from operator import or_
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import forward_ad

# Whether a hook of every module is set.
has_global_hook: Callable[[], bool] = torch.nn.modules.module._has_any_global_hook
# Within it operators are called past autograd; not under torch.compile.
below_autograd = torch._C._AutoDispatchBelowAutograd
any_requires_grad = torch._C._any_requires_grad  # looks into lists
is_any_autocast_enabled = torch._C._is_any_autocast_enabled
# Whether this CPU has instructions for products of bfloat16 (AVX-512 BF16; AMX comes with it).
multiplies_bfloat16 = torch.cpu._is_avx512_bf16_supported
# Sends this process a signal when its parent ends; None where the system cannot.
signal_at_parents_end = getattr(torch.multiprocessing, "_prctl_pr_set_pdeathsig", None)


@torch.compiler.assume_constant_result  # compiled code is compiled again in another transform
def in_function_transform() -> bool:
    """Whether a transform of torch.func is at work; while code is traced, in that code."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@torch.compiler.assume_constant_result
def in_forward_differentiation() -> bool:
    """Whether forward-mode differentiation is at work."""
    return forward_ad._current_level >= 0


def excluding(*keys: str) -> Callable[[], AbstractContextManager]:
    """Makes contexts in which calls pass over dispatch keys, e.g. "AutocastCPU"."""
    sets = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in keys)
    return partial(torch._C._ExcludeDispatchKeyGuard, reduce(or_, sets))


def drop_script_plans() -> None:
    """Has TorchScript forget how it optimised functions, where it does that."""
    if torch._C._get_graph_executor_optimize():
        unit: Any = torch.jit._state._python_cu
        for function in unit.get_functions():
            function._debug_flush_compilation_cache()


@contextmanager
def voc_evaluation_alone() -> Iterator[None]:
    """Within the block a ``PascalVOCDetectionEvaluator`` takes this process for the only one."""
    from detectron2.evaluation import pascal_voc_evaluation

    ranks = pascal_voc_evaluation.comm
    pascal_voc_evaluation.comm = SimpleNamespace(
        gather=lambda data, dst=0: [data], is_main_process=lambda: True
    )
    try:
        yield
    finally:
        pascal_voc_evaluation.comm = ranks


def last_coco_records(evaluator: Any, kind: str) -> list[dict[str, Any]]:
    """COCO's records of the image that a ``COCOEvaluator`` processed last.

    Args:
        kind: "instances" or "proposals".
    """
    return evaluator._predictions[-1][kind]


def end_logging(names: Iterable[str]) -> None:
    """Ends what Detectron2's ``setup_logger`` began for loggers: their handlers and open files."""
    from detectron2.utils.logger import _cached_log_stream, setup_logger

    for name in names:
        handlers = logging.getLogger(name).handlers
        for stream in (getattr(handler, "stream", None) for handler in handlers):
            file = getattr(stream, "name", None)
            if stream is not None and isinstance(file, str) and not file.startswith("<"):
                stream.close()  # not the screen
        handlers.clear()
    setup_logger.cache_clear()
    _cached_log_stream.cache_clear()


def transform_annotations(
    mapper: Any, sample: dict[str, Any], transforms: Any, shape: tuple[int, ...]
) -> None:
    """Step of a ``DatasetMapper`` from "annotations" to "instances" (height, width), in place."""
    mapper._transform_annotations(sample, transforms, shape)


def apply_exif_orientation(image: Any) -> Any:
    """A PIL image as the camera was held, as Detectron2's ``read_image`` turns it."""
    from detectron2.data.detection_utils import _apply_exif_orientation

    return _apply_exif_orientation(image)


def decoded_value(text: Any) -> Any:
    """A config's value from the text of a command line or file."""
    from detectron2.config import CfgNode

    return CfgNode._decode_cfg_value(text)
