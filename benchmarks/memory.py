"""What detectors hold in memory on a CPU, beside the table of SEARCH.OBJECTIVES memory_bytes.

    python benchmarks/memory.py [--config-file FILE] [--size 128] [--networks 30]

Random paths of a search's space with random weights run on one image of noise; counted is the most
that PyTorch has allocated at once beyond weights and image, of the backbone alone and of the whole
detector, by its modules and through this project's operators. Kendall's tau to the table. A run is
counted, not timed: it depends on no other work.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from detnas_d2.analysis.rank_statistics import tau_b
from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import network_config, searched_space
from detnas_d2.search_space.footprint import footprints

ROOT = Path(__file__).resolve().parents[1]
HEAD = ("blocks", "MB by the table", "backbone, MB", "tau", "detector, MB", "tau")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    search = ROOT / "configs" / "DetNAS" / "demo" / "search.yaml"
    parser.add_argument("--config-file", default=str(search), metavar="FILE", help="of a search")
    parser.add_argument("--size", type=int, default=128, help="of the image (default: 128)")
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides")
    args = parser.parse_args()
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    space, size = searched_space(cfg), args.size
    rng = random.Random(0)
    paths = [space.random_path(rng) for _ in range(args.networks)]
    table = footprints(space, (size, size)).memory
    told = [table.total(path.choices) for path in paths]
    rows = []
    for name, fused in (("modules", "off"), ("operators", "auto")):
        bodies, wholes = zip(*(peaks(cfg, path, fused, size) for path in paths), strict=True)
        rows.append((name, span(told), *judged(told, bodies), *judged(told, wholes)))
    print(tabulate(rows, headers=HEAD, disable_numparse=True))


def peaks(cfg: CfgNode, path: Any, fused: str, size: int) -> tuple[int, int]:
    """Bytes of backbone and detector of a path, at most."""
    own = network_config(cfg, path)
    own.MODEL.DETNAS.FUSED_OPS = fused
    torch.manual_seed(0)
    model = build_model(own).eval()
    image = 255 * torch.rand(3, size, size)
    batch = image[None] / 255
    return peak(lambda: model.backbone.bottom_up(batch)), peak(lambda: model([{"image": image}]))


@torch.no_grad()
def peak(run: Callable[[], object]) -> int:
    """The most bytes that a second run has allocated at once."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def judged(told: list[int], measured: Any) -> tuple[str, str]:
    """Range, and tau to the table, "-" where all are equal."""
    equal = len(set(measured)) == 1
    return span(measured), "-" if equal else f"{tau_b(told, measured):.2f}"


def span(values: Any) -> str:
    return f"{min(values) / 1e6:.2f} to {max(values) / 1e6:.2f}"


if __name__ == "__main__":
    main()
