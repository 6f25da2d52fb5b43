"""Whole detectors as they run: pieces of a run, runtimes against PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from detnas_d2.engine import runtimes
from detnas_d2.engine.export import export_network, sample_image
from detnas_d2.engine.inference import load_trained
from detnas_d2.engine.latency import Picture, exported_run, latencies, pytorch_run
from detnas_d2.engine.runtimes import load_onnx, missing
from detnas_d2.utils.errors import InputError
from tests.engine.test_export import trained  # noqa: F401  (a fixture)

OPENVINO = "OpenVINO is not installed (pip install openvino)"


@pytest.mark.parametrize(("kind", "side"), [("faster", 60), ("retinanet", 48)])
def test_a_run_gives_the_detections_of_the_model(
    trained,  # noqa: F811
    tmp_path: Path,
    kind: str,
    side: int,
) -> None:
    cfg = trained(kind)
    cfg.INPUT.MIN_SIZE_TEST = side  # images have 48
    picture, model = Picture.of_config(cfg), load_trained(cfg)
    image = sample_image(cfg)
    assert torch.equal(picture.input(), image) and min(image.shape[1:]) == side
    height, width = picture.size
    with torch.no_grad():
        (expected,) = model([{"image": image, "height": height, "width": width}])
    exported = export_network(cfg, image, str(tmp_path / "out"), format="onnx")
    runs = {"pytorch": pytorch_run(model, picture)}
    for name in ("onnxruntime", "openvino"):
        if not missing(name):
            runner = load_onnx(exported.file, name, threads=1, shape=tuple(image.shape))
            runs[name] = exported_run(exported, runner, picture)
    ours = expected["instances"]
    for run in runs.values():
        with torch.no_grad():
            found = run()
        assert found.image_size == (height, width) and len(found) == len(ours) > 10
        torch.testing.assert_close(found.scores, ours.scores, atol=1e-4, rtol=1e-3)
    found = latencies(list(runs.values()), 3)
    assert all(each.low <= each.milliseconds <= each.high for each in found)
    assert all(min(each.before, each.network, each.after) > 0 for each in found)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason=OPENVINO)
def test_openvino_finds_what_onnx_runtime_does(trained, tmp_path: Path) -> None:  # noqa: F811
    cfg = trained("faster")
    exported = export_network(cfg, sample_image(cfg), str(tmp_path), format="onnx")
    for shape in ((3, 64, 48), (3, 48, 64)):
        image = torch.randint(0, 256, shape).float()
        expected = load_onnx(exported.file)(image)
        found = load_onnx(exported.file, "openvino", threads=1, shape=shape)(image)
        # Equal scores may change places: boxes by the sum of each, sorted.
        torch.testing.assert_close(found[2], expected[2], atol=1e-4, rtol=1e-3)
        sums = [boxes.sum(1).sort().values for boxes in (found[0], expected[0])]
        torch.testing.assert_close(*sums, atol=0.1, rtol=1e-3)


def test_what_a_runtime_lacks_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr("importlib.util.find_spec", lambda name: None)
        assert missing("openvino").endswith(": pip install onnx onnxruntime openvino")
        assert runtimes.installed() == ("pytorch",)
        with pytest.raises(InputError, match=r"^OpenVINO needs packages that are missing: pip in"):
            load_onnx("none.onnx", "openvino")
    providers = ["CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    assert missing("tensorrt").startswith("TensorRT is used through ONNX Runtime, which has no Ten")
    providers.append("TensorrtExecutionProvider")
    assert not missing("tensorrt")


def test_a_classifier_has_no_boxes() -> None:
    with pytest.raises(InputError, match="^Linear: expected a detector"):
        pytorch_run(torch.nn.Linear(1, 1), None)  # type: ignore[arg-type]
