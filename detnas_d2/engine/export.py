"""Trained networks as TorchScript or ONNX files, compared with the eager model.

A file holds the network of one image: Detectron2's tracing adapter flattens what goes in and out,
``torch.jit.trace`` records it. Image sizes stay free, the batch of a whole model is one image.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.evaluation import inference_on_dataset
from detectron2.export import TracingAdapter
from detectron2.export.flatten import InstancesSchema, ListSchema, Schema
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from torch import Tensor, nn

from detnas_d2.data import ClassificationMapper, build_test_loader
from detnas_d2.engine.inference import load_trained, test_metadata
from detnas_d2.engine.runtimes import ONNXRUNTIME, Runner, load_onnx, missing
from detnas_d2.evaluation.evaluators import build_evaluator
from detnas_d2.layers.kept_weights import weights_stay
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import new_file, write_text

logger = logging.getLogger("detnas_d2")

FORMATS = {"torchscript": "model.ts", "onnx": "model.onnx"}
"""Format -> name of its file."""
PARTS = ("model", "backbone")
_OPSET = 17


class ExportError(InputError):
    """A network that cannot be exported, or whose file computes something else."""


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        file: its name.
        outputs: names of the tensors it returns, in order.
        schema: rebuilds from them what the model returns.
        differences: from the eager model, of each image compared; see :func:`difference`.
        detections: how many the eager model had on these images; None if it gives none at all.
    """

    file: str
    outputs: tuple[str, ...]
    schema: Schema
    differences: tuple[float, ...]
    detections: int | None


def export_network(
    cfg: CfgNode,
    image: Tensor,
    output_dir: str,
    *,
    part: str = "model",
    format: str = "torchscript",
    tolerance: float = 1e-4,
    network: nn.Module | None = None,
) -> Exported:
    """Writes a network of ``cfg`` with ``MODEL.WEIGHTS``; next to it ``export.json``, its outputs.

    The file is loaded again and compared with the eager model on the image and on another of it
    of a different shape (:func:`other_shape`), before it gets its name.

    Args:
        image: (3, H, W) as the model's loader gives it, see :func:`sample_image`.
        part: "model" takes an image (3, H, W); "backbone" is the searched backbone without neck,
            it takes normalised images (N, 3, H, W).
        tolerance: largest :func:`difference`.
        network: that of ``cfg`` with other weights than ``MODEL.WEIGHTS``, in eval mode.

    Raises:
        ExportError: a package is missing, the format cannot express the network, or the file
            differs by more than the tolerance.
        ValueError, WeightsError: see :func:`load_trained`.
    """
    if format == "onnx":
        lack = missing(ONNXRUNTIME)
        if lack:
            raise ExportError(lack)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETNAS.FUSED_OPS = "off"  # the file must run without this package
    model = (load_trained(cfg) if network is None else network).requires_grad_(False)
    adapter, inputs = traceable(model, image.float(), part)
    expected = [tuple(adapter(x)) for x in inputs]
    names = tuple(output_names(adapter.outputs_schema))
    target = os.path.join(output_dir, FORMATS[format])
    with new_file(target) as temporary:
        try:
            if format == "onnx":
                write_onnx(adapter, inputs[0], names, temporary)
            else:
                trace(adapter, inputs[0]).save(temporary)
        except RuntimeError as error:
            raise ExportError(f"the {part} cannot be written as {format}: {error}") from error
        run = load_exported(temporary, inputs[0].device)
        try:
            with torch.jit.optimized_execution(False):  # compiling for two runs does not pay
                found = [tuple(run(x)) for x in inputs]
        except Exception as error:  # onnxruntime's have no common base
            shapes = " and ".join(str(tuple(x.shape)) for x in inputs)
            raise ExportError(
                f"the {format} network does not run on inputs of shapes {shapes}: {error}; "
                f"nothing was written to {target}"
            ) from error
        differences = [difference(names, *pair) for pair in zip(expected, found, strict=True)]
        if not all(value <= tolerance for value in differences):
            raise ExportError(
                f"the {format} network differs from the eager one by {max(differences):.2g} "
                f"(tolerance {tolerance:.2g}); nothing was written to {target}"
            )
    counts = [len(a[names.index("scores")]) for a in expected if "pred_boxes" in names]
    result = Exported(
        target, names, adapter.outputs_schema, tuple(differences), sum(counts) if counts else None
    )
    write_text(os.path.join(output_dir, "export.json"), _description(cfg, result, part))
    return result


