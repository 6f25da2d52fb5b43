"""A supernet at fewer channels of neck and head: the decoded network, to the bit."""

from __future__ import annotations

import random

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import network_config, searched_space
from detnas_d2.evaluation.recalibration import recalibrate
from detnas_d2.modeling import WeightsError, activate, adapt_state_dict, find_supernet
from detnas_d2.modeling.hit.narrow import corner, narrowed_state
from detnas_d2.search_space import Path
from detnas_d2.utils.errors import InputError
from tests.helpers import changed, snapshot, training_batch
from tests.modeling.hit.test_detector import config
from tests.modeling.hit.test_retinanet import one_stage

CHANNELS = (12, 20, 32)
OPS = ["skip", "ir_k3_e3_d1", "ir_k3_e1_g2", "sep_k3_d1", "conv_k1", "conv_k3"]
KINDS = ("faster", "mask", "retinanet")
EXACT = {"rtol": 0.0, "atol": 0.0}


def elastic(kind: str = "faster") -> CfgNode:
    """A sampled detector with several widths of the neck.

    "mask" searches backbone and neck alone and has Detectron2's heads; "retinanet" has GN.
    """
    parts = ("backbone", "neck", "head")
    if kind == "retinanet":
        cfg = one_stage(parts)
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    else:
        cfg = config(parts[:2] if kind == "mask" else parts)
    if kind == "mask":
        cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
        cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 8
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 1, 16
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    for part in ("BACKBONE", "NECK", "HEAD"):
        cfg.MODEL.HIT.OPS[part] = OPS
    cfg.MODEL.HIT.STRATEGY = "sampling"
    cfg.MODEL.HIT.NECK_CHANNELS = list(CHANNELS)
    return cfg


def supernet_and_networks(kind: str) -> tuple[nn.Module, list[tuple[Path, nn.Module]]]:
    """A supernet, and two random paths at each width with the networks that have its weights."""
    cfg = elastic(kind)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():  # as after training: no norm is the identity
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    space, rng = searched_space(cfg), random.Random(3)
    choices = [list(space.random_path(rng)) for _ in range(2 * len(CHANNELS))]
    found = []
    for number, genes in enumerate(choices):
        genes[space.gene] = number % len(CHANNELS)
        path = space.path(genes)
        network = build_model(network_config(cfg, path))
        state = adapt_state_dict(model.state_dict(), network)
        assert not network.load_state_dict(state, strict=False).missing_keys
        found.append((path, network))
    return model, found


def outputs(model: nn.Module, batch: list[dict]) -> list[Tensor]:
    """Features and detections."""
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(batch).tensor)
        found = [result["instances"] for result in model(batch)]
    tensors = [t for each in found for t in (each.pred_boxes.tensor, each.scores)]
    tensors += [each.pred_masks for each in found if each.has("pred_masks")]
    return [*features.values(), *tensors]


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_is_its_network(kind: str) -> None:
    model, networks = supernet_and_networks(kind)
    model.eval()
    assert find_supernet(model).space == searched_space(elastic(kind))
    batch = training_batch(masks=kind == "mask", sizes=((64, 96), (50, 70)))
    before, numbers = snapshot(model), [vars(module).copy() for module in model.modules()]
    for path, network in networks:
        with activate(model, path):
            found = outputs(model, batch)
        expected = outputs(network.eval(), batch)
        assert found[0].shape[1] == path.space.channels(path)
        assert len(found) == len(expected) and sum(len(t) for t in found[-2:]) > 0
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), str(path)
    assert not changed(model, before)
    for module, own in zip(model.modules(), numbers, strict=True):
        assert vars(module).keys() == own.keys()
        assert all(vars(module)[key] is value for key, value in own.items())


def test_a_detector_inside_another_model() -> None:
    cfg = elastic()
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    owner, x = nn.ModuleDict({"detector": model}), torch.rand(1, 3, 64, 64)
    path = searched_space(cfg).first_path()
    found = []
    for whole in (owner, model):
        with activate(whole, path), torch.no_grad():
            found.append(model.backbone(x)["p3"])
    assert found[0].shape[1] == CHANNELS[0] and torch.equal(*found)


