"""``detnas export``: a detector as a file for other programs."""

from __future__ import annotations

import argparse
import os
from typing import Any

from detnas_d2.cli.detectors import ARGUMENT_HELP, find_detector
from detnas_d2.utils.errors import InputError

HELP = "write a detector as TorchScript or ONNX"
EXAMPLE = "detnas export output/cells --format onnx --image photo.jpg --output output/exported"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", metavar="DIR", help=ARGUMENT_HELP)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the file")
    parser.add_argument("--format", choices=("torchscript", "onnx"), default="torchscript")
    parser.add_argument(
        "--part",
        choices=("model", "backbone"),
        default="model",
        help="the whole network, or its searched backbone alone (default: model)",
    )
    parser.add_argument(
        "--image",
        default="",
        metavar="FILE",
        help="image that the file is compared with (default: the first test image)",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="evaluate the detector and the file on the test set, and tell the difference",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.evaluate and args.part != "model":
        raise InputError("--evaluate needs --part model: a backbone has nothing to evaluate")
    if os.path.isfile(args.output):
        raise InputError(f"--output {args.output}: a file; expected a folder, or a new name")
    from detnas_d2.programs import export

    detector = find_detector(args.detector)
    export.show_log()
    result = export.run(
        argparse.Namespace(
            config_file=detector.config,
            format=args.format,
            part=args.part,
            sample_image=args.image,
            run_eval=args.evaluate,
            output=args.output,
            tolerance=export.TOLERANCE,
            opts=detector.opts,
        )
    )
    # A config alone may lie anywhere.
    kept = export.keep(detector.weights, args.format, result) if args.evaluate else ""
    return {**result, "kept": kept} if args.evaluate else result


def text(result: dict[str, Any]) -> str:
    from detnas_d2.programs import export

    return export.text(result)