def sample_image(cfg: CfgNode, file: str = "") -> Tensor:
    """The image (3, H, W) of a file as the config's models take it, or the first of its test set.

    For the latter the datasets must be registered.
    """
    if not file:
        return next(iter(build_test_loader(cfg, cfg.DATASETS.TEST[0])))[0]["image"]
    mapper = ClassificationMapper if _classifies(cfg) else DatasetMapper
    return mapper(cfg, False)({"file_name": file, "label": 0})["image"]


def traceable(model: Any, image: Tensor, part: str) -> tuple[TracingAdapter, list[Tensor]]:
    """The module to trace, and the inputs to trace and to compare it with."""
    image = image.to(model.device)
    images = [image, other_shape(image, max(model.backbone.size_divisibility, 32))]
    if part == "backbone":
        body = getattr(model.backbone, "bottom_up", model.backbone)
        batches = [model.preprocess_image([{"image": x}]) for x in images]
        inputs = [getattr(batch, "tensor", batch) for batch in batches]
        return TracingAdapter(body, inputs[0]).eval(), inputs
    inference = _without_resizing if isinstance(model, GeneralizedRCNN) else None
    return TracingAdapter(model, [{"image": image}], inference).eval(), images


def other_shape(image: Tensor, divisor: int) -> Tensor:
    """Of an image (3, H, W) one with height and width exchanged, its longer side repeated if short.

    It shows what tracing has made a constant of a height or a width: padded to multiples of
    ``divisor`` its sides differ from each other, and not both are those of the image.
    """
    turned = image.transpose(1, 2)
    longer, shorter = (1, 2) if turned.shape[1] >= turned.shape[2] else (2, 1)
    length = max(turned.shape[longer], math.ceil(turned.shape[shorter] / divisor) * divisor + 1)
    lines = torch.arange(length, device=image.device) % turned.shape[longer]
    return turned.index_select(longer, lines)


def _without_resizing(model: GeneralizedRCNN, inputs: list[dict]) -> list[dict]:
    return [{"instances": x} for x in model.inference(inputs, do_postprocess=False)]


def trace(adapter: TracingAdapter, example: Tensor) -> torch.jit.ScriptModule:
    """TorchScript of an adapter."""
    with warnings.catch_warnings():
        # Of the tracer, on each shape that Detectron2 reads, and on tracing itself being old.
        warnings.simplefilter("ignore")
        return torch.jit.trace(adapter, (example,), check_trace=False)


