"""Whether weights are those of a model: all of a part of it or nothing of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detnas_d2.utils.errors import InputError

_PREFIXES = ("module.", "_orig_mod.", "model.")
# Last layers, whose number of outputs is that of the classes: fine-tuning starts them from scratch.
_PREDICTOR = re.compile(r"(^|\.)(cls_score|bbox_pred|predictor|linear)\.(weight|bias)$")
# Not in every file: counters, and what the config tells.
_TOLD = re.compile(r"(^|\.)(num_batches_tracked|pixel_mean|pixel_std)$|anchor_generator\.")
# Of a search alone, and the last convolution, of a classifier alone.
_EXTRA = re.compile(r"(^|\.)(alpha|remaining)$|(^|\.)last\.")
_LISTED = 3


class WeightsError(InputError):
    """Weights that do not fit the model they are loaded into."""


def strip_shared_prefixes(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` without the prefixes that wrappers put before every key.

    DistributedDataParallel's "module.", torch.compile's "_orig_mod." and a trainer's "model.", in
    any order and number, unless the model's own keys begin with it.
    """
    state, own = dict(state), model.state_dict()
    while state:
        shared = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if shared is None or (own and all(key.startswith(shared) for key in own)):
            return state
        state = {key[len(shared) :]: value for key, value in state.items()}
    return state


def check_fit(state: Mapping[str, Tensor], model: nn.Module, *, whole: bool = False) -> None:
    """Compares adapted weights with a model.

    Every part of the model (backbone, neck, proposal generator, each head) must be whole in the
    weights or absent: a classifier's backbone fits a detector, but a neck of which half the tensors
    are missing, or have other shapes, is a mistake. The last layers of heads may have another
    number of classes.

    Args:
        whole: every part must be there, and of the same classes.

    Raises:
        WeightsError: naming the first tensors that do not fit.
    """
    expected = {
        key: value
        for key, value in model.state_dict().items()
        if not _TOLD.search(key) and (whole or not _EXTRA.search(key))
    }
    problems: dict[str, list[str]] = {}
    fitting: set[str] = set()
    for key, value in expected.items():
        part = _part_of(key)
        found = state.get(key)
        if found is None:
            problems.setdefault(part, []).append(f"{key} is missing")
        elif found.shape == value.shape:
            fitting.add(part)
        elif whole or not _other_classes(key, found, value):
            fitting.add(part)  # it is meant for this part
            problems.setdefault(part, []).append(
                f"{key} is {tuple(found.shape)}, expected {tuple(value.shape)}"
            )
    if expected and not fitting:
        raise WeightsError(
            "no tensor of the model is in the weights; their first are "
            f"{', '.join(list(state)[:_LISTED]) or 'none'}, the model's "
            f"{', '.join(list(expected)[:_LISTED])}"
        )
    _check_prefixes(state, {key for key in expected if key not in state})
    wrong = [text for part, texts in problems.items() if whole or part in fitting for text in texts]
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise WeightsError(
            f"the weights fit the model in part only ({len(wrong)} tensors of "
            f"{len(expected)} do not): {'; '.join(wrong[:_LISTED])}{more}; use the config that "
            "they were trained with"
        )


def _check_prefixes(state: Mapping[str, Tensor], missing: set[str]) -> None:
    """Raises WeightsError if a key of the weights is a missing one behind a prefix."""
    for key in state:
        parts = key.split(".")
        for number in range(1, len(parts)):
            own = ".".join(parts[number:])
            if own in missing and key not in missing:
                raise WeightsError(
                    f"the weights call {key} what the model calls {own}: remove "
                    f"{'.'.join(parts[:number])!r} and the dot from the names in the file"
                )


def check_numbers(state: Mapping[str, object]) -> None:
    """Raises WeightsError unless all values are tensors of finite numbers."""
    if not state:
        raise WeightsError("there are no weights in the file")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{key!r} is a {type(value).__name__}, expected a tensor")
        if value.is_meta or value.is_sparse or value.is_complex():
            raise WeightsError(f"{key} is no plain tensor")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{key} holds NaN or infinite values")


def _other_classes(key: str, found: Tensor, expected: Tensor) -> bool:
    return bool(_PREDICTOR.search(key)) and found.shape[1:] == expected.shape[1:]


def _part_of(key: str) -> str:
    """The part of the model that a tensor belongs to: two levels of heads and of the backbone."""
    first, _, rest = key.partition(".")
    if first == "backbone":
        return "backbone.bottom_up" if rest.startswith("bottom_up.") else first
    return f"{first}.{rest.split('.')[0]}" if first == "roi_heads" else first
