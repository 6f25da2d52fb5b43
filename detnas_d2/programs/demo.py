"""Runs a detector on images and writes pictures of what it finds, as Detectron2's demo.py does.

  demo.py --config-file output/demo/searched/config.yaml --input images/ --output pictures/ \\
      --opts MODEL.WEIGHTS output/demo/searched/model_final.pth

Files that cannot be read are named and skipped; the command then ends with an error.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from PIL import Image

from detnas_d2.config.tools import load_config
from detnas_d2.data.checks.image_check import IMAGE_EXTENSIONS
from detnas_d2.data.loaders.user_images import UnreadableImage, find_images, output_names, read_bgr
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.inference import Predictor
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import new_file

logger = logging.getLogger("detnas_d2")


@dataclass(frozen=True)
class Picture:
    """One image and what was found in it.

    Attributes:
        file, picture: names of the image and of the picture that was written.
        predictions: of the model.
        classes: names of the classes, empty where they are not known.
    """

    file: str
    picture: str
    predictions: dict[str, Any]
    classes: Sequence[str]


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    setup_logger(name="fvcore")
    setup_logger(name="detnas_d2")
    for _ in run(args):
        pass


def run(args: argparse.Namespace) -> Iterator[Picture]:
    """Writes the pictures, one after the other.

    Raises:
        InputError: no image or no detector.
        UnreadableImage: after the last picture, files that could not be read, which were named on
            stderr.
    """
    visualizer = visualizer_class()
    files = find_images(args.input)
    targets = target_files(files, args.output)
    predictor = Predictor(demo_config(args))
    classes = predictor.metadata.get("thing_classes") or ()
    unreadable = 0
    for file, target in zip(files, targets, strict=True):
        try:
            image = read_bgr(file)
        except UnreadableImage as error:
            print(f"skipped {error}", file=sys.stderr)
            unreadable += 1
            continue
        start = time.perf_counter()
        predictions = predictor(image)
        seconds = time.perf_counter() - start
        number = len(predictions["instances"]) if "instances" in predictions else 0
        logger.info("%s: %d instances in %.2f s", file, number, seconds)
        picture = draw(visualizer(image[:, :, ::-1], predictor.metadata), predictions)
        with new_file(target) as temporary:
            Image.fromarray(picture).save(temporary, quality=95)  # of JPEG
        yield Picture(file, target, predictions, classes)
    if unreadable:
        raise UnreadableImage(f"{unreadable} of {len(files)} files could not be read")


def as_dict(picture: Picture) -> dict[str, Any]:
    """Names and detections of a picture; boxes are [x1, y1, x2, y2] in pixels of the image."""
    instances = picture.predictions["instances"].to("cpu")
    names = picture.classes
    detections = [
        {
            "box": [round(value, 2) for value in box],
            "score": round(score, 5),
            "class": names[number] if number < len(names) else number,
        }
        for box, score, number in zip(
            instances.pred_boxes.tensor.tolist(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        )
    ]
    return {"file": picture.file, "picture": picture.picture, "detections": detections}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--input", nargs="+", required=True, help="image files, folders or patterns like 'a/*.jpg'"
    )
    parser.add_argument(
        "--output", required=True, help="folder of the pictures, or for one image its file"
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        help="least score of a detection that is drawn (default: 0.5)",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides, at the end"
    )
    return parser


def demo_config(args: argparse.Namespace) -> CfgNode:
    """The config with the score threshold and the device of this machine."""
    cfg = load_config(args.config_file, args.opts)
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        raise InputError(f"{args.config_file}: a classifier; expected a config of a detector")
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = args.confidence_threshold
    fall_back_to_cpu(cfg)
    cfg.freeze()
    return cfg


def target_files(files: list[str], output: str) -> list[str]:
    """Places of the pictures of the files.

    Raises:
        InputError: several images, but ``output`` is a file; or one that is no image.
    """
    is_file = output.lower().endswith(IMAGE_EXTENSIONS) and not os.path.isdir(output)
    if is_file and len(files) > 1:
        raise InputError(f"--output {output} is one file, --input has {len(files)} images")
    if os.path.isfile(output) and not is_file:
        raise InputError(
            f"--output {output}: a file that is no image; expected a folder, or for one image a "
            f"name that ends with one of {', '.join(IMAGE_EXTENSIONS)}"
        )
    if is_file:
        return [output]
    names = [
        name if name.lower().endswith(IMAGE_EXTENSIONS) else f"{name}.png"
        for name in output_names(files)
    ]
    return [os.path.join(output, name) for name in names]


def visualizer_class() -> Any:
    """Detectron2's Visualizer. Raises InputError without OpenCV, which it needs."""
    try:
        from detectron2.utils.visualizer import Visualizer
    except ImportError as error:
        raise InputError(
            f"Detectron2's Visualizer needs OpenCV ({error}): pip install opencv-python-headless"
        ) from error
    return Visualizer


def draw(visualizer: Any, predictions: dict[str, Any]) -> np.ndarray:
    """uint8[H, W, 3], RGB: the visualizer's image with the boxes, masks or segments that were
    predicted.
    """
    if "panoptic_seg" in predictions:
        segments, info = predictions["panoptic_seg"]
        return visualizer.draw_panoptic_seg_predictions(segments.cpu(), info).get_image()
    if "sem_seg" in predictions:
        visualizer.draw_sem_seg(predictions["sem_seg"].argmax(dim=0).cpu())
    if "instances" in predictions:
        visualizer.draw_instance_predictions(predictions["instances"].to("cpu"))
    return visualizer.get_output().get_image()
