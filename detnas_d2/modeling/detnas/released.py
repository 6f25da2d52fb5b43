"""The authors' released DetNAS weights as ours, strictly: every key, every shape.

=====================================  ===========================================  =======
model                                  whose keys :func:`convert` gives             shuffle
=====================================  ===========================================  =======
detnas_{300M,1.3G,3.8G}_fpn            ``DecodedBackbone`` of the released path    2
detnas_300M_retinanet                  ``DecodedBackbone`` of the released path    2
detnas_300M_supernet                   ``Supernet``, detection                      1
detnas_300M_imagenet_supernet          ``ImageClassifier`` over a ``Supernet``      1
                                       with last convolution
detnas_fpn_neck_{300M,1.3G,3.8G}_fpn   Detectron2's ``FPN``, norm and bias
detnas_fpn_neck_300M_retinanet         Detectron2's ``FPN`` with P6, P7, bias only
detnas_head_4conv1fc                   ``roi_heads``: box head and predictor
=====================================  ===========================================  =======

"shuffle" is the ``MODEL.DETNAS.SHUFFLE_METHOD`` that the weights were trained with
(``RELEASES[model].shuffle_method``). Both methods accept the same tensors; with the wrong one the
network computes something else without any error, so set the one listed. Necks with a norm and
the box head keep biases before it: set ``MODEL.DETNAS.CONV_BIAS_BEFORE_NORM``.

Two things of the predictor differ in content. The released classifier has the background first,
Detectron2 last; the released regression has four numbers for the background too, dropped here.
The order of the 80 classes, of dx, dy, dw, dh, and their weights (10, 10, 5, 5) are the same.

Box coding needs no correction. The released code counts the last pixel as part of a box, which is
x1 - x0 + 1 wide; in Detectron2's continuous coordinates the same box is (x0, y0, x1 + 1, y1 + 1),
and in these both codings are the same function. Pooling is what differs: the released RoIAlign
takes two samples per bin and no half-pixel shift (``MODEL.ROI_BOX_HEAD.POOLER_TYPE: ROIAlign``,
``POOLER_SAMPLING_RATIO: 2``; Detectron2's defaults are ``ROIAlignV2`` and 0), and its boxes end at
x1, a pixel before Detectron2's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detnas_d2.modeling.weights_fit import WeightsError
from detnas_d2.search_space import LayerSpec, SearchSpace, get_space

_LARGE = "0031210203123320" + "2113202221310333" + "13333333"
_BN_VECTORS = ("weight", "bias", "running_mean", "running_var")
_NUM_CLASSES, _FPN_CHANNELS, _FC_CHANNELS, _POOLED = 80, 256, 1024, 7 * 7


@dataclass(frozen=True)
class Release:
    """One released set of weights.

    Args:
        part: "searched", "supernet", "classifier" (supernet with last convolution and linear
            layer), "fpn", "retinanet_fpn" or "head".
        space: name of the search space; "" for the head.
        choices: one digit per layer, for "searched".
        shuffle_method: the ``MODEL.DETNAS.SHUFFLE_METHOD`` it needs; None without a backbone.
    """

    part: str
    space: str = ""
    choices: str = ""
    shuffle_method: int | None = None


RELEASES: dict[str, Release] = {
    "detnas_300M_fpn": Release("searched", "detnas_small", "21202112331300313132", 2),
    "detnas_300M_retinanet": Release("searched", "detnas_small", "23113213311133203333", 2),
    "detnas_1.3G_fpn": Release("searched", "detnas_large", _LARGE, 2),
    "detnas_3.8G_fpn": Release("searched", "detnas_3.8G", _LARGE, 2),
    "detnas_300M_supernet": Release("supernet", "detnas_small", shuffle_method=1),
    "detnas_300M_imagenet_supernet": Release("classifier", "detnas_small", shuffle_method=1),
    "detnas_fpn_neck_300M_fpn": Release("fpn", "detnas_small"),
    "detnas_fpn_neck_1.3G_fpn": Release("fpn", "detnas_large"),
    "detnas_fpn_neck_3.8G_fpn": Release("fpn", "detnas_3.8G"),
    "detnas_fpn_neck_300M_retinanet": Release("retinanet_fpn", "detnas_small"),
    "detnas_head_4conv1fc": Release("head"),
}


@dataclass(frozen=True)
class Entry:
    """Our key of a released tensor, and the released tensor's shape."""

    key: str
    shape: tuple[int, ...]


