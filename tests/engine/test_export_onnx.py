"""ONNX files at shapes that tracing has not seen, against the eager models."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn

from detnas_d2.data import build_test_loader
from detnas_d2.engine.export import (
    difference,
    evaluate_eager,
    evaluate_exported,
    export_network,
    load_exported,
    sample_image,
    traceable,
    write_onnx,
)
from detnas_d2.engine.inference import load_trained
from detnas_d2.layers import get_norm
from detnas_d2.ops import reference
from detnas_d2.search_space.hit_network import rules_of
from detnas_d2.search_space.operations import CANDIDATES, OTHERS, build_operation
from tests.engine.hit_runs import scene_config
from tests.engine.test_export import image, settled, trained  # noqa: F401  (a fixture)

# Landscape, portrait and square, with padded sides 96 x 192, 160 x 64 and 96 x 96; samples are
# 48 x 64 or 64 x 64.
SHAPES = ((70, 170), (150, 50), (90, 90))


def assert_equal_at_every_shape(cfg: CfgNode, folder: Path, part: str, format: str) -> None:
    exported = export_network(
        cfg, sample_image(cfg), str(folder), part=part, format=format, tolerance=1e-4
    )
    run = load_exported(exported.file)
    model = load_trained(cfg)
    for shape in SHAPES:
        adapter, (sample, _) = traceable(model, image(*shape), part)
        with torch.no_grad(), torch.jit.optimized_execution(False):
            expected, found = tuple(adapter(sample)), tuple(run(sample))
        if exported.detections is not None:
            assert len(expected[0]) > 5
        assert difference(exported.outputs, expected, found) < 1e-4, shape


@pytest.mark.parametrize(
    ("kind", "part", "method"),
    [
        ("faster", "model", 1),
        ("retinanet", "model", 2),
        ("faster", "backbone", 1),
        ("classifier", "model", 2),
    ],
)
def test_detnas(trained, tmp_path: Path, kind: str, part: str, method: int) -> None:  # noqa: F811
    cfg = trained(kind)
    cfg.MODEL.DETNAS.SHUFFLE_METHOD = method
    assert_equal_at_every_shape(cfg, tmp_path, part, "onnx")


def test_the_file_has_the_networks_average_precision(trained, tmp_path: Path) -> None:  # noqa: F811
    cfg = trained("faster")
    what_it_finds_is_right(cfg)
    exported = export_network(cfg, sample_image(cfg), str(tmp_path / "out"), format="onnx")
    eager = evaluate_eager(cfg, str(tmp_path))["bbox"]
    found = evaluate_exported(cfg, exported, str(tmp_path))["bbox"]
    assert eager["AP"] > 50
    assert found["AP"] == pytest.approx(eager["AP"], abs=0.01)


def what_it_finds_is_right(cfg: CfgNode) -> None:
    """Makes some detections of random weights the objects of the test set."""
    model, name = load_trained(cfg), cfg.DATASETS.TEST[0]
    file = Path(MetadataCatalog.get(name).json_file)
    data = json.loads(file.read_text())
    data["annotations"] = []
    for sample in (sample for batch in build_test_loader(cfg, name) for sample in batch):
        with torch.no_grad():
            (result,) = model([sample])
        instances = result["instances"][:8]
        boxes = instances.pred_boxes.tensor.tolist()
        for (x1, y1, x2, y2), label in zip(boxes, instances.pred_classes.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            number = {"id": len(data["annotations"]) + 1, "image_id": sample["image_id"]}
            data["annotations"].append({**number, "category_id": label + 1, **box})
    file.write_text(json.dumps(data))


GENOTYPE = (
    (
        "BACKBONE",
        "ir_k3_e1_g2 ir_k5_e1_g2 / ir_k5_e3_d2 skip / sep_k5_d3 ir_k7_e6 / conv_k3 conv_k1",
    ),
    ("NECK", "skip ir_k3_e1_g2 conv_k1 sep_k3_d2 / ir_k5_e1_g2 conv_k3 ir_k3_e6_d3 skip"),
    ("HEAD", "ir_k3_e1_g2 ir_k5_e3_d1"),
)


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_hit_detector(tmp_path: Path, format: str) -> None:
    genotype = [x for part, text in GENOTYPE for x in (f"MODEL.HIT.GENOTYPE.{part}", text)]
    weights = str(tmp_path / "model.pth")
    cfg = scene_config(
        tmp_path,
        "train.yaml",
        "out",
        *("MODEL.HIT.NETWORK", "hit_tiny", *genotype, "MODEL.WEIGHTS", weights),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    )
    torch.save({"model": settled(build_model(cfg)).state_dict()}, weights)
    assert_equal_at_every_shape(cfg, tmp_path, "model", format)


class EveryOperation(nn.Module):
    """All operations on the same map, as they are and halving it; named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = nn.ModuleDict()
        for name in dict.fromkeys(CANDIDATES + OTHERS):
            for stride in (1, 2):
                self.ops[f"{name}_stride{stride}"] = build_operation(
                    name,
                    4,
                    4,
                    stride=stride,
                    norm=partial(get_norm, "BN"),
                    rules=rules_of("backbone"),
                )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(op(x) for op in self.ops.values())


def test_every_operation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file = EveryOperation().eval().requires_grad_(False), str(tmp_path / "ops.onnx")
    names = tuple(model.ops)
    write_onnx(model, torch.randn(1, 4, 8, 8), names, file)
    run = load_exported(file)
    for shape in ((1, 4, 12, 21), (2, 4, 17, 10), (1, 4, 15, 15)):
        x = torch.randn(shape)
        assert difference(names, model(x), run(x)) < 1e-5, shape


class Shuffles(nn.Module):
    """The references of the operators' channel shuffles, which stand in without the library."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(reference.shuffle(x, method) for method in (1, 2))


def test_the_operators_references(tmp_path: Path) -> None:
    file, names = str(tmp_path / "shuffles.onnx"), ("halves", "parity")
    write_onnx(Shuffles(), torch.randn(1, 6, 8, 8), names, file)
    run = load_exported(file)
    for shape in ((1, 6, 12, 21), (2, 6, 17, 10)):
        x = torch.randn(shape)
        assert difference(names, Shuffles()(x), run(x)) == 0, shape
