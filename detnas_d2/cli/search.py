"""``detnas search``: from a folder of labelled images to a searched and trained detector."""

from __future__ import annotations

import argparse
import os
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from detnas_d2.cli.beginning import begin, check_empty
from detnas_d2.cli.detectors import find_detector
from detnas_d2.recipe.places import check_begun, record_file
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.screen import Line

if TYPE_CHECKING:
    from detnas_d2.recipe.record import Record

HELP = "search, train and test a detector for a folder of labelled images"
EXAMPLE = "detnas search --data photos --budget 48M --time 1h --output output/photos"

MOST_OF_A_FAMILY = 8

_TAKEN = ("budget", "time", "method", "family", "weights")
"""Options that --like takes from the other search."""
WEIGHTS_HELP = (
    "weights to start from: a supernet (supernet/model_final.pth of another run; --budget has to "
    "lie in its search space, heads of other classes start anew); a supernet that DetNAS's authors "
    "released (converted; needs --budget 237M to 365M); or an ImageNet ResNet-50 of torchvision or "
    "Detectron2, which fits no searched network and is trained beside them as a baseline"
)

LIKE_HELP = "a search whose choices and lengths are taken, for other data or with another --seed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="images with COCO, Roboflow, YOLO, PASCAL VOC or CSV annotations",
    )
    parser.add_argument(
        "--budget",
        default="",
        metavar="300M|15ms",
        help="what a network may cost: multiply-adds of its backbone at 224x224 pixels, or "
        "milliseconds from a decoded image of the data to its boxes on this machine",
    )
    parser.add_argument(
        "--time", default="", metavar="2h|45m", help="time that everything may take (default: open)"
    )
    parser.add_argument(
        "--method",
        choices=("detnas", "hit"),
        default="",
        help="the backbone by evolution in a supernet (default), or backbone, neck and head by "
        "gradient",
    )
    parser.add_argument(
        "--family",
        type=int,
        metavar="N",
        help="search for a front of accuracy over cost, and train N networks of it: the most "
        "accurate within the budget and N - 1 smaller ones (default: one network)",
    )
    parser.add_argument("--weights", default="", metavar="FILE", help=WEIGHTS_HELP)
    parser.add_argument("--like", default="", metavar="DIR", help=LIKE_HELP)
    parser.add_argument(
        "--output", default="", metavar="DIR", help="folder of the run (default: output/NAME)"
    )
    parser.add_argument("--seed", type=int, help="of everything random (default: 0, or --like's)")
    add_launch_arguments(parser)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that do not alter what is found."""
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs of a stage, or processes where there are none (default: 1)",
    )
    parser.add_argument(
        "--jobs",
        default="",
        metavar="N",
        help="networks that are trained and tested side by side once the search is done, each with "
        "--num-gpus GPUs or an equal share of the cores; auto: as many as the machine serves "
        "(default: auto, or what the run was begun with)",
    )
    parser.add_argument("--verbose", action="store_true", help="show all that is logged")
    parser.add_argument(
        "--export",
        choices=("onnx", "torchscript"),
        default="",
        help="export the detector at the end, and measure it here in every runtime that is "
        "installed; with onnx a --budget of milliseconds is one of ONNX Runtime",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from detnas_d2.recipe.amounts import read_budget, read_seconds

    start = time.monotonic()
    budget = read_budget(args.budget) if args.budget else None
    seconds = read_seconds(args.time) if args.time else None
    if args.seed is not None and args.seed < 0:
        raise InputError(f"--seed {args.seed}: expected 0 or more")
    if args.family is not None and not 2 <= args.family <= MOST_OF_A_FAMILY:
        raise InputError(f"--family {args.family}: expected 2 to {MOST_OF_A_FAMILY} networks")
    if args.method == "hit":
        check_gradient(args)
    data = _path(args.data)
    if not os.path.exists(data):
        raise InputError(
            f"--data {args.data}: does not exist; expected a folder of labelled images"
        )
    name = os.path.splitext(os.path.basename(data))[0]
    output = _path(args.output or os.path.join("output", name))
    if args.like:
        check_like(args, output)
        asked = {"data": data, "like": _path(args.like), "seed": args.seed}
    else:
        asked = {
            "data": data,
            "like": "",
            "budget": str(budget or ""),
            "time": seconds,
            "method": args.method or "detnas",
            "family": args.family,
            "weights": _path(args.weights) if args.weights else "",
            "seed": args.seed or 0,
        }
    check_export(args)
    from detnas_d2.recipe.jobs import with_jobs
    from detnas_d2.recipe.record import read_record

    record = read_record(output)
    if record is None:
        check_empty(output)
        record = begin(asked, output, args, start)
    else:
        record.check_asked(asked)
        record = with_jobs(record, args)
    return finished(record, args)


def finished(record: Record, args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is missing of a run; what came of it, and with --export its detector's file and
    latency.
    """
    from detnas_d2.engine.defaults import LOGGERS
    from detnas_d2.engine.screen import quiet_command
    from detnas_d2.recipe.amounts import read_budget
    from detnas_d2.recipe.session import carry_on
    from detnas_d2.report import try_report

    result = carry_on(record, num_gpus=args.num_gpus, verbose=args.verbose, after_stage=try_report)
    if not args.export:
        return result
    from detnas_d2.programs import delivery

    asked = str(record.asked["budget"])
    budget = read_budget(asked).milliseconds if asked else None
    folder = result["output"]
    place = os.path.join(folder, delivery.EXPORT_FOLDER)
    detectors = {place: find_detector(result["detector"])}
    for member in reversed(result["family"]):
        detectors[os.path.join(place, os.path.basename(member))] = find_detector(member)
    line = Line()
    line.begin(f"exporting to {os.path.relpath(place)}, and measuring")
    try:
        with nullcontext() if args.verbose else quiet_command(LOGGERS, line):
            delivered, *smaller = delivery.deliver(
                {file: (found.config, found.opts) for file, found in detectors.items()},
                args.export,
                budget,
                record.settings.runtime,
            )
    finally:
        line.clear()
    try_report(folder)  # which shows the latency
    told = [text for each in (delivered, *smaller) for text in delivery.lines(each)]
    told = list(dict.fromkeys(told))  # conditions once
    return {**result, **delivered, "smaller": smaller, "next": [*result["next"], *told]}


