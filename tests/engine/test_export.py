"""Exported networks against the eager ones; export_net.py."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from detnas_d2.data import register_datasets
from detnas_d2.engine.architectures import decode_backbones
from detnas_d2.engine.export import (
    ExportError,
    as_model,
    difference,
    evaluate_eager,
    evaluate_exported,
    export_network,
    load_exported,
    other_shape,
    sample_image,
)
from detnas_d2.engine.inference import load_trained
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, write_config

COMMAND = str(Path(__file__).parents[2] / "projects" / "DetNAS" / "export_net.py")
NAMES = ("pred_boxes", "pred_classes", "scores", "image_size")


@pytest.fixture
def trained(configs: Configs, tmp_path: Path):
    """Configs of searched networks with random weights and datasets that are registered."""

    def make(kind: str) -> CfgNode:
        cfg = configs(kind)
        decode_backbones(cfg)
        cfg.MODEL.DETNAS.PATH = "0 1 2 3 0"
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.WEIGHTS = str(tmp_path / f"{kind}.pth")
        torch.manual_seed(0)
        torch.save({"model": settled(build_model(cfg)).state_dict()}, cfg.MODEL.WEIGHTS)
        register_datasets(cfg)
        return cfg

    return make


@torch.no_grad()
def settled(model: nn.Module) -> nn.Module:
    """A model whose scores are not all alike: running statistics of an image, larger weights."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    model.train().backbone(image(96, 64)[None])
    for name, weight in model.named_parameters():
        if "cls_subnet" in name or "cls_score.weight" in name:
            weight.normal_(0, 0.1)
    return model


