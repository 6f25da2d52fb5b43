"""Moving Hit-Detector weights between models: classifier, relaxed detector, decoded detector.

Keys differ in two things: where the backbone sits (``backbone.`` in a classifier,
``backbone.bottom_up.`` under a neck), and that a relaxed part keeps the candidates of a layer side
by side (``layers.blocks.3.candidates.skip...``) where a decoded part has one. Weights of a wider
neck are narrowed to the model's, see :mod:`detnas_d2.modeling.hit.narrow`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from detnas_d2.modeling.hit.backbone import HitBackbone
from detnas_d2.modeling.hit.narrow import narrowed_state
from detnas_d2.modeling.hit.neck import HitPAFPN
from detnas_d2.modeling.searchable_layers import FixedLayers, PartLayers
from detnas_d2.modeling.weights_fit import WeightsError

_CANDIDATE = re.compile(r"^blocks\.(\d+)\.candidates\.([^.]+)\.(.*)$")
_ARCHITECTURE = ("alpha", "remaining")


def adapt_hit_state_dict(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` with backbone keys renamed and every part reduced to the model's candidates.

    Architecture parameters are taken over only by a part with the same candidates; for another
    one they start from scratch. Keys of other modules pass unchanged.
    """
    adapted = _moved_backbone(dict(state), model)
    for name, layers in model.named_modules():
        if isinstance(layers, PartLayers):
            prefix = f"{name}."
            own = {k[len(prefix) :]: v for k, v in adapted.items() if k.startswith(prefix)}
            if not own:
                continue
            adapted = {k: v for k, v in adapted.items() if not k.startswith(prefix)}
            adapted.update({prefix + k: v for k, v in _reduced(own, layers).items()})
    for name, module in model.named_modules():
        if isinstance(module, HitPAFPN):
            key = f"{name}.bottom_up_convs.0.bias" if name else "bottom_up_convs.0.bias"
            adapted = narrowed_state(adapted, model.state_dict(), key)
    return adapted


def _moved_backbone(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    target = next(
        (f"{n}." if n else "" for n, m in model.named_modules() if isinstance(m, HitBackbone)),
        None,
    )
    stem = "stem.conv.weight"
    source = next(
        (
            key[: -len(stem)]
            for key in state
            if key.endswith(stem)
            and any(k.startswith(f"{key[: -len(stem)]}layers.blocks.") for k in state)
        ),
        None,
    )
    if target is None or source is None or source == target:
        return state
    parts = tuple(f"{source}{part}." for part in ("stem", "stem_ops", "layers", "tail"))
    return {
        target + key[len(source) :] if key.startswith(parts) else key: value
        for key, value in state.items()
    }


def _reduced(state: dict[str, Tensor], layers: PartLayers) -> dict[str, Tensor]:
    """One part's state, keys from ``blocks.`` on, reduced to the candidates of ``layers``."""
    expected = layers.state_dict()
    offered = {key for key in state if _CANDIDATE.match(key)}
    if not offered:
        return state
    if isinstance(layers, FixedLayers):
        _check_offer(offered, layers)
        reduced = {}
        for key, value in state.items():
            match = _CANDIDATE.match(key)
            if match and layers.ops[int(match[1])] == match[2]:
                reduced[f"blocks.{match[1]}.{match[3]}"] = value
            elif not match and key not in _ARCHITECTURE:
                reduced[key] = value
        return reduced
    same = offered == {key for key in expected if _CANDIDATE.match(key)}
    return {
        key: value
        for key, value in state.items()
        if (key in expected and (same or key not in _ARCHITECTURE))
    }


def _check_offer(offered: set[str], layers: FixedLayers) -> None:
    """Raises WeightsError if an operation of ``layers`` is not among the candidates offered."""
    found = {match.group(1, 2) for key in offered if (match := _CANDIDATE.match(key))}
    for index, op in enumerate(layers.ops):
        has_state = any(True for _ in layers.blocks[index].state_dict())
        if has_state and (str(index), op) not in found:
            raise WeightsError(
                f"the weights have no candidate {op!r} in layer {index} of the {layers.part}"
            )
