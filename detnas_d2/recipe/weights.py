"""Weights that a run may start from: what kind they are, and what each kind needs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.modeling.baselines.resnet_names import is_torchvision_resnet, resnet_names
from detnas_d2.modeling.detnas.released import RELEASES, convert, released_names
from detnas_d2.modeling.weights import is_supernet
from detnas_d2.search_space.space import SPACES
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import new_file

CONVERTED = "weights.pth"
EXPECTED = (
    "a supernet's (supernet/model_final.pth of another run; --budget has to lie in its search "
    "space), a released DetNAS supernet (converted; --budget 237M to 365M), or an ImageNet "
    "ResNet-50 of torchvision or Detectron2 (trained too, as a baseline; nothing else is needed)"
)

_PREFIXES = ("", "module.", "backbone.body.", "module.backbone.body.")
_CANDIDATE = re.compile(r"(?:^|\.)blocks\.(\d+)\.candidates\.([^.]+)\.")
_RESNET_50 = 53
"""Convolutions of a ResNet-50."""


@dataclass(frozen=True)
class Start:
    """Weights of a run.

    Attributes:
        supernet: file that the supernet starts from, "" for none.
        space: that the supernet's weights are of.
        resnet: file of a ResNet-50 that is trained as a baseline, "" for none.
        caffe: the ResNet is one of Caffe's, as Detectron2's R-50 is: BGR, strides in the 1x1
            convolutions.
        text: what they are, for people.
    """

    supernet: str = ""
    space: str = ""
    resnet: str = ""
    caffe: bool = False
    text: str = ""


def starting_weights(file: str, folder: str) -> Start:
    """What a file of weights is good for; released and torchvision's ones are converted.

    Args:
        folder: where converted weights are written.

    Raises:
        InputError: it is none of :data:`EXPECTED`.
    """
    if not os.path.isfile(file):
        raise InputError(f"--weights {file}: no such file; expected {EXPECTED}")
    state = read_checkpoint(file)["model"]
    if is_supernet(state):
        space = _space_of(file, state)
        return Start(supernet=file, space=space, text=f"a supernet of {space}")
    released = _released(file, state)
    if released is not None:
        name, found = released
        target = _written(folder, {"model": found})
        text = f"the released weights {name}, converted"
        return Start(supernet=target, space=RELEASES[name].space, text=text)
    convolutions = sum(hasattr(value, "ndim") and value.ndim == 4 for value in state.values())
    if convolutions == _RESNET_50 and is_torchvision_resnet(state):
        target = _written(folder, {"model": resnet_names(state), "matching_heuristics": True})
        return Start(resnet=target, text="a ResNet-50 of torchvision, trained as a baseline")
    if convolutions == _RESNET_50 and any("res2.0.conv1.weight" in key for key in state):
        return Start(resnet=file, caffe=True, text="a ResNet-50 of Detectron2, a baseline")
    raise InputError(
        f"--weights {file}: its first names are {', '.join(list(state)[:3])}; expected {EXPECTED}"
    )


def _space_of(file: str, state: Mapping[str, Tensor]) -> str:
    """Name of the space whose stem and candidates a supernet has."""
    found: dict[int, set[str]] = {}
    for key in state:
        if match := _CANDIDATE.search(key):
            found.setdefault(int(match[1]), set()).add(match[2])
    stem = next((len(v) for k, v in state.items() if k.endswith("stem.conv.weight")), 0)
    for space in SPACES.values():
        # Skipped blocks hold no weights.
        ops = [set(layer.ops) - {"skip"} for layer in space.layers]
        if space.stem_channels == stem and [found[n] for n in sorted(found)] == ops:
            return space.name
    raise InputError(
        f"--weights {file}: a supernet of a space that is not built in; declare it in "
        "MODEL.DETNAS.SPACES of a config, and run that by run_pipeline.py"
    )


def _released(file: str, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]] | None:
    """Name and converted tensors of a released supernet.

    Raises:
        InputError: a released network of one path.
    """
    for name, release in RELEASES.items():
        if release.part not in ("supernet", "classifier", "searched"):
            continue
        names = released_names(name)
        for prefix in _PREFIXES:
            own = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            inside = {key: own[key] for key in names if key in own}
            if len(inside) < len(names):
                continue
            if release.part == "searched":
                raise InputError(
                    f"--weights {file}: the released {name} has one path, and a supernet needs all "
                    "of them; configs/DetNAS/released runs it as it is"
                )
            return name, convert(inside, name)
    return None


def _written(folder: str, checkpoint: Mapping[str, object]) -> str:
    os.makedirs(folder, exist_ok=True)
    target = os.path.join(folder, CONVERTED)
    with new_file(target) as temporary, open(temporary, "wb") as file:
        torch.save(dict(checkpoint), file)
    return target
