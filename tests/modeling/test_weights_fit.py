"""Weights fit the model in whole parts, or are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from detnas_d2.engine import DetNASCheckpointer
from detnas_d2.modeling import WeightsError
from detnas_d2.modeling.weights_fit import check_fit, strip_shared_prefixes
from tests.helpers import detector_config


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    return build_model(detector_config("faster"))


def _moved(model: nn.Module) -> dict[str, Tensor]:
    return {k: v + 0.25 if v.is_floating_point() else v for k, v in model.state_dict().items()}


def _load(folder: Path, state: Mapping[str, object], model: nn.Module) -> None:
    torch.save({"model": dict(state)}, folder / "w.pth")
    DetNASCheckpointer(model).load(str(folder / "w.pth"), checkpointables=[])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_prefix_of_all_keys_is_stripped(prefix: str, detector: nn.Module, tmp_path: Path) -> None:
    state, target = _moved(detector), build_model(detector_config("faster"))
    _load(tmp_path, {prefix + key: value for key, value in state.items()}, target)
    new = target.state_dict()
    assert len(state) > 100 and all(torch.equal(new[key], value) for key, value in state.items())


def test_a_prefix_of_the_model_itself_stays() -> None:
    model = nn.ModuleDict({"model": nn.Linear(1, 1)})
    state = model.state_dict()
    assert strip_shared_prefixes(state, model) == state
    wrapped = {f"module.{key}": value for key, value in state.items()}
    assert strip_shared_prefixes(wrapped, model) == state


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda s: {f"net.{k}": v for k, v in s.items()}, "remove 'net' and the dot"),
        (
            lambda s: {k.replace("e", "a"): v for k, v in s.items()},
            "no tensor of the model is in the",
        ),
        (lambda s: {}, "there are no weights in the file"),
        (
            lambda s: {k: v for k, v in s.items() if "fpn_lateral3.weight" not in k},
            r"in part only \(1 .*fpn_lateral3\.weight is missing",
        ),
        (
            lambda s: {k: v[:1] if "rpn_head.conv.weight" in k else v for k, v in s.items()},
            r"rpn_head\.conv\.weight is \(1, .*expected",
        ),
        (
            lambda s: {k: v * float("nan") if "cls_score" in k else v for k, v in s.items()},
            "cls_score.* holds NaN",
        ),
        (lambda s: {**s, "x": 3}, "'x' is a int, expected a tensor"),
        (
            lambda s: {k: v[:, :1] if "cls_score.weight" in k else v for k, v in s.items()},
            r"cls_score\.weight is .*expected",
        ),
    ],
)
def test_what_fits_in_part_is_refused(
    alter: object, message: str, detector: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=rf"MODEL\.WEIGHTS .*w\.pth: .*{message}"):
        _load(tmp_path, alter(_moved(detector)), build_model(detector_config("faster")))


def test_parts_may_be_absent_and_classes_others(detector: nn.Module, tmp_path: Path) -> None:
    state = _moved(detector)
    backbone = {k: v for k, v in state.items() if k.startswith("backbone.bottom_up.")}
    check_fit(backbone, detector)
    target = build_model(detector_config("faster"))
    classes = target.roi_heads.box_predictor.cls_score
    grown = {k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in state.items() if "cls_score" in k}
    before = classes.weight.clone()
    _load(tmp_path, {**state, **grown}, target)
    assert torch.equal(classes.weight, before)  # anew
    boxes = "roi_heads.box_predictor.bbox_pred.weight"
    assert torch.equal(target.state_dict()[boxes], state[boxes])
    for whole in (backbone, {**state, **grown}):
        with pytest.raises(WeightsError, match="in part only"):
            check_fit(whole, detector, whole=True)


def test_pickles_of_pycls_run_no_code(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "hacked",)

    torch.save({"model_state": Malicious()}, tmp_path / "bad.pyth")
    with pytest.raises(WeightsError, match=r"bad\.pyth is no checkpoint that can be read"):
        DetNASCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "bad.pyth"))
    assert not (tmp_path / "hacked").exists()
