"""Writes a trained network as TorchScript or ONNX, by tracing.

  export_net.py --config-file output/demo/searched/config.yaml --sample-image image.jpg \\
      --output output/exported MODEL.WEIGHTS output/demo/searched/model_final.pth

The file is loaded again and compared with the eager network before it gets its name.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from detnas_d2.command import text_of
from detnas_d2.config.tools import load_config
from detnas_d2.data import register_datasets
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.export import (
    FORMATS,
    PARTS,
    Exported,
    evaluate_eager,
    evaluate_exported,
    export_network,
    sample_image,
)
from detnas_d2.pipeline.export_record import keep_export
from detnas_d2.utils.errors import InputError

TOLERANCE = 1e-4
"""Of ``--tolerance``."""


def main(argv: list[str] | None = None) -> None:
    show_log()
    print(text(run(build_parser().parse_args(argv))))


def show_log() -> None:
    """Has what is logged shown: the progress of an evaluation."""
    for name in ("detectron2", "fvcore", "detnas_d2"):
        setup_logger(name=name)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the file; returns its name, its outputs, how far it is from the eager network, and
    with ``--run-eval`` its results beside the eager network's.
    """
    if args.run_eval and args.part != "model":
        raise InputError("--run-eval needs --part model: a backbone has nothing to evaluate")
    cfg = load_config(args.config_file, args.opts)
    fall_back_to_cpu(cfg)
    if args.run_eval or not args.sample_image:
        register_datasets(cfg)
    image = sample_image(cfg, args.sample_image)
    exported = export_network(
        cfg,
        image,
        args.output,
        part=args.part,
        format=args.format,
        tolerance=args.tolerance,
    )
    result = {
        "file": exported.file,
        "outputs": list(exported.outputs),
        "differences": list(exported.differences),
        "detections": exported.detections,
        "tolerance": args.tolerance,
    }
    return result | _evaluated(cfg, exported) if args.run_eval else result


def _evaluated(cfg: CfgNode, exported: Exported) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        eager, results = evaluate_eager(cfg, folder), evaluate_exported(cfg, exported, folder)
    return {"dataset": cfg.DATASETS.TEST[0], "eager_results": eager, "results": results}


def keep(weights: str, format: str, result: Mapping[str, Any]) -> str:
    """The file that keeps an evaluation for the report; "" without weights to keep it beside, and
    with a note where it cannot be written.
    """
    if not weights:
        return ""
    try:
        return keep_export(weights, format, result)
    except OSError as error:
        print(f"note: not kept for the report: {text_of(error)}", file=sys.stderr)
        return ""


def text(result: dict[str, Any]) -> str:
    """What :func:`run` found, for people."""
    detections = result["detections"]
    found = "" if detections is None else f" ({detections} detections)"
    lines = [
        f"{result['file']}: outputs {', '.join(result['outputs'])}",
        "largest difference from the eager network, image and one of another shape: "
        f"{', '.join(f'{value:.2g}' for value in result['differences'])}{found}; "
        f"tolerance {result['tolerance']:.2g}",
    ]
    if detections == 0:
        hint = "nothing was detected, so no detections were compared: try another image"
        lines.append(hint)
    if "results" in result:
        lines += _table(result)
    if result.get("kept"):
        lines.append(f"kept in {result['kept']} (detnas report shows it)")
    return "\n".join(lines)


def _table(result: dict[str, Any]) -> list[str]:
    """Every metric of the eager network, of the file, and the difference."""
    rows = [
        (f"{task}/{metric}", value, result["results"][task][metric])
        for task, metrics in result["eager_results"].items()
        for metric, value in metrics.items()
    ]
    # Classes without a test object have no AP.
    told = [(name, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}") for name, a, b in rows if a == a]
    head = ("metric", "PyTorch", "file", "difference")
    table = tabulate(told, headers=head, disable_numparse=True, tablefmt="plain")
    return [f"on {result['dataset']}:", *table.splitlines()]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--format", choices=list(FORMATS), default="torchscript")
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="model",
        help="the whole network, or its searched backbone alone (default: model)",
    )
    parser.add_argument(
        "--sample-image",
        default="",
        metavar="FILE",
        help="image to trace and to compare with (default: the first of DATASETS.TEST)",
    )
    parser.add_argument(
        "--run-eval",
        action="store_true",
        help="evaluate the network and the file on the test set, and tell the difference",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="largest difference: of features relative to their largest value; of detections in "
        f"scores and in boxes, in units of the longer image side (default: {TOLERANCE:.0e})",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides")
    return parser