def check_export(args: argparse.Namespace) -> None:
    """Raises InputError for a format that cannot be written here, before hours are spent."""
    if args.export != "onnx":
        return
    from detnas_d2.engine.runtimes import ONNXRUNTIME, missing

    if lack := missing(ONNXRUNTIME):
        raise InputError(f"--export onnx: {lack}")


def check_like(args: argparse.Namespace, output: str) -> None:
    """Raises InputError for a folder that is no search, and for what --like takes from it."""
    for option in _TAKEN:
        if getattr(args, option):
            raise InputError(f"--{option}: --like {args.like} has its own; leave it out")
    if os.path.isfile(record_file(output)) and output != _path(args.like):
        return  # it has begun, and needs the other one no more
    check_begun(_path(args.like), f"--like {args.like}", "expected the folder of a search")
    if output == _path(args.like):
        raise InputError(f"--output {output}: the search that --like names; name a new folder")


def check_gradient(args: argparse.Namespace) -> None:
    """Raises InputError for what a search by gradient has no use for."""
    if args.budget:
        raise InputError(
            "--budget: Hit-Detector weighs the cost in its loss and has no limit; leave it out, or "
            "use --method detnas"
        )
    if args.family:
        raise InputError(
            "--family: a search by gradient finds one network, no front; use --method detnas"
        )
    if args.weights:
        raise InputError("--weights: Hit-Detector starts from nothing; use --method detnas")


def text(result: dict[str, Any]) -> str:
    return "\n".join(result["next"])


def _path(text: str) -> str:
    return os.path.abspath(os.path.expanduser(text))
