"""Converted networks against the released equations, written here in plain torch functions."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from detnas_d2.config.tools import load_config
from detnas_d2.modeling import activate, backbone_from_config
from detnas_d2.modeling.detnas.released import RELEASES, convert, released_names
from detnas_d2.search_space import get_space

CONFIGS = Path(__file__).parents[3] / "configs" / "DetNAS"
DEPTHS = {"detnas_small": (4, 4, 8, 4), "detnas_large": (8, 8, 16, 8)}
Weights = dict[str, Tensor]


def random_weights(model: str, seed: int = 0) -> Weights:
    """Float64 weights under the released names; activations stay near 1 through all layers."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, entry in released_names(model).items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(90000)
            continue
        value = torch.randn(entry.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var") or (name.endswith(".weight") and value.dim() == 1):
            value = 0.5 + value.abs()
        elif value.dim() > 1:
            value = value * (2 / value[0].numel()) ** 0.5
        weights[name] = value
    return weights


def bn(w: Weights, name: str, x: Tensor) -> Tensor:
    def channels(leaf: str) -> Tensor:
        return w[f"{name}.{leaf}"][None, :, None, None]

    x = (x - channels("running_mean")) / (channels("running_var") + 1e-5).sqrt()
    return x * channels("weight") + channels("bias")


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = w[f"{name}.weight"]
    groups = x.shape[1] // weight.shape[1]
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, w.get(f"{name}.bias"), stride, padding, groups=groups)


def branch(w: Weights, at: str, tag: str, x: Tensor, stride: int, choice: int) -> Tensor:
    """Main branch of a block; ``at`` is "features.3." and ``tag`` "1d" for its fourth."""

    def depthwise(i: int, name: str, x: Tensor, stride: int) -> Tensor:
        name = f"{at}conv.{i}.interstellar{tag}_{name}"
        return bn(w, f"{name}_bn", conv(w, name, x, stride))

    def pointwise(i: int, name: str, x: Tensor) -> Tensor:
        x = conv(w, f"{at}conv.{i}.interstellar{tag}_{name}", x)
        return bn(w, f"{at}conv.{i}.bn{tag}_{name}", x).relu()

    if choice == 3:
        for i, letter in enumerate("abc"):
            name = f"xception_3x3_branch2{letter}"
            x = depthwise(i, f"{name}_s", x, stride if i == 0 else 1)
            x = pointwise(i, name, x)
        return x
    kernel = 3 + 2 * choice
    name = f"shufflenet_{kernel}x{kernel}_branch2"
    x = pointwise(0, f"{name}a", x)
    x = depthwise(1, f"{name}b_s", x, stride)
    return pointwise(1, f"{name}b", x)