def convert(state_dict: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
    """Our state dict of a released checkpoint.

    Args:
        state_dict: released name -> tensor, those of one model and nothing else; if all names
            start with ``module.`` it is removed.
        model: a name of ``RELEASES``; the table above says whose keys result, and which
            ``MODEL.DETNAS.SHUFFLE_METHOD`` the network has to be built with: 2 for the single-path
            detectors, 1 for the supernets.

    Raises:
        KeyError: an unknown model; lists the ones there are.
        WeightsError: naming every key that is missing, left over, or of another shape.
    """
    names = released_names(model)
    source = dict(state_dict)
    if source and all(key.startswith("module.") for key in source):
        source = {key.removeprefix("module."): value for key, value in source.items()}
    problems = [f"missing {name}" for name in names if name not in source]
    problems += [f"unexpected {name}" for name in source if name not in names]
    problems += [
        f"{name} is {tuple(source[name].shape)}, expected {entry.shape}"
        for name, entry in names.items()
        if name in source and tuple(source[name].shape) != entry.shape
    ]
    if problems:
        raise WeightsError(f"not the released weights {model!r}: " + "; ".join(problems))
    return {entry.key: _detectron2_order(name, source[name]) for name, entry in names.items()}


def released_names(model: str) -> dict[str, Entry]:
    """Released name -> our key and the released shape, for every tensor of a model.

    Raises:
        KeyError: an unknown model; lists the ones there are.
    """
    if model not in RELEASES:
        raise WeightsError(f"no released model {model!r}; expected one of {', '.join(RELEASES)}")
    release = RELEASES[model]
    if release.part == "head":
        return dict(_head())
    space = get_space(release.space)
    if release.part == "fpn":
        return dict(_fpn(space))
    if release.part == "retinanet_fpn":
        return dict(_retinanet_fpn(space))
    if release.part == "classifier":
        body = {n: Entry(f"backbone.{e.key}", e.shape) for n, e in _backbone(space, "")}
        return {**body, **dict(_classifier_end(space))}
    return dict(_backbone(space, release.choices))


Named = Iterator[tuple[str, Entry]]


def _backbone(space: SearchSpace, choices: str) -> Named:
    """Stem and blocks; without ``choices`` all candidates of each block."""
    stem = space.stem_channels
    yield from _conv("first_conv.conv", "first_conv.bn", "stem", (stem, 3, 3, 3), bias=True)
    for layer in space.layers:
        theirs, ours = f"features.{layer.index}", f"blocks.{layer.index}"
        position = layer.index - sum(space.stage_depths[: layer.stage])
        tag = f"{layer.stage + 1}{chr(ord('a') + position)}"
        if choices:
            yield from _block(theirs, ours, tag, layer, layer.ops[int(choices[layer.index])])
            continue
        for number, op in enumerate(layer.ops):
            place = f"{ours}.candidates.{op}"
            yield from _block(f"{theirs}.{number}", place, tag, layer, op)


def _block(theirs: str, ours: str, tag: str, layer: LayerSpec, op: str) -> Named:
    """One choice block; ``tag`` is stage and position, "1a" the first."""
    mid = layer.out_channels // 2
    main_in = layer.in_channels if layer.stride == 2 else mid
    main_out = layer.out_channels - main_in
    # (released submodule, released name, our submodule, weight shape)
    if op == "xception":
        kernel, steps = 3, []
        for i, (cin, cout) in enumerate(((main_in, mid), (mid, mid), (mid, main_out))):
            name = f"xception_3x3_branch2{'abc'[i]}"
            steps.append((f"conv.{i}", f"{name}_s", f"main.{2 * i}", (cin, 1, 3, 3)))
            steps.append((f"conv.{i}", name, f"main.{2 * i + 1}", (cout, cin, 1, 1)))
    else:
        kernel, name = int(op[0]), f"shufflenet_{op}_branch2"
        steps = [
            ("conv.0", f"{name}a", "main.0", (mid, main_in, 1, 1)),
            ("conv.1", f"{name}b_s", "main.1", (mid, 1, kernel, kernel)),
            ("conv.1", f"{name}b", "main.2", (main_out, mid, 1, 1)),
        ]
    if layer.stride == 2:
        cin = layer.in_channels
        steps.append(("proj_conv", "proj_s", "projection.0", (cin, 1, kernel, kernel)))
        steps.append(("proj_conv", "proj", "projection.1", (cin, cin, 1, 1)))
    for module, name, place, shape in steps:
        conv = f"{theirs}.{module}.interstellar{tag}_{name}"
        # Depthwise norms are named after their convolution, the others have their own name.
        bn = f"{conv}_bn" if name.endswith("_s") else f"{theirs}.{module}.bn{tag}_{name}"
        yield from _conv(conv, bn, f"{ours}.{place}", shape)


def _classifier_end(space: SearchSpace) -> Named:
    shape = (space.last_channels, space.stage_channels[-1], 1, 1)
    yield from _conv("last_conv.conv", "last_conv.bn", "backbone.last", shape, bias=True)
    yield from _plain("fc.fc", "linear", (1000, space.last_channels))


def _conv(conv: str, bn: str, ours: str, shape: tuple[int, ...], *, bias: bool = False) -> Named:
    """A convolution and its norm, ours a ``ConvNormAct``."""
    yield f"{conv}.weight", Entry(f"{ours}.conv.weight", shape)
    if bias:
        yield f"{conv}.bias", Entry(f"{ours}.conv.bias", shape[:1])
    yield from _bn(bn, f"{ours}.norm", shape[0])


def _bn(theirs: str, ours: str, channels: int) -> Named:
    for leaf in _BN_VECTORS:
        yield f"{theirs}.{leaf}", Entry(f"{ours}.{leaf}", (channels,))
    yield f"{theirs}.num_batches_tracked", Entry(f"{ours}.num_batches_tracked", ())


def _plain(theirs: str, ours: str, shape: tuple[int, ...]) -> Named:
    """A convolution or linear layer with bias."""
    yield f"{theirs}.weight", Entry(f"{ours}.weight", shape)
    yield f"{theirs}.bias", Entry(f"{ours}.bias", shape[:1])


def _fpn(space: SearchSpace) -> Named:
    """Released level n has stride 2^(n + 1); Detectron2 names levels by the exponent."""
    out = _FPN_CHANNELS
    for n, channels in enumerate(space.stage_channels, start=1):
        for theirs, ours, shape in (
            (f"fpn_inner{n}", f"fpn_lateral{n + 1}", (out, channels, 1, 1)),
            (f"fpn_layer{n}", f"fpn_output{n + 1}", (out, out, 3, 3)),
        ):
            yield from _plain(f"{theirs}.0", ours, shape)
            yield from _bn(f"{theirs}.1", f"{ours}.norm", out)


def _retinanet_fpn(space: SearchSpace) -> Named:
    out = _FPN_CHANNELS
    for n, channels in enumerate(space.stage_channels[1:], start=2):
        yield from _plain(f"fpn_inner{n}", f"fpn_lateral{n + 1}", (out, channels, 1, 1))
        yield from _plain(f"fpn_layer{n}", f"fpn_output{n + 1}", (out, out, 3, 3))
    for level in ("p6", "p7"):
        yield from _plain(f"top_blocks.{level}", f"top_block.{level}", (out, out, 3, 3))


def _head() -> Named:
    channels = _FPN_CHANNELS
    for i in range(4):
        # A Sequential of convolution, norm, ReLU, four times.
        theirs, ours = "feature_extractor.xconvs", f"box_head.conv{i + 1}"
        yield from _plain(f"{theirs}.{3 * i}", ours, (channels, channels, 3, 3))
        yield from _bn(f"{theirs}.{3 * i + 1}", f"{ours}.norm", channels)
    yield from _plain("feature_extractor.fc6", "box_head.fc1", (_FC_CHANNELS, channels * _POOLED))
    outputs = {"cls_score": _NUM_CLASSES + 1, "bbox_pred": 4 * (_NUM_CLASSES + 1)}
    for name, number in outputs.items():
        yield from _plain(f"predictor.{name}", f"box_predictor.{name}", (number, _FC_CHANNELS))


def _detectron2_order(name: str, value: Tensor) -> Tensor:
    """Background last in the classifier, absent in the regression; other tensors as they are."""
    if name.startswith("predictor.cls_score."):
        return torch.cat((value[1:], value[:1]))
    if name.startswith("predictor.bbox_pred."):
        return value[4:].clone()
    return value
