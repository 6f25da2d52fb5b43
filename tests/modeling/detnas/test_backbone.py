from __future__ import annotations

import random

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from detnas_d2.config.tools import base_config
from detnas_d2.layers import get_norm
from detnas_d2.modeling import (
    DecodedBackbone,
    RelaxedShuffleNet,
    Supernet,
    activate,
    adapt_state_dict,
    find_supernet,
)
from detnas_d2.search_space import SPACES, PathError
from tests.helpers import detector_config, training_batch

TINY = SPACES["detnas_tiny"]


def bn(channels: int) -> nn.Module:
    return get_norm("BN", channels)


def supernet(**options: object) -> Supernet:
    options = {"norm": bn, "shuffle_method": 1, "out_features": ["stage1", "stage4"], **options}
    return Supernet(TINY, **options)


def test_parameters_of_the_small_supernet() -> None:
    net = Supernet(SPACES["detnas_small"], norm=bn, shuffle_method=1, out_features=["stage4"])
    assert sum(p.numel() for p in net.parameters()) == 6_808_256


def test_shapes_of_features_on_odd_images() -> None:
    path = TINY.random_path(random.Random(0))
    net = DecodedBackbone(
        path,
        norm=bn,
        shuffle_method=2,
        out_features=["stage1", "stage2", "stage3", "stage4", "last"],
        last_conv=True,
    )
    outputs = net(torch.rand(2, 3, 65, 97))
    for name, shape in net.output_shape().items():
        height, width = -(-65 // shape.stride), -(-97 // shape.stride)
        assert outputs[name].shape == (2, shape.channels, height, width)
    assert list(outputs) == ["stage1", "stage2", "stage3", "stage4", "last"]


def test_supernet_without_active_path_raises() -> None:
    net = supernet()
    with pytest.raises(RuntimeError, match="no path is active"):
        net(torch.rand(1, 3, 32, 32))
    path = TINY.uniform_path("3x3")
    with pytest.raises(ZeroDivisionError), net.active(path):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="no path is active"):
        net(torch.rand(1, 3, 32, 32))


def test_activation_nests_and_checks_the_space() -> None:
    net = supernet()
    first, second = TINY.uniform_path("3x3"), TINY.uniform_path("5x5")
    with activate(net, first):
        with activate(net, second):
            assert net.active_path == second
        assert net.active_path == first
    with (
        pytest.raises(ValueError, match="detnas_small"),
        net.active(SPACES["detnas_small"].uniform_path("3x3")),
    ):
        pass
    with pytest.raises(ValueError, match="no supernet"), activate(nn.Identity(), first):
        pass


@pytest.mark.parametrize("seed", range(3))
def test_a_path_of_the_supernet_is_the_searched_network(seed: int) -> None:
    path = TINY.random_path(random.Random(seed))
    net = supernet().eval()
    alone = DecodedBackbone(
        path, norm=bn, shuffle_method=1, out_features=["stage1", "stage4"]
    ).eval()
    alone.load_state_dict(adapt_state_dict(net.state_dict(), alone))
    x = torch.rand(2, 3, 33, 47)
    with net.active(path):
        expected = net(x)
    for name, value in alone(x).items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_features": ["last"]}, "last"),
        ({"out_features": []}, "expected some of"),
        ({"init": "xavier"}, "init 'xavier'"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        supernet(**options)


def test_released_initial_weights() -> None:
    torch.manual_seed(0)
    net = supernet(init="imagenet")
    block = net.blocks[-1].candidates["xception"]
    pointwise, depthwise = block.main[1].conv.weight, block.main[0].conv.weight
    assert pointwise.std().item() == pytest.approx(1 / pointwise.shape[1], rel=0.1)
    assert depthwise.std().item() == pytest.approx(1, rel=0.15)
    assert net.stem.conv.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert (block.main[0].norm.bias == 1e-4).all()


def test_default_initial_weights() -> None:
    """Torch's, uniform up to 1 / sqrt(fan-in): 1 / k for depthwise kernels of k x k."""
    torch.manual_seed(0)
    net = supernet()
    assert base_config().MODEL.DETNAS.INIT == "default"
    for op, kernel in (("3x3", 3), ("7x7", 7)):
        block = net.blocks[-1].candidates[op]
        depthwise = block.main[1].conv.weight
        assert depthwise.shape[1:] == (1, kernel, kernel)
        assert depthwise.abs().max().item() == pytest.approx(1 / kernel, rel=0.02)
        assert (block.main[1].norm.bias == 0).all()
    assert net.stem.conv.weight.std().item() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("kind", ["faster", "mask", "retinanet"])
def test_detectron2_meta_architectures_host_the_supernet(kind: str) -> None:
    torch.manual_seed(0)
    cfg = detector_config(kind)
    model = build_model(cfg)
    path = TINY.random_path(random.Random(4))
    with EventStorage(0), activate(model, path):
        losses = model.train()(training_batch(masks=kind == "mask"))
        sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    for index, block in enumerate(find_supernet(model).blocks):
        for op in block.ops:
            prefix = f"backbone.bottom_up.blocks.{index}.candidates.{op}."
            assert any(n.startswith(prefix) for n in moved) == (op == path.ops[index])
    with torch.no_grad(), activate(model, path):
        outputs = model.eval()(training_batch())
    assert len(outputs) == 2 and all("instances" in output for output in outputs)


def test_missing_and_wrong_paths_name_the_key() -> None:
    cfg = detector_config("faster")
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    with pytest.raises(PathError, match="MODEL.DETNAS.PATH is empty"):
        build_model(cfg)
    cfg.MODEL.DETNAS.PATH = "3x3 3x3"
    message = f"MODEL.DETNAS.PATH: space 'detnas_tiny' has {TINY.num_layers} layers"
    with pytest.raises(PathError, match=message):
        build_model(cfg)


@pytest.mark.parametrize("init", ["imagenet", "default"])
def test_relaxed_backbone_starts_with_the_weights_of_the_supernet(init: str) -> None:
    nets = []
    for build in (Supernet, RelaxedShuffleNet):
        torch.manual_seed(0)
        features = ["stage1", "last"]
        nets.append(
            build(TINY, norm=bn, shuffle_method=1, out_features=features, last_conv=True, init=init)
        )
    expected, found = (net.state_dict() for net in nets)
    architecture = {"blocks.alpha", "blocks.remaining"}
    assert found.keys() - architecture == {
        key.replace("blocks.", "blocks.blocks.", 1) for key in expected
    }
    for key, value in expected.items():
        assert torch.equal(found[key.replace("blocks.", "blocks.blocks.", 1)], value), key