def block(
    w: Weights, at: str, tag: str, x: Tensor, first: bool, choice: int, method: int
) -> Tensor:
    if first:
        name = f"{at}proj_conv.interstellar{tag}_proj"
        left = bn(w, f"{name}_s_bn", conv(w, f"{name}_s", x, stride=2))
        left = bn(w, f"{at}proj_conv.bn{tag}_proj", conv(w, name, left)).relu()
        return torch.cat((left, branch(w, at, tag, x, 2, choice)), 1)
    n = x.shape[1]
    if method == 2:
        left, right = x[:, 0::2], x[:, 1::2]
    else:
        order = [half * (n // 2) + i for i in range(n // 2) for half in (0, 1)]
        left, right = x[:, order[: n // 2]], x[:, order[n // 2 :]]
    return torch.cat((left, branch(w, at, tag, right, 1, choice)), 1)


def backbone(
    w: Weights, x: Tensor, depths: tuple[int, ...], choices: list[int], method: int, supernet: bool
) -> list[Tensor]:
    """Outputs of the four stages."""
    x = bn(w, "first_conv.bn", conv(w, "first_conv.conv", x, stride=2)).relu()
    stages, index = [], 0
    for stage, depth in enumerate(depths, start=1):
        for position in range(depth):
            at = f"features.{index}." + (f"{choices[index]}." if supernet else "")
            tag = f"{stage}{'abcdefghijklmnop'[position]}"
            x = block(w, at, tag, x, position == 0, choices[index], method)
            index += 1
        stages.append(x)
    return stages


def classify(w: Weights, x: Tensor) -> Tensor:
    x = bn(w, "last_conv.bn", conv(w, "last_conv.conv", x)).relu()
    return F.linear(x.mean((2, 3)), w["fc.fc.weight"], w["fc.fc.bias"])


def fpn(stages: list[Tensor], inner: Callable, layer: Callable, first: int) -> list[Tensor]:
    """Levels, finest first; ``inner(n, x)`` and ``layer(n, x)`` with released n from ``first``."""
    last = inner(first + len(stages) - 1, stages[-1])
    levels = [layer(first + len(stages) - 1, last)]
    for n in range(first + len(stages) - 2, first - 1, -1):
        last = inner(n, stages[n - first]) + F.interpolate(last, scale_factor=2, mode="nearest")
        levels.insert(0, layer(n, last))
    return levels


def head(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """81 logits, background first, and 81 times dx, dy, dw, dh of pooled RoIs (N, 256, 7, 7)."""
    for i in (0, 3, 6, 9):
        at = "feature_extractor.xconvs."
        x = bn(w, f"{at}{i + 1}", conv(w, f"{at}{i}", x)).relu()
    fc = "feature_extractor.fc6"
    x = F.linear(x.flatten(1), w[f"{fc}.weight"], w[f"{fc}.bias"]).relu()
    logits, deltas = (
        F.linear(x, w[f"predictor.{p}.weight"], w[f"predictor.{p}.bias"])
        for p in ("cls_score", "bbox_pred")
    )
    return logits, deltas


def config(name: str, *opts: object) -> CfgNode:
    return load_config(str(CONFIGS / name), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])


def loaded(module: nn.Module, state: Weights) -> nn.Module:
    module.double().load_state_dict(state, strict=True)
    return module.eval()


def images(size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def differs(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).abs().mean()) > 0.1 * float(theirs.std())


def single_path(model: str, size: int, method: int) -> tuple[list[Tensor], list[Tensor]]:
    """Stages of our converted backbone, built with ``method``, and of the released equations."""
    release, weights = RELEASES[model], random_weights(model)
    name = f"released/detnasnet_{model.removeprefix('detnas_')}_coco.yaml"
    cfg = config(name, "MODEL.DETNAS.SHUFFLE_METHOD", method)
    ours = loaded(backbone_from_config(cfg, supernet=False), convert(weights, model))
    choices = [int(c) for c in release.choices]
    with torch.no_grad():
        theirs = backbone(weights, images(size), DEPTHS[release.space], choices, 2, False)
        return list(ours(images(size)).values()), theirs


@pytest.mark.parametrize("model", ["detnas_300M_fpn", "detnas_300M_retinanet", "detnas_1.3G_fpn"])
def test_single_path_stages(model: str) -> None:
    ours, theirs = single_path(model, 64, RELEASES[model].shuffle_method)
    for our_stage, their_stage in zip(ours, theirs, strict=True):
        assert_same(our_stage, their_stage)


def test_the_supernets_shuffle_is_wrong_for_single_paths() -> None:
    ours, theirs = single_path("detnas_300M_fpn", 32, method=1)
    assert all(differs(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def supernet_weights() -> Weights:
    return random_weights("detnas_300M_supernet")


def supernet_stages(
    weights: Weights, method: int, seeds: range
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """For a random path of each seed: stages of ours with ``method`` and of the released one."""
    cfg = config("fpn_coco/supernet.yaml", "MODEL.DETNAS.SHUFFLE_METHOD", method)
    ours = loaded(
        backbone_from_config(cfg, supernet=True), convert(weights, "detnas_300M_supernet")
    )
    space, found = get_space("detnas_small"), []
    for seed in seeds:
        path = space.random_path(random.Random(seed))
        with torch.no_grad(), activate(ours, path):
            theirs = backbone(
                weights, images(32), (4, 4, 8, 4), list(path.choices), 1, supernet=True
            )
            found.append((list(ours(images(32)).values()), theirs))
    return found


def test_supernet_on_random_paths(supernet_weights: Weights) -> None:
    method = RELEASES["detnas_300M_supernet"].shuffle_method
    for ours, theirs in supernet_stages(supernet_weights, method, range(3)):
        for our_stage, their_stage in zip(ours, theirs, strict=True):
            assert_same(our_stage, their_stage)


def test_the_detectors_shuffle_is_wrong_for_supernets(supernet_weights: Weights) -> None:
    ((ours, theirs),) = supernet_stages(supernet_weights, 2, range(1))
    assert all(differs(a, b) for a, b in zip(ours, theirs, strict=True))


def test_imagenet_supernet_with_last_convolution_and_classifier() -> None:
    model = "detnas_300M_imagenet_supernet"
    weights = random_weights(model)
    ours = loaded(build_model(config("imagenet/supernet.yaml")), convert(weights, model))
    path = get_space("detnas_small").random_path(random.Random(5))
    with torch.no_grad(), activate(ours, path):
        stages = backbone(weights, images(64), (4, 4, 8, 4), list(path.choices), 1, supernet=True)
        assert_same(ours.logits(images(64)), classify(weights, stages[-1]))


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    """Faster R-CNN over the 1.3G backbone, as the released config builds it."""
    return build_model(config("released/detnasnet_1.3G_fpn_coco.yaml")).double().eval()


def pyramid(channels: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(1, c, 16 >> i, 16 >> i, generator=generator, dtype=torch.float64)
        for i, c in enumerate(channels)
    ]


def neck_levels(
    neck: nn.Module, stages: list[Tensor], state: Weights, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """Outputs of Detectron2's FPN with converted weights, for the given backbone features."""
    missing, unexpected = neck.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith("bottom_up.") for key in missing)
    features = dict(zip(neck.in_features, stages, strict=True))
    monkeypatch.setattr(neck.bottom_up, "forward", lambda x: features)
    with torch.no_grad():
        return list(neck(torch.zeros(1)).values())


def test_fpn_neck(detector: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "detnas_fpn_neck_1.3G_fpn"
    w, stages = random_weights(model), pyramid((96, 240, 480, 960))
    ours = neck_levels(detector.backbone, stages, convert(w, model), monkeypatch)
    theirs = fpn(
        stages,
        lambda n, x: bn(w, f"fpn_inner{n}.1", conv(w, f"fpn_inner{n}.0", x)),
        lambda n, x: bn(w, f"fpn_layer{n}.1", conv(w, f"fpn_layer{n}.0", x)),
        first=1,
    )
    theirs.append(F.max_pool2d(theirs[-1], 1, 2))
    for our_level, their_level in zip(ours, theirs, strict=True):
        assert_same(our_level, their_level)


def test_retinanet_neck(monkeypatch: pytest.MonkeyPatch) -> None:
    model = "detnas_fpn_neck_300M_retinanet"
    w, stages = random_weights(model), pyramid((160, 320, 640))
    neck = (
        build_model(config("released/detnasnet_300M_retinanet_coco.yaml")).double().eval().backbone
    )
    ours = neck_levels(neck, stages, convert(w, model), monkeypatch)
    theirs = fpn(
        stages,
        lambda n, x: conv(w, f"fpn_inner{n}", x),
        lambda n, x: conv(w, f"fpn_layer{n}", x),
        first=2,
    )
    theirs.append(conv(w, "top_blocks.p6", theirs[-1], stride=2))
    theirs.append(conv(w, "top_blocks.p7", theirs[-1].relu(), stride=2))
    for our_level, their_level in zip(ours, theirs, strict=True):
        assert_same(our_level, their_level)


def test_box_head_and_predictor(detector: nn.Module) -> None:
    model = "detnas_head_4conv1fc"
    weights = random_weights(model)
    heads = loaded(detector.roi_heads, convert(weights, model))
    generator = torch.Generator().manual_seed(1)
    rois = torch.randn(3, 256, 7, 7, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        our_logits, our_deltas = heads.box_predictor(heads.box_head(rois))
    logits, deltas = head(weights, rois)
    # Released: background 0, class c at c + 1. Detectron2: class c at c, background 80.
    assert_same(our_logits[:, 80], logits[:, 0])
    for category in (0, 17, 79):
        released = category + 1
        assert_same(our_logits[:, category], logits[:, released])
        ours = our_deltas[:, 4 * category : 4 * category + 4]
        assert_same(ours, deltas[:, 4 * released : 4 * released + 4])
    assert our_logits.shape == (3, 81) and our_deltas.shape == (3, 320)


def released_decode(deltas: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (N, 4) moved by dx, dy, dw, dh (N, 4); a box ends with the pixel (x1, y1)."""
    sizes = boxes[:, 2:] - boxes[:, :2] + 1
    centers = boxes[:, :2] + 0.5 * sizes + deltas[:, :2] / 10 * sizes
    sizes = sizes * (deltas[:, 2:] / 5).exp()
    return torch.cat((centers - 0.5 * sizes, centers + 0.5 * sizes - 1), 1)


def test_box_coding_is_the_same_in_continuous_coordinates(detector: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    deltas = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    corner = 100 * torch.rand(20, 2, generator=generator, dtype=torch.float64)
    size = 1 + 100 * torch.rand(20, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat((corner, corner + size), 1)
    last_pixel = torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)
    coder = detector.roi_heads.box_predictor.box2box_transform
    ours = coder.apply_deltas(deltas, boxes)
    # Detectron2 computes in float32.
    theirs = released_decode(deltas, boxes - last_pixel) + last_pixel
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-3)
