"""Weights that a run may start from: told apart, converted, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torchvision.models import resnet18, resnet50

from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.modeling import supernet_backbone
from detnas_d2.modeling.detnas.released import released_names
from detnas_d2.recipe.weights import starting_weights
from detnas_d2.utils.errors import InputError
from tests.helpers import resnet_features


def saved(folder: Path, state: dict[str, torch.Tensor], **others: object) -> str:
    file = folder / "given.pth"
    torch.save({"model": state, **others}, file)
    return str(file)


@pytest.mark.parametrize("space", ["detnas_tiny", "detnas_demo"])
def test_a_supernet_tells_its_space(space: str, tmp_path: Path) -> None:
    state = supernet_backbone(space=space).state_dict()
    file = saved(tmp_path, {f"backbone.bottom_up.{key}": value for key, value in state.items()})
    start = starting_weights(file, str(tmp_path / "config"))
    assert (start.supernet, start.space, start.resnet) == (file, space, "")


def test_a_supernet_of_another_space_is_refused(tmp_path: Path) -> None:
    state = supernet_backbone(space="detnas_tiny").state_dict()
    own = {key: value for key, value in state.items() if ".5x5." not in key}
    with pytest.raises(InputError, match="a supernet of a space that is not built in"):
        starting_weights(saved(tmp_path, own), str(tmp_path))


@pytest.mark.parametrize("prefix", ["", "module.backbone.body."])
def test_a_released_supernet_is_converted(prefix: str, tmp_path: Path) -> None:
    names = released_names("detnas_300M_supernet")
    state = {
        prefix + name: torch.full(entry.shape, float(number))
        for number, (name, entry) in enumerate(names.items())
    }
    others = {"module.rpn.head.conv.weight": torch.zeros(1)} if prefix else {}
    start = starting_weights(saved(tmp_path, state | others), str(tmp_path / "config"))
    assert start.space == "detnas_small" and start.supernet == str(tmp_path / "config/weights.pth")
    found = torch.load(start.supernet)["model"]
    first = next(iter(names))
    assert torch.equal(found[names[first].key], state[prefix + first])
    supernet_backbone(space="detnas_small").load_state_dict(found, strict=False)


def test_a_released_network_of_one_path_is_refused(tmp_path: Path) -> None:
    state = {
        name: torch.zeros(entry.shape) for name, entry in released_names("detnas_300M_fpn").items()
    }
    with pytest.raises(InputError, match="the released detnas_300M_fpn has one path"):
        starting_weights(saved(tmp_path, state), str(tmp_path))


def test_a_resnet_of_torchvision_becomes_detectron2s(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = resnet50(weights=None).eval()
    file = tmp_path / "resnet50.pth"
    torch.save(theirs.state_dict(), file)
    start = starting_weights(str(file), str(tmp_path / "config"))
    assert start.resnet and not start.caffe and not start.supernet
    assert not [key for key in torch.load(start.resnet)["model"] if "num_batches" in key]
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    model = torch.nn.Module()
    model.backbone = build_backbone(cfg).eval()
    DetNASCheckpointer(model).load(start.resnet)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours = model.backbone.bottom_up(image)["res5"]
        expected = resnet_features(theirs, image)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_resnet_of_detectron2_is_a_baseline(tmp_path: Path) -> None:
    state = {f"res2.{n}.conv1.weight": torch.zeros(1, 1, 1, 1) for n in range(53)}
    start = starting_weights(saved(tmp_path, state), str(tmp_path))
    assert start.caffe and start.resnet.endswith("given.pth")


def test_anything_else_is_refused_by_what_is_expected(tmp_path: Path) -> None:
    state = resnet18(weights=None).state_dict()
    with pytest.raises(InputError) as error:
        starting_weights(saved(tmp_path, state), str(tmp_path))
    text = str(error.value)
    assert "its first names are conv1.weight" in text and "--budget 237M to 365M" in text
    assert "\n" not in text
