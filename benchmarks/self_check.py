"""What ``auto`` chooses on this device, operators or modules, graphs or calls, and what failed.

    python benchmarks/self_check.py [--device cuda] [--size 320x480] [--output FILE]

Every kind of block of the 300M backbone in evaluation, recalibration and training is compared with
its modules in float64 and timed, as ``MODEL.DETNAS.FUSED_OPS: auto`` does on a GPU, and so are some
candidates of a mixed layer in training, on 96 channels at a stride of 8, as ``MODEL.HIT.FUSED_OPS:
auto`` does. On a GPU forwards of a supernet's path are then replayed from CUDA graphs, compared bit
by bit and timed, as ``SEARCH.CUDA_GRAPHS: auto`` does. Ends with an error if something was wrong or
failed.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from backbone import PATH

from detnas_d2.evaluation.graphed_supernet import Reports, graphed
from detnas_d2.evaluation.graphs import GraphBackend, GraphedCalls
from detnas_d2.layers import get_norm
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.modeling import Supernet
from detnas_d2.modeling.mixed_block import MixedBlock
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space import SPACES
from detnas_d2.search_space import Path as Choices
from detnas_d2.search_space.operations import BODY_RULES, build_operation
from detnas_d2.utils.cuda_graphs import CudaGraphs

CANDIDATES = (
    "ir_k3_e3_d1", "ir_k5_e6_d1", "ir_k5_e6_d2", "ir_k7_e3", "sep_k3_d1", "sep_k5_d3", "conv_k3",
)  # fmt: skip
CHANNELS = 96
FEATURES = ["stage1", "stage2", "stage3", "stage4"]


def supernet(space: str, device: str) -> Supernet:
    torch.manual_seed(0)
    net = Supernet(
        SPACES[space],
        norm=partial(get_norm, "BN"),
        shuffle_method=2,
        out_features=FEATURES,
    )
    net.fused_ops = "measured"  # what "auto" means on a GPU
    return net.to(device)


def choices(
    net: Supernet, path: Choices, x: torch.Tensor, backend: GraphBackend | None
) -> dict[str, dict]:
    """What is chosen for the path's forwards with images ``x``, by class of work.

    Args:
        backend: makes graphs; None: none are tried.
    """
    net.autotune = AutotuneCache()
    graphs = None if backend is None else GraphedCalls(backend, net.autotune)
    reports = Reports(lambda name, stats: None)
    with net.active(path):
        net.train()
        torch.autograd.backward([feature.sum() for feature in net(x).values()])
        net.eval()
        with torch.no_grad():
            with use_batch_statistics(net, reports), graphed(net, graphs, "recalibration", reports):
                for _ in range(4):
                    net(x)
            with graphed(net, graphs, "evaluation"):
                for _ in range(4):
                    net(x)
    return net.autotune.entries


def choices_of_candidates(x: torch.Tensor) -> dict[str, dict]:
    """The same of a mixed layer's candidates with the input ``x``."""
    norm = partial(get_norm, "BN")
    build = partial(build_operation, stride=1, norm=norm, rules=BODY_RULES)
    block = MixedBlock(CANDIDATES, lambda op: build(op, x.shape[1], x.shape[1])).to(x.device)
    block.fused_ops = "measured"
    block(x, torch.ones(len(CANDIDATES), device=x.device))
    return block.autotune.entries


def wrong(found: dict[str, dict]) -> list[str]:
    """Classes that were not even timed, but for want of memory or of anything to tell."""
    harmless = ("not enough memory", "rounding hides")
    return [key for key, e in found.items() if "why" in e and not e["why"].startswith(harmless)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--size", default="320x480", help="of the images, one in the batch")
    parser.add_argument("--output", type=Path, help="append the JSON lines to this file, too")
    args = parser.parse_args()
    net = supernet("detnas_small", args.device)
    height, width = map(int, args.size.split("x"))
    x = torch.rand(1, 3, height, width, device=args.device)
    backend = CudaGraphs() if args.device == "cuda" else None
    found = choices(net, net.space.path(PATH), x, backend)
    layer = torch.rand(1, CHANNELS, height // 8, width // 8, device=args.device)
    found |= choices_of_candidates(layer)
    records = ({"bench": "self_check", "case": key, **entry} for key, entry in found.items())
    lines = list(map(json.dumps, records))
    print("\n".join(lines))
    if args.output:
        with args.output.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    if bad := wrong(found):
        raise SystemExit("\n".join(f"{key}: {found[key]['why']}" for key in bad))


if __name__ == "__main__":
    main()
