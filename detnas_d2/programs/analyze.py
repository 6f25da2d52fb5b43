"""Parameters and multiply-adds of a detector, part by part; pictures of architectures.

  analyze_net.py --config-file configs/DetNAS/released/detnasnet_300M_fpn_coco.yaml
  analyze_net.py --picture found.svg --network found=output/search --network mine.yaml
  analyze_net.py --config-file configs/DetNAS/fpn_coco/search.yaml --picture two.svg \\
      --network ShuffleNetV2=3x3 --network "mine=3x3 5x5 7x7 3x3 / ..."

Needs no weights and no data. Of networks with a path or a genotype it also tells the blocks by
kernel in each stage of the backbone.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from typing import Any

from detnas_d2.analysis.complexity import CONVENTIONS, analyze, as_json
from detnas_d2.config.tools import load_config
from detnas_d2.drawing import KernelCounts, draw_side_by_side
from detnas_d2.drawing.architectures import in_words, network_of
from detnas_d2.drawing.counts import backbone_counts, shallow_and_deep
from detnas_d2.engine.architectures import architectures_of, searchable_backbone
from detnas_d2.programs.networks import NamedNetwork, of_config, read_networks
from detnas_d2.search_space import Cost
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE", help="the detector whose costs are told")
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        default=(800, 1200),
        metavar=("H", "W"),
        help="image height and width, padded to the neck's divisor (default: 800 1200)",
    )
    parser.add_argument("--proposals", type=int, default=1000, help="regions of the box head")
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="macs",
        help="macs: multiply-adds; mmdet: what mmdetection 1.x calls FLOPs (default: macs)",
    )
    parser.add_argument("--picture", metavar="FILE.svg", help="draw the networks")
    parser.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="[TITLE=]SOURCE",
        help="to be drawn in the place of --config-file's; again for more, in one picture: a "
        "config, the output folder of a search or a training, or the text of a path (an operation "
        "alone: everywhere) or a genotype of the space that --config-file names",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides")
    args = parser.parse_args(argv)
    if not args.config_file and not args.network:
        raise InputError("nothing to analyze: give --config-file or --network")
    if args.picture and not args.picture.lower().endswith(".svg"):
        raise InputError(f"--picture {args.picture}: expected a name that ends with .svg")
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    run(args)


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts) if args.config_file else None
    networks = [n for text in args.network for n in read_networks(text, cfg)]
    if cfg is not None and not networks and (args.picture or architectures_of(cfg)):
        networks = of_config(cfg, "", args.config_file)
    result: dict[str, Any] = {}
    searched = cfg is not None and (searchable_backbone(cfg) or cfg.MODEL.HIT.SEARCHABLE_PARTS)
    if searched and not networks:
        raise InputError(
            f"{args.config_file}: a supernet has the costs of no single network; name networks "
            "with --network, or take the config of what was found"
        )
    if cfg is not None and not searched:
        costs = costs_of(cfg, args)
        result |= as_json(costs)
        if not args.json:
            print_costs(costs, args.convention)
            height, width = args.input_size
            print(
                f"\ncounted for images of {height} x {width} (--input-size); the config resizes "
                f"images to a shortest side of {cfg.INPUT.MIN_SIZE_TEST} (INPUT.MIN_SIZE_TEST)"
            )
    if args.picture:
        write_text(args.picture, picture(networks, args))
    if args.json:
        result |= {"networks": [numbers(network) for network in networks]} if networks else {}
        print(json.dumps(result))
        return
    for network in networks:
        print(blocks_text(network))


def costs_of(cfg: Any, args: argparse.Namespace) -> dict[str, Cost]:
    size = tuple(args.input_size)
    return analyze(cfg, input_size=size, proposals=args.proposals, convention=args.convention)


def print_costs(costs: dict[str, Cost], convention: str) -> None:
    unit = "multiply-adds" if convention == "macs" else "FLOPs (mmdet)"
    print(f"{'part':<20}{'parameters':>14}{unit:>18}")
    for part, cost in costs.items():
        print(f"{part:<20}{cost.params:>14,}{cost.macs:>18,}")


def picture(networks: Sequence[NamedNetwork], args: argparse.Namespace) -> str:
    """SVG of the networks, with the costs of what is searched and of the whole detectors."""
    entries = []
    for network in networks:
        lines = [network_of("", network.architecture).cost]
        if network.cfg is not None:
            size = "x".join(map(str, args.input_size))
            whole = in_words(costs_of(network.cfg, args)["total"])
            lines.append(f"{whole}, whole detector at {size}")
        entries.append((network.title, network.architecture, "\n".join(filter(None, lines))))
    return draw_side_by_side(entries)


def blocks_text(network: NamedNetwork) -> str:
    """Blocks by kernel, a line for each stage, and of shallow and deep stages together."""
    stages = backbone_counts(network.architecture)
    title = network.title or "blocks by kernel"
    if not stages:
        return f"\n{title}: {network.architecture}"
    shallow, deep = shallow_and_deep(stages)
    half = len(stages) // 2
    lines = [f"stage {number}: {counts}" for number, counts in enumerate(stages, start=1)]
    lines += [f"{_range(1, half)}: {shallow}"] if half else []
    lines += [f"{_range(half + 1, len(stages))}: {deep}"]
    return "\n".join([f"\n{title}:", *(f"  {line}" for line in lines)])


def _range(first: int, last: int) -> str:
    if first == last:
        return f"stage {first}"
    return f"stages {first} {'and' if last == first + 1 else 'to'} {last}"


def numbers(network: NamedNetwork) -> dict[str, Any]:
    """What :func:`blocks_text` tells, as JSON values."""
    stages = backbone_counts(network.architecture)
    shallow, deep = shallow_and_deep(stages)
    return {
        "title": network.title,
        "architecture": str(network.architecture),
        "stages": [_plain(counts) for counts in stages],
        "shallow": _plain(shallow),
        "deep": _plain(deep),
    }


def _plain(counts: KernelCounts) -> dict[str, int]:
    kernels = {f"{kernel}x{kernel}": count for kernel, count in counts.by_kernel.items()}
    return {**kernels, "xception": counts.xception, "skipped": counts.skipped}
