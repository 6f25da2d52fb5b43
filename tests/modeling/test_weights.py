"""Weights that move between classifier, detector, supernet and path."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from detnas_d2.engine.architectures import decode_backbones
from detnas_d2.layers import get_norm
from detnas_d2.modeling import DecodedBackbone, Supernet, WeightsError, adapt_state_dict
from detnas_d2.search_space import SPACES, Path
from tests.helpers import detector_config, snapshot

TINY = SPACES["detnas_tiny"]
BN = partial(get_norm, "BN")


def path(seed: int) -> Path:
    return TINY.random_path(random.Random(seed))


def classifier(path: Path | None = None) -> nn.Module:
    cfg = detector_config()
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = f"build_detnas_{'supernet_' if path is None else ''}backbone"
    cfg.MODEL.DETNAS.PATH = "" if path is None else str(path)
    cfg.MODEL.DETNAS.LAST_CONV = True
    cfg.MODEL.DETNAS.OUT_FEATURES = ["last"]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 4
    return randomised(build_model(cfg))


def detector(path: Path | None = None, kind: str = "faster") -> nn.Module:
    cfg = detector_config(kind)
    if path is not None:
        decode_backbones(cfg)
        cfg.MODEL.DETNAS.PATH = str(path)
    return randomised(build_model(cfg))


def backbone(path: Path) -> DecodedBackbone:
    return DecodedBackbone(path, norm=BN, shuffle_method=1, out_features=["stage4"])


def randomised(model: nn.Module) -> nn.Module:
    """So that no two models have a tensor in common by accident."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
            else:
                value.fill_(random.randrange(1, 1000))
    return model


def load(state: dict, model: nn.Module) -> set[str]:
    """Loads the adapted state; returns the keys of the model that were not in it."""
    incompatible = model.load_state_dict(adapt_state_dict(state, model), strict=False)
    return set(incompatible.missing_keys)


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_classifier_supernet_to_detector_supernet(kind: str) -> None:
    source, target = classifier(), detector(kind=kind)
    state, before = source.state_dict(), snapshot(target)
    missing = load(state, target)
    for name, value in target.state_dict().items():
        if name.startswith("backbone.bottom_up."):
            assert torch.equal(value, state[name.replace("bottom_up.", "")]), name
        else:
            assert torch.equal(value, before[name]), name
            assert name in missing or name.endswith("num_batches_tracked"), name


def test_detector_back_to_classifier_lacks_the_last_convolution() -> None:
    source, target = detector(), classifier()
    missing = load(source.state_dict(), target)
    assert all(name.startswith(("backbone.last.", "linear.")) for name in missing)
    assert "backbone.last.conv.weight" in missing and "linear.weight" in missing


def test_supernet_to_path() -> None:
    chosen = path(1)
    source, target = classifier(), detector(chosen)
    load(source.state_dict(), target)
    candidate = source.backbone.blocks[3].candidates[chosen.ops[3]]
    block = target.backbone.bottom_up.blocks[3]
    assert candidate.state_dict().keys() == block.state_dict().keys()
    for index, op in enumerate(chosen.ops):
        expected = source.backbone.blocks[index].candidates[op].state_dict()
        for name, value in target.backbone.bottom_up.blocks[index].state_dict().items():
            assert torch.equal(value, expected[name])
    assert torch.equal(target.backbone.bottom_up.stem.conv.weight, source.backbone.stem.conv.weight)


def test_whole_detector_supernet_to_path_brings_neck_and_head() -> None:
    source, target = detector(), detector(path(2))
    assert load(source.state_dict(), target) == set()
    for name, value in target.state_dict().items():
        if "bottom_up" not in name:
            assert torch.equal(value, source.state_dict()[name])


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up.", "module.net."])
def test_prefix_of_the_source_does_not_matter(prefix: str) -> None:
    source, target = randomised(backbone(path(1))), detector(path(1))
    state = {prefix + name: value for name, value in source.state_dict().items()}
    load({**state, "unrelated.stem": torch.zeros(1)}, target)
    for name, value in target.backbone.bottom_up.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_states_that_are_none_of_our_business_pass_unchanged() -> None:
    state = {"conv.weight": torch.zeros(1), "blocks.0.weight": torch.zeros(2)}
    assert adapt_state_dict(state, detector()) == state
    ours = classifier().state_dict()
    assert adapt_state_dict(ours, nn.Linear(2, 2)).keys() == ours.keys()
    own = detector(path(1))
    again = adapt_state_dict(own.state_dict(), own)
    assert again.keys() == own.state_dict().keys()
    assert all(torch.equal(again[k], v) for k, v in own.state_dict().items())


def test_the_given_state_is_not_changed() -> None:
    state = classifier().state_dict()
    keys = list(state)
    adapt_state_dict(state, detector(path(1)))
    assert list(state) == keys


def test_path_to_supernet_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"missing blocks\.0\.candidates\..* and \d+ more"):
        adapt_state_dict(backbone(path(1)).state_dict(), detector())


@pytest.mark.parametrize(
    ("ops", "other"),
    [("3x3", "5x5"), ("5x5", "3x3"), ("3x3", "xception"), ("xception", "3x3")],
)
def test_another_path_is_refused(ops: str, other: str) -> None:
    choices = list(path(1).ops)
    choices[2] = ops
    source = backbone(TINY.path(choices)).state_dict()
    choices[2] = other
    with pytest.raises(WeightsError, match=r"another search space or path.*blocks\.2\.main"):
        adapt_state_dict(source, backbone(TINY.path(choices)))


def test_another_space_is_refused() -> None:
    small = SPACES["detnas_small"]
    source = DecodedBackbone(
        small.uniform_path("3x3"), norm=BN, shuffle_method=1, out_features=["stage4"]
    )
    message = (
        r"backbone of MODEL\.DETNAS\.SPACE 'detnas_tiny' .*"
        r"stem\.conv\.weight: \(16, 3, 3, 3\), expected \(8, 3, 3, 3\)"
    )
    with pytest.raises(WeightsError, match=message):
        adapt_state_dict(source.state_dict(), backbone(TINY.uniform_path("3x3")))


def test_supernet_without_the_candidate_is_refused() -> None:
    net = Supernet(TINY, norm=BN, shuffle_method=1, out_features=["stage4"])
    state = {k: v for k, v in net.state_dict().items() if ".candidates.7x7." not in k}
    assert adapt_state_dict(state, backbone(TINY.uniform_path("5x5")))
    with pytest.raises(WeightsError, match=r"missing blocks\.0\.main\.0\.conv\.weight"):
        adapt_state_dict(state, backbone(TINY.uniform_path("7x7")))
