"""``detnas latency``: milliseconds of a detector on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from detnas_d2.cli.detectors import ARGUMENT_HELP, Detector, find_detector
from detnas_d2.command import text_of
from detnas_d2.utils.errors import InputError

HELP = "measure how long a detector takes for an image on this machine"
EXAMPLE = "detnas latency output/photos --image photo.jpg --threads 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("detector", metavar="DIR", help=ARGUMENT_HELP)
    parser.add_argument(
        "--image", default="", metavar="FILE", help="image (default: the first test image)"
    )
    parser.add_argument("--runs", type=int, default=30, help="of the detector (default: 30)")
    parser.add_argument(
        "--threads", type=int, default=0, help="of a CPU (default: those that torch takes)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from detnas_d2.config.tools import load_config
    from detnas_d2.data import register_datasets
    from detnas_d2.engine.defaults import fall_back_to_cpu
    from detnas_d2.engine.export import sample_image
    from detnas_d2.engine.inference import load_trained
    from detnas_d2.engine.latency import detector_latency

    for name, value, least in (("runs", args.runs, 2), ("threads", args.threads, 0)):
        if value < least:
            raise InputError(f"--{name} {value}: expected {least} or more")
    detector = find_detector(args.detector)
    cfg = load_config(detector.config, detector.opts)
    fall_back_to_cpu(cfg)
    if not args.image:
        register_datasets(cfg)
    image = sample_image(cfg, args.image)
    model = load_trained(cfg)
    before = torch.get_num_threads()
    try:
        if args.threads:
            torch.set_num_threads(args.threads)
        found = detector_latency(model, image, repeats=args.runs)
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    conditions = {
        "device": str(model.device),
        "threads": threads,
        "runs": args.runs,
        "batch": 1,
        "height": image.shape[1],
        "width": image.shape[2],
    }
    measured = {"low": found.low, "high": found.high, "body": found.body}
    return {
        "detector": detector.config,
        **conditions,
        "milliseconds": found.detector,
        "quartiles": [found.low, found.high],
        "backbone_milliseconds": found.body,
        "kept": _keep(detector, {**conditions, "milliseconds": found.detector, **measured}),
    }


def _keep(detector: Detector, measured: Mapping[str, Any]) -> str:
    """The file that keeps it; "" of a config alone, which may lie anywhere."""
    from detnas_d2.pipeline.latency_record import keep_latency

    if not detector.opts:
        return ""
    try:
        return keep_latency(detector.config, measured)
    except OSError as error:
        print(f"note: not kept for the report: {text_of(error)}", file=sys.stderr)
        return ""


def text(result: dict[str, Any]) -> str:
    threads = f", threads: {result['threads']}" if result["device"] == "cpu" else ""
    low, high = result["quartiles"]
    return (
        f"{result['detector']}: {result['milliseconds']:.2f} ms for an image of "
        f"{result['height']} x {result['width']} pixels on {result['device']}{threads} (median of "
        f"{result['runs']} runs, quartiles {low:.2f} and {high:.2f}); its backbone takes "
        f"{result['backbone_milliseconds']:.2f} ms"
        + (f"\nkept in {result['kept']} (detnas report shows it)" if result["kept"] else "")
    )