def write_onnx(adapter: nn.Module, example: Tensor, names: tuple[str, ...], file: str) -> None:
    """ONNX of an adapter; images of any size, backbones with any batch too."""
    axes: dict[str, dict[int, str]] = {"image": {1: "height", 2: "width"}}
    if "pred_boxes" in names:
        axes.update({name: {0: "detections"} for name in names if name != "image_size"})
    elif example.dim() == 4:  # a backbone
        axes = {n: {0: "batch", 2: f"{n}_height", 3: f"{n}_width"} for n in ("image", *names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            adapter,
            (example,),
            file,
            input_names=["image"],
            output_names=list(names),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,  # torch.export cannot take Detectron2's data-dependent branches
        )


def load_exported(file: str, device: torch.device | str = "cpu") -> Runner:
    """A function from an input tensor to the output tensors of a written file."""
    if file.endswith(".ts"):
        return torch.jit.load(file, map_location=device)
    return load_onnx(file)


def output_names(schema: Schema, name: str = "output") -> list[str]:
    """Names of the tensors that a schema rebuilds, e.g. pred_boxes, scores, image_size."""
    if isinstance(schema, InstancesSchema):
        return [*schema.keys, "image_size"]
    if not isinstance(schema, ListSchema):
        return [name]
    keys = getattr(schema, "keys", [name] * len(schema.schemas))
    parts = zip(keys, schema.schemas, strict=True)
    return [text for key, inner in parts for text in output_names(inner, key)]


def difference(
    names: tuple[str, ...], eager: tuple[Tensor, ...], exported: tuple[Tensor, ...]
) -> float:
    """Distance of the outputs of a file from the eager model's.

    Of feature maps and class scores: the largest difference, relative to the largest value of the
    map. Of detections: the largest difference of any number of one to its nearest in the other
    set (equal scores may change places), boxes in units of the longer image side; infinite if
    their numbers differ.
    """
    ours = {n: v.double().cpu() for n, v in zip(names, eager, strict=True)}
    theirs = {n: v.double().cpu() for n, v in zip(names, exported, strict=True)}
    if any(ours[n].shape != theirs[n].shape for n in names):
        return float("inf")
    if "pred_boxes" not in names:
        pairs = [(ours[n], theirs[n]) for n in names]
        return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
    rows, others = _detections(ours), _detections(theirs)
    if not len(rows):
        return 0.0
    distance = torch.cdist(rows, others, p=float("inf"))
    return float(torch.maximum(distance.amin(0).max(), distance.amin(1).max()))


def _detections(fields: dict[str, Tensor]) -> Tensor:
    """(detections, numbers of one): boxes in units of the longer side, scores, classes, masks."""
    side = fields["image_size"].max()
    columns = [
        value.flatten(1) / side if name == "pred_boxes" else value.reshape(len(value), -1)
        for name, value in fields.items()
        if name != "image_size" and len(value)
    ]
    return torch.cat(columns, dim=1) if columns else torch.zeros(0, 1)


def _description(cfg: CfgNode, exported: Exported, part: str) -> str:
    classes = test_metadata(cfg).get("thing_classes")
    content = {
        "file": os.path.basename(exported.file),
        "part": part,
        "input": "normalised images (N, 3, H, W)" if part == "backbone" else "image (3, H, W)",
        "channels": cfg.INPUT.FORMAT,
        # What an image is resized to before.
        "shortest_side": cfg.INPUT.MIN_SIZE_TEST,
        "longest_side_at_most": cfg.INPUT.MAX_SIZE_TEST,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "outputs": exported.outputs,
        "classes": classes if part == "model" else None,
        "largest_difference": max(exported.differences),
    }
    return json.dumps(content, indent=1) + "\n"


def as_model(cfg: CfgNode, exported: Exported) -> Callable[[list[dict]], list[dict]]:
    """A function that takes and gives what Detectron2's model does, from the file of a model."""
    run = load_exported(exported.file, cfg.MODEL.DEVICE)

    def predict(inputs: list[dict]) -> list[dict]:
        results = []
        for sample in inputs:
            tensors = run(sample["image"].float().to(cfg.MODEL.DEVICE))
            (result,) = exported.schema(tuple(tensors))
            if "instances" in result:
                size = sample["height"], sample["width"]
                result = {"instances": detector_postprocess(result["instances"], *size)}
            results.append(result)
        return results

    return predict


def evaluate_exported(cfg: CfgNode, exported: Exported, folder: str) -> dict[str, Any]:
    """Results of an exported model on the first of ``DATASETS.TEST``, which are registered.

    Args:
        folder: where the evaluator may write.
    """
    return _evaluate(cfg, as_model(cfg, exported), folder)


def evaluate_eager(cfg: CfgNode, folder: str) -> dict[str, Any]:
    """The same of the network that is exported, as PyTorch runs it."""
    model = load_trained(cfg)
    with weights_stay(model):
        return _evaluate(cfg, model, folder)


def _evaluate(cfg: CfgNode, model: Any, folder: str) -> dict[str, Any]:
    # Not in the run's folder: its predictions are those of its own test.
    name = cfg.DATASETS.TEST[0]
    loader, evaluator = build_test_loader(cfg, name), build_evaluator(cfg, name, folder)
    return inference_on_dataset(model, loader, evaluator)


def _classifies(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "ImageClassifier"
