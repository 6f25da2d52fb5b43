"""Names that hosts do not promise to keep still do what the package needs of them."""

from __future__ import annotations

import platform
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import PreciseBN
from detectron2.evaluation import COCOEvaluator, pascal_voc_evaluation
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import CommonMetricPrinter
from detectron2.utils.logger import setup_logger
from PIL import Image
from torch import nn
from torch.autograd import forward_ad

from detnas_d2.utils import compat
from tests.evaluation.coco_scenes import forget, ground_truth, register


def test_below_autograd() -> None:
    x = torch.ones(2, requires_grad=True)
    with compat.below_autograd():
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_any_requires_grad() -> None:
    x, y = torch.ones(2), torch.ones(2, requires_grad=True)
    assert compat.any_requires_grad(x, None, 1, [x, y]) and compat.any_requires_grad(y)
    assert not compat.any_requires_grad(x, None, 1, [x], [1, 2], True)


def test_is_any_autocast_enabled() -> None:
    assert not compat.is_any_autocast_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        assert compat.is_any_autocast_enabled()


def test_multiplies_bfloat16() -> None:
    found = compat.multiplies_bfloat16()
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert found == ("avx512_bf16" in Path("/proc/cpuinfo").read_text().split())
    else:
        assert isinstance(found, bool)


def test_in_function_transform() -> None:
    inside = []
    torch.func.vmap(lambda x: (inside.append(compat.in_function_transform()), x)[1])(torch.ones(2))
    assert inside == [True] and not compat.in_function_transform()

    def f(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if compat.in_function_transform() else x * 3

    compiled = torch.compile(
        lambda x: (f(x), torch.func.vmap(f)(x)), backend="eager", fullgraph=True
    )
    assert [t.tolist() for t in compiled(torch.ones(1))] == [[3], [2]]


def test_in_forward_differentiation() -> None:
    assert not compat.in_forward_differentiation()
    with forward_ad.dual_level():
        assert compat.in_forward_differentiation()


def test_voc_evaluation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = SimpleNamespace()
    monkeypatch.setattr(pascal_voc_evaluation, "comm", ranks)
    with pytest.raises(KeyError), compat.voc_evaluation_alone():
        assert pascal_voc_evaluation.comm.gather("mine", dst=0) == ["mine"]
        assert pascal_voc_evaluation.comm.is_main_process()
        raise KeyError
    assert pascal_voc_evaluation.comm is ranks


def test_excluding() -> None:
    x, without = torch.ones(2, 2), compat.excluding("AutocastCUDA", "AutocastCPU")
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        for _ in range(2):
            with without():
                assert (x @ x).dtype == torch.float32


def test_end_logging(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "log.txt")
    for text in ("first", "second"):
        logger = setup_logger(file, name="of a test")
        (log,) = {h.stream for h in logger.handlers if h.stream is not sys.stdout}
        logger.info(text)
        compat.end_logging(["of a test"])
        assert log.closed and logger.handlers == []
    assert (tmp_path / "log.txt").read_text().count("of a test") == 2
    print("the screen is open")
    assert "the screen is open" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_has_global_hook(kind: str) -> None:
    assert not compat.has_global_hook()
    handle = getattr(nn.modules.module, f"register_module_{kind}")(lambda *_: None)
    assert compat.has_global_hook()
    handle.remove()
    assert not compat.has_global_hook()


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


def test_drop_script_plans() -> None:
    x = torch.ones(3)
    for _ in range(3):
        scripted(x)
    assert scripted.get_debug_state().execution_plans
    compat.drop_script_plans()
    with pytest.raises(RuntimeError, match="optimized_plan_"):  # there is none
        scripted.get_debug_state()
    assert scripted(x).tolist() == [3, 3, 3]


def test_signal_at_parents_end() -> None:
    compat.signal_at_parents_end(signal.SIGKILL)  # of pytest's parent; taken back
    compat.signal_at_parents_end(0)


def test_last_coco_records(tmp_path) -> None:
    register("records", ground_truth(0), tmp_path)
    try:
        evaluator = COCOEvaluator("records", distributed=False)
    finally:
        forget("records")
    evaluator.reset()
    for number in (100, 101):
        found = Instances((90, 120))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0, number, 9]]))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.long)
        evaluator.process([{"image_id": number}], [{"instances": found}])
    (record,) = compat.last_coco_records(evaluator, "instances")
    assert record["image_id"] == 101 and record["bbox"] == [0, 0, 101, 9]


def test_transform_annotations() -> None:
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    box = {"bbox": [0, 0, 4, 2], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3}
    sample = {"annotations": [box]}
    compat.transform_annotations(mapper, sample, T.ResizeTransform(8, 8, 16, 16), (16, 16))
    assert sample["instances"].gt_boxes.tensor.tolist() == [[0, 0, 8, 4]]
    assert sample["instances"].gt_classes.tolist() == [3] and "annotations" not in sample


def test_apply_exif_orientation() -> None:
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6
    assert compat.apply_exif_orientation(image).size == (2, 4)


def test_decoded_value() -> None:
    assert compat.decoded_value("(1, 'a')") == (1, "a")
    assert compat.decoded_value("plain text") == "plain text"


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (CommonMetricPrinter, "_get_eta"),
        (DetectionCheckpointer, "_load_model"),
        (StandardROIHeads, "_init_box_head"),
        (nn.Module, "_apply"),
        (nn.Module, "_load_from_state_dict"),
    ],
)
def test_methods_that_subclasses_extend(cls: type, name: str) -> None:
    assert callable(getattr(cls, name))


def test_attributes_that_are_read() -> None:
    norm = nn.BatchNorm2d(2)
    assert {"weight", "bias"} == norm._parameters.keys() and norm._modules == {}
    assert {"running_mean", "running_var", "num_batches_tracked"} == norm._buffers.keys()
    assert not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks)
    assert torch.ones(1).add_(1)._version == 1
    hook = PreciseBN(7, norm, [], 3)
    assert (hook._period, hook._model, hook._data_loader, hook._num_iter) == (7, norm, [], 3)
    assert not hook._disabled


def test_trainers_keep_their_step() -> None:
    assert "_trainer" in DefaultTrainer.__init__.__code__.co_names
