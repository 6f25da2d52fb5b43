"""Moving backbone weights between models: classifier, detector, supernet, path.

A backbone's keys are the same everywhere but for two things: where it sits in the model
(``backbone.`` in a classifier, ``backbone.bottom_up.`` under FPN), and that a supernet keeps the
candidates of a layer side by side (``blocks.3.candidates.5x5.main...``) where a decoded network
has one (``blocks.3.main...``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from detnas_d2.modeling.baselines.detnet import adapt_resnet_state_dict
from detnas_d2.modeling.detnas.backbone import DecodedBackbone, ShuffleNetBackbone
from detnas_d2.modeling.hit.weights import adapt_hit_state_dict
from detnas_d2.modeling.weights_fit import WeightsError
from detnas_d2.search_space import Path

_BLOCK = re.compile(r"^(?P<prefix>(?:.*\.)?)blocks\.0\.(?P<rest>.*)$")
_CANDIDATE_INSIDE = re.compile(r"(^|\.)blocks\.\d+\.candidates\.")
_CANDIDATE = re.compile(r"^blocks\.(\d+)\.candidates\.([^.]+)\.(.*)$")


def adapt_state_dict(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` with its backbone keys renamed, and a supernet reduced to the model's path.

    Keys outside the backbone pass unchanged; so does a state without one of our backbones, or for
    a model without one.

    Raises:
        WeightsError: a backbone key of the model is missing in ``state`` or has another shape
            (the last convolution, which detectors lack, excepted).
    """
    state = adapt_hit_state_dict(adapt_resnet_state_dict(state, model), model)
    target, backbone = _find_backbone(model)
    source = _find_prefix(state)
    if backbone is None or source is None:
        return dict(state)
    adapted: dict[str, Tensor] = {}
    inner: dict[str, Tensor] = {}
    for key, value in state.items():
        if _belongs(key, source):
            inner[key[len(source) :]] = value
        else:
            adapted[key] = value
    if isinstance(backbone, DecodedBackbone) and any(_CANDIDATE.match(key) for key in inner):
        inner = select_path(inner, backbone.path)
    expected = backbone.state_dict()
    _check(inner, expected, backbone.space.name)
    adapted.update({target + key: value for key, value in inner.items() if key in expected})
    return adapted


def is_supernet(state: Mapping[str, Tensor]) -> bool:
    """Whether a model's state holds a DetNAS supernet."""
    return any(_CANDIDATE_INSIDE.search(key) for key in state)


def select_path(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A supernet backbone's state (keys from ``stem.`` and ``blocks.`` on) reduced to ``path``."""
    selected = {}
    for key, value in state.items():
        match = _CANDIDATE.match(key)
        if match is None:
            selected[key] = value
        elif path.ops[int(match[1])] == match[2]:
            selected[f"blocks.{match[1]}.{match[3]}"] = value
    return selected


def _find_backbone(model: nn.Module) -> tuple[str, ShuffleNetBackbone | None]:
    for name, module in model.named_modules():
        if isinstance(module, ShuffleNetBackbone):
            return (f"{name}." if name else ""), module
    return "", None


def _find_prefix(state: Mapping[str, Tensor]) -> str | None:
    for key in state:
        match = _BLOCK.match(key)
        if match and f"{match['prefix']}stem.conv.weight" in state:
            return match["prefix"]
    return None


def _belongs(key: str, prefix: str) -> bool:
    return any(key.startswith(prefix + part) for part in ("stem.", "blocks.", "last."))


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], space: str) -> None:
    missing = [k for k in expected if k not in state and not k.startswith("last.")]
    wrong = [
        f"{k}: {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or wrong:
        problems = wrong + [f"missing {key}" for key in missing]
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"the weights do not fit the backbone of MODEL.DETNAS.SPACE {space!r} (another search "
            "space or path?): " + "; ".join(problems[:5]) + more
        )
