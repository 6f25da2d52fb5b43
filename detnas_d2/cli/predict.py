"""``detnas predict``: what a detector finds in images."""

from __future__ import annotations

import argparse
from typing import Any

from detnas_d2.cli.detectors import ARGUMENT_HELP, find_detector
from detnas_d2.utils.errors import InputError

HELP = "run a detector on images; write pictures of what it finds"
EXAMPLE = "detnas predict output/cells 'photos/*.jpg' --output pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", metavar="DIR", help=ARGUMENT_HELP)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, folders, patterns like 'a/*.jpg'"
    )
    parser.add_argument(
        "--output",
        default="predictions",
        metavar="DIR",
        help="folder of the pictures, or for one image its file (default: predictions)",
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.5,
        help="least score of a detection that is shown (default: 0.5)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    if not 0.0 <= args.score <= 1.0:
        raise InputError(f"--score {args.score:g}: expected 0 to 1")
    from detnas_d2.data.loaders.user_images import UnreadableImage
    from detnas_d2.programs import demo

    detector = find_detector(args.detector)
    asked = argparse.Namespace(
        config_file=detector.config,
        input=args.images,
        output=args.output,
        confidence_threshold=args.score,
        opts=detector.opts,
    )
    images: list[dict[str, Any]] = []
    result: dict[str, Any] = {"detector": detector.config, "images": images}
    try:
        images.extend(demo.as_dict(picture) for picture in demo.run(asked))
    except UnreadableImage as error:  # what was found in the others is told all the same
        result["error"] = str(error)
    return result


def text(result: dict[str, Any]) -> str:
    return "\n".join(
        f"{image['picture']}: {len(image['detections'])} detections" for image in result["images"]
    )