def image(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), generator=generator).float()


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_a_detector_is_reloaded_and_equals_the_eager_one(
    trained, tmp_path: Path, kind: str
) -> None:
    cfg = trained(kind)
    exported = export_network(cfg, sample_image(cfg), str(tmp_path / "out"), tolerance=1e-5)
    assert len(exported.differences) == 2 and exported.detections > 20
    assert exported.outputs == NAMES
    # A size that tracing has not seen, and another for the result.
    sample = [{"image": image(70, 50), "height": 35, "width": 100}]
    with torch.no_grad(), torch.jit.optimized_execution(False):
        (expected,) = load_trained(cfg)(sample)
        (found,) = as_model(cfg, exported)(sample)
    ours, theirs = expected["instances"], found["instances"]
    assert theirs.image_size == (35, 100) and len(ours) == len(theirs) > 10
    torch.testing.assert_close(theirs.scores, ours.scores)
    torch.testing.assert_close(theirs.pred_boxes.tensor, ours.pred_boxes.tensor)
    assert torch.equal(theirs.pred_classes, ours.pred_classes)
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    assert description["classes"] == ["a", "b", "c"]
    assert description["outputs"] == list(NAMES)
    sides = description["shortest_side"], description["longest_side_at_most"]
    assert sides == (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def test_a_backbone_takes_any_batch_and_size(trained, tmp_path: Path) -> None:
    cfg = trained("faster")
    cfg.MODEL.DETNAS.FUSED_OPS = "on"  # not in the file, which runs without this package
    exported = export_network(cfg, sample_image(cfg), str(tmp_path), part="backbone")
    assert exported.outputs == ("stage1", "stage2", "stage3", "stage4")
    run = load_exported(exported.file)
    assert "detnas_d2::" not in str(run.inlined_graph)
    batch = torch.stack([image(64, 96)] * 2) / 255
    with torch.no_grad():
        expected = load_trained(cfg).backbone.bottom_up(batch)
    eager = tuple(expected[name] for name in exported.outputs)
    assert difference(exported.outputs, eager, run(batch)) < 1e-5


def test_a_classifier_is_evaluated_from_its_file(trained, tmp_path: Path) -> None:
    cfg = trained("classifier")
    exported = export_network(cfg, sample_image(cfg), str(tmp_path))
    assert exported.outputs == ("scores",) and exported.detections is None
    (scores,) = load_exported(exported.file)(image(48, 40))
    with torch.no_grad():
        (expected,) = load_trained(cfg)([{"image": image(48, 40)}])
    torch.testing.assert_close(scores, expected["scores"])
    results = evaluate_exported(cfg, exported, str(tmp_path))
    assert results == evaluate_eager(cfg, str(tmp_path)) == Trainer.test(cfg, load_trained(cfg))
    assert results["classification"]["top1"] > 0


def test_a_file_that_differs_is_not_written(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = trained("classifier")
    module = "detnas_d2.engine.export"
    monkeypatch.setattr(f"{module}.load_exported", lambda *_: lambda x: (torch.zeros(3),))
    with pytest.raises(ExportError, match=r"differs from the eager one by .* \(tolerance 0.0001\)"):
        export_network(cfg, sample_image(cfg), str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_runs_at_one_shape_only_is_not_written(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object):
        def run(x: Tensor) -> tuple[Tensor, ...]:
            raise ValueError("cannot be reshaped")

        return run

    monkeypatch.setattr("detnas_d2.engine.export.load_exported", load)
    cfg = trained("classifier")
    with pytest.raises(ExportError, match=r"does not run on inputs .* cannot be reshaped; nothing"):
        export_network(cfg, sample_image(cfg), str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_network_that_cannot_be_traced(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no symbol for it")

    monkeypatch.setattr("detnas_d2.engine.export.trace", fail)
    cfg = trained("classifier")
    with pytest.raises(ExportError, match="model cannot be written as torchscript: no symbol"):
        export_network(cfg, sample_image(cfg), str(tmp_path / "out"))


def detections(*rows: tuple[float, float, float]) -> tuple[Tensor, ...]:
    """Of (left, class, score); boxes of 10 x 10 in an image of 50 x 100."""
    left, classes, scores = torch.tensor(rows).T
    boxes = torch.stack((left, left * 0, left + 10, left * 0 + 10), dim=1)
    return boxes, classes.long(), scores, torch.tensor([50, 100])


def test_difference_of_detections() -> None:
    first = detections((0, 1, 0.9), (30, 2, 0.5))
    assert difference(NAMES, first, first) == 0
    assert difference(NAMES, first, tuple(x.flip(0) for x in first[:3]) + first[3:]) == 0
    # Two pixels of 100, then a score, then a class, then a detection less.
    assert difference(NAMES, first, detections((2, 1, 0.9), (30, 2, 0.5))) == pytest.approx(0.02)
    assert difference(NAMES, first, detections((0, 1, 0.9), (30, 2, 0.6))) == pytest.approx(0.1)
    assert difference(NAMES, first, detections((0, 1, 0.9), (30, 1, 0.5))) >= 0.4
    assert math.isinf(difference(NAMES, first, detections((0, 1, 0.9))))
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0])
    assert difference(("x",), (a,), (b,)) == pytest.approx(0.125)


def test_command(trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(COMMAND)["main"]
    cfg = trained("classifier")
    config = ["--config-file", write_config(cfg, tmp_path / "net.yaml")]
    out = ["--output", str(tmp_path / "out")]
    picture = ["--sample-image", str(tmp_path / "colors" / "a" / "1.png")]
    main([*config, *out, "--run-eval"])
    assert (tmp_path / "out" / "model.ts").exists()
    printed = capsys.readouterr().out
    assert "largest difference from the eager network" in printed
    assert f"on {cfg.DATASETS.TEST[0]}:\nmetric " in printed
    (line,) = [text.split() for text in printed.splitlines() if "classification/top1" in text]
    assert line[1] == line[2] and float(line[3]) == 0
    with pytest.raises(InputError, match="is a supernet and has no path"):
        main([*config, *picture, *out, "MODEL.BACKBONE.NAME", "build_detnas_supernet_backbone"])
    with pytest.raises(InputError, match="--run-eval needs --part model"):
        main([*config, *out, "--part", "backbone", "--run-eval"])


def test_onnx_names_what_to_install(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cfg = trained("classifier")
    with pytest.raises(ExportError, match="^ONNX Runtime needs .*: pip install onnx onnxruntime$"):
        export_network(cfg, sample_image(cfg), str(tmp_path), format="onnx")


@pytest.mark.parametrize("height, width", [(48, 64), (64, 48), (64, 64), (33, 31), (9, 300)])
def test_the_other_shape_differs_from_the_image(height: int, width: int) -> None:
    def padded(x: Tensor) -> tuple[int, int]:
        return -(-x.shape[1] // 32), -(-x.shape[2] // 32)

    other = other_shape(image(height, width), 32)
    assert padded(other)[0] != padded(other)[1]
    assert padded(other) != padded(image(height, width))