def test_a_path_is_its_network_in_half_precision() -> None:
    model, networks = supernet_and_networks("faster")
    batch = training_batch(sizes=((64, 96),))
    for path, network in networks[:2]:
        with torch.autocast("cpu", torch.bfloat16):
            with activate(model.eval(), path):
                found = outputs(model, batch)
            expected = outputs(network.eval(), batch)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_that_of_the_network(kind: str) -> None:
    """Gradients and running statistics: of the corner those of the network, else none."""
    model, networks = supernet_and_networks(kind)
    batch = training_batch(masks=kind == "mask")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for path, network in networks[:3]:
        model.load_state_dict(start)
        model.zero_grad(set_to_none=True)
        if kind == "retinanet":  # a running average, which moves in narrow paths too
            model.loss_normalizer = network.loss_normalizer = 90.0
        losses = []
        for trained in (model, network):
            torch.manual_seed(1)
            with EventStorage(0), activate(model, path):
                found = trained.train()(batch)
                sum(found.values()).backward()
            losses.append(found)
        assert losses[0].keys() == losses[1].keys()
        assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())
        if kind == "retinanet":
            assert model.loss_normalizer == network.loss_normalizer != 90.0
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        stems = {k: v for k, v in model.state_dict().items() if k not in gradients}
        narrow = adapt_state_dict({**stems, **gradients}, network)
        used = 0
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                # Pyramid levels share RetinaNet's head; their gradients are added in any order.
                loose = {"rtol": 1e-4, "atol": 1e-6} if kind == "retinanet" else EXACT
                torch.testing.assert_close(narrow[name], parameter.grad, **loose)
                used += parameter.grad.abs().sum().item() > 0
        assert used > 10
        whole = sum(g.double().abs().sum() for g in gradients.values())
        ours = sum(p.grad.double().abs().sum() for p in network.parameters() if p.grad is not None)
        torch.testing.assert_close(whole, ours)  # nothing outside of the corners
        state = adapt_state_dict(model.state_dict(), network)
        for name, buffer in network.named_buffers():
            assert name not in state or torch.equal(state[name], buffer), name
        moved = {n for n, value in model.state_dict().items() if not torch.equal(value, start[n])}
        assert kind == "retinanet" or any("running_mean" in name for name in moved)


def test_statistics_are_those_of_the_network() -> None:
    model, networks = supernet_and_networks("faster")
    batches = [(n, training_batch(sizes=((64, 64),), classes=(n,))) for n in range(3)]
    for path, network in networks:
        with activate(model, path):
            found = recalibrate(model, batches, seed=2).moments
        expected = recalibrate(network, batches, seed=2).moments
        assert len(found) == len(expected) > 10
        # Candidates are called otherwise there, in the same order.
        for ours, theirs in zip(found.values(), expected.values(), strict=True):
            assert torch.equal(ours.mean, theirs.mean) and torch.equal(ours.m2, theirs.m2)


def test_a_frozen_checkpoint_of_more_channels_starts_a_network() -> None:
    """Against the slow way: each element where it stands."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 4, 3, generator=generator)
    narrow = corner(wide, torch.Size((3, 4, 1)))
    assert narrow.shape == (3, 4, 1)
    for i, j, k in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(1)):
        assert narrow[i, j, k] == wide[i, j, k]
    state = {"neck": torch.zeros(6), "layer": torch.zeros(12, 6), "classes": torch.zeros(81, 6)}
    expected = {"neck": torch.zeros(2), "layer": torch.zeros(4, 2), "classes": torch.zeros(21, 2)}
    shapes = {k: tuple(v.shape) for k, v in narrowed_state(state, expected, "neck").items()}
    assert shapes == {"neck": (2,), "layer": (4, 2), "classes": (81, 6)}  # those are refused later
    with pytest.raises(WeightsError, match="of a neck of 2 channels, the model's has 6"):
        narrowed_state(expected, state, "neck")


def test_one_number_is_a_detector_of_so_many_channels() -> None:
    cfg = config()
    cfg.MODEL.HIT.NECK_CHANNELS = [20]
    model = build_model(cfg)
    assert {shape.channels for shape in model.backbone.output_shape().values()} == {20}
    assert model.roi_heads.box_head.fc.in_features == 20 * 7 * 7
    assert model.backbone.widths is None
    cfg.MODEL.HIT.NECK_CHANNELS = [32]  # the frame's own
    torch.manual_seed(0)
    state = build_model(cfg).state_dict()
    cfg.MODEL.HIT.NECK_CHANNELS = []
    torch.manual_seed(0)
    plain = build_model(cfg).state_dict()
    assert list(state) == list(plain) and all(torch.equal(state[k], plain[k]) for k in plain)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("STRATEGY", "gradient", r"\[12, 20, 32\]: several .* by MODEL.HIT.STRATEGY 'gradient'"),
        ("SEARCHABLE_PARTS", [], r"of MODEL.HIT.SEARCHABLE_PARTS \[\]"),
        ("NECK_CHANNELS", [16, 32], r"\[16, 32\]: 16 are .* layer 0 of the neck .* no 'skip'"),
        ("NECK_CHANNELS", [32, 64], r"\[32, 64\]: 64 are .* layer 3 of the neck"),
    ],
)
def test_errors_name_key_and_value(key: str, value: object, match: str) -> None:
    cfg = elastic()
    cfg.MODEL.HIT[key] = value
    with pytest.raises(InputError, match=match):
        searched_space(cfg)


def test_another_neck_is_refused() -> None:
    cfg = elastic()
    cfg.MODEL.BACKBONE.NAME = "build_hit_fpn_backbone"
    with pytest.raises(InputError, match="build_hit_fpn_backbone has no Hit neck; expected build"):
        searched_space(cfg)
    with pytest.raises(InputError, match=r"NECK_CHANNELS .*\[32, 12\].*rising"):
        load_config("", ["MODEL.HIT.NECK_CHANNELS", "[32, 12]"])
