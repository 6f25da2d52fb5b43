"""The converter's names against hand-written ones, and its refusals."""

from __future__ import annotations

import hashlib
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

from detnas_d2.modeling import WeightsError
from detnas_d2.modeling.detnas.released import RELEASES, convert, released_names
from detnas_d2.search_space import get_space
from tests.experiments import frozen

ROOT = Path(__file__).parents[3]

# Number of names, parameters, and start of the SHA-256 of the lines "name [shape]" of the lists
# that were made with the authors' classes.
MEASURED = {
    "detnas_1.3G_fpn": (1063, 8_415_216, "59efeedda6052dce"),
    "detnas_3.8G_fpn": (1063, 26_724_428, "ad94000b117f49f4"),
    "detnas_300M_fpn": (523, 1_849_680, "09bfeb4a04e8eb6c"),
    "detnas_300M_imagenet_supernet": (2008, 8_491_688, "ff388ae80cb38ed0"),
    "detnas_300M_retinanet": (595, 2_041_888, "ddbea440e91f5204"),
    "detnas_300M_supernet": (1999, 6_808_256, "ab057527672cc9f0"),
    "detnas_fpn_neck_1.3G_fpn": (56, 2_820_096, "5b0f62c36a32af21"),
    "detnas_fpn_neck_300M_retinanet": (16, 3_237_888, "44d0564cb02df1b2"),
    "detnas_head_4conv1fc": (34, 15_623_573, "b2355512137ca3c2"),
}


def empty_state(model: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(entry.shape) for name, entry in released_names(model).items()}


@pytest.mark.parametrize("model", MEASURED)
def test_names_and_shapes_are_the_measured_ones(model: str) -> None:
    names = released_names(model)
    learned = [e.shape for n, e in names.items() if n.endswith((".weight", ".bias"))]
    lines = "".join(f"{name} {list(entry.shape)}\n" for name, entry in names.items())
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert (len(names), sum(map(math.prod, learned)), digest) == MEASURED[model]
    assert len({entry.key for entry in names.values()}) == len(names)


@pytest.mark.parametrize(
    ("model", "name", "key", "shape"),
    [
        ("detnas_300M_fpn", "first_conv.conv.bias", "stem.conv.bias", (16,)),
        ("detnas_300M_fpn", "first_conv.bn.running_var", "stem.norm.running_var", (16,)),
        (
            "detnas_300M_fpn",
            "features.0.conv.1.interstellar1a_shufflenet_7x7_branch2b_s.weight",
            "blocks.0.main.1.conv.weight",
            (32, 1, 7, 7),
        ),
        (
            "detnas_300M_fpn",
            "features.8.proj_conv.bn3a_proj.num_batches_tracked",
            "blocks.8.projection.1.norm.num_batches_tracked",
            (),
        ),
        (
            "detnas_300M_fpn",
            "features.9.conv.2.interstellar3b_xception_3x3_branch2c_s_bn.bias",
            "blocks.9.main.4.norm.bias",
            (160,),
        ),
        (
            "detnas_3.8G_fpn",
            "features.0.conv.1.interstellar1a_shufflenet_3x3_branch2b.weight",
            "blocks.0.main.2.conv.weight",
            (100, 86, 1, 1),
        ),
        (
            "detnas_1.3G_fpn",
            "features.31.conv.1.bn3p_xception_3x3_branch2b.weight",
            "blocks.31.main.3.norm.weight",
            (240,),
        ),
        (
            "detnas_300M_supernet",
            "features.5.1.conv.0.interstellar2b_shufflenet_5x5_branch2a.weight",
            "blocks.5.candidates.5x5.main.0.conv.weight",
            (80, 80, 1, 1),
        ),
        (
            "detnas_300M_imagenet_supernet",
            "features.4.3.conv.0.interstellar2a_xception_3x3_branch2a.weight",
            "backbone.blocks.4.candidates.xception.main.1.conv.weight",
            (80, 64, 1, 1),
        ),
        (
            "detnas_300M_imagenet_supernet",
            "last_conv.conv.bias",
            "backbone.last.conv.bias",
            (1024,),
        ),
        ("detnas_300M_imagenet_supernet", "fc.fc.weight", "linear.weight", (1000, 1024)),
        ("detnas_fpn_neck_1.3G_fpn", "fpn_inner1.0.bias", "fpn_lateral2.bias", (256,)),
        ("detnas_fpn_neck_1.3G_fpn", "fpn_layer4.1.weight", "fpn_output5.norm.weight", (256,)),
        (
            "detnas_fpn_neck_300M_fpn",
            "fpn_inner4.0.weight",
            "fpn_lateral5.weight",
            (256, 640, 1, 1),
        ),
        (
            "detnas_fpn_neck_300M_retinanet",
            "top_blocks.p7.weight",
            "top_block.p7.weight",
            (256, 256, 3, 3),
        ),
        (
            "detnas_head_4conv1fc",
            "feature_extractor.xconvs.9.weight",
            "box_head.conv4.weight",
            (256, 256, 3, 3),
        ),
        (
            "detnas_head_4conv1fc",
            "predictor.bbox_pred.bias",
            "box_predictor.bbox_pred.bias",
            (324,),
        ),
    ],
)
def test_name(model: str, name: str, key: str, shape: tuple[int, ...]) -> None:
    entry = released_names(model)[name]
    assert (entry.key, entry.shape) == (key, shape)


@pytest.mark.parametrize("network", ["300M_fpn", "300M_retinanet", "1.3G_fpn", "3.8G_fpn"])
def test_config_has_the_released_path_and_shuffle(network: str) -> None:
    name = f"DetNAS/released/detnasnet_{network}_coco"
    node = frozen(name if "3.8G" in network else f"{name}.yaml").MODEL.DETNAS
    release = RELEASES[f"detnas_{network}"]
    path = get_space(release.space).path(node.PATH)
    assert (node.SPACE, "".join(map(str, path))) == (release.space, release.choices)
    assert node.SHUFFLE_METHOD == release.shuffle_method == 2


@pytest.mark.parametrize("kind", ["imagenet", "fpn_coco", "retinanet_coco"])
def test_supernets_need_shuffle_1(kind: str) -> None:
    node = frozen(f"DetNAS/{kind}/supernet.yaml").MODEL.DETNAS
    model = "detnas_300M_imagenet_supernet" if kind == "imagenet" else "detnas_300M_supernet"
    assert node.SHUFFLE_METHOD == RELEASES[model].shuffle_method == 1


def test_every_bad_name_is_named() -> None:
    state = empty_state("detnas_fpn_neck_300M_retinanet")
    del state["fpn_inner2.weight"], state["top_blocks.p6.bias"]
    state["fpn_layer3.bias"] = torch.zeros(255)
    state["fpn_inner1.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        convert(state, "detnas_fpn_neck_300M_retinanet")
    assert str(caught.value) == (
        "not the released weights 'detnas_fpn_neck_300M_retinanet': missing fpn_inner2.weight; "
        "missing top_blocks.p6.bias; unexpected fpn_inner1.weight; "
        "fpn_layer3.bias is (255,), expected (256,)"
    )


def test_counters_are_as_strict_as_tensors() -> None:
    state = empty_state("detnas_300M_fpn")
    state["first_conv.bn.num_batches_tracked"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"first_conv.bn.num_batches_tracked is \(1,\)"):
        convert(state, "detnas_300M_fpn")


def test_unknown_model() -> None:
    with pytest.raises(WeightsError, match="detnas_300M_fpn"):
        convert({}, "300M")


def test_prefix_of_parallel_training_is_removed() -> None:
    state = {f"module.{name}": v for name, v in empty_state("detnas_head_4conv1fc").items()}
    assert "box_head.fc1.weight" in convert(state, "detnas_head_4conv1fc")
    state["fc"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="unexpected fc"):
        convert(state, "detnas_head_4conv1fc")


def test_predictor_is_reordered() -> None:
    state = empty_state("detnas_head_4conv1fc")
    state["predictor.cls_score.bias"] = torch.arange(81.0)
    state["predictor.bbox_pred.bias"] = torch.arange(324.0)
    converted = convert(state, "detnas_head_4conv1fc")
    assert converted["box_predictor.cls_score.bias"].tolist() == [*range(1, 81), 0]
    assert converted["box_predictor.bbox_pred.bias"].tolist() == list(range(4, 324))
    assert converted["box_predictor.bbox_pred.weight"].shape == (320, 1024)


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "detnas_300M_fpn"
    state = {n: torch.randn(v.shape) for n, v in empty_state(model).items()}
    whole = {f"module.backbone.body.{n}": v for n, v in state.items()}
    whole["module.rpn.head.conv.bias"] = torch.zeros(1)
    torch.save({"model": whole, "iteration": 90000}, tmp_path / "in.pth")
    files = [str(tmp_path / "in.pth"), str(tmp_path / "out.pth")]
    command = str(ROOT / "projects/DetNAS/convert_released.py")
    argv = [command, "--model", model, "--prefix", "module.backbone.body.", *files]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(command, run_name="__main__")
    assert "523 tensors" in (out := capsys.readouterr().out) and "SHUFFLE_METHOD 2" in out
    written = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert all(torch.equal(written[k], v) for k, v in convert(state, model).items())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["in.pth", "out.pth"]
