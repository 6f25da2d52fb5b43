#!/usr/bin/env python
"""Memory that a relaxed Hit-Detector needs for one training step, calculated and measured.

    python benchmarks/hit_memory.py --input-size 800 1216 --images 1       calculated, on "meta"
    python benchmarks/hit_memory.py --input-size 160 224 --rois 64 --measure     and run on the CPU

Calculated is what autograd saves for the backward pass (every storage once), plus the most that
one candidate saves while it is recomputed, plus weights, gradients and momentum. Measured is by how
much the process's memory grows at most during forward and backward pass: to be compared with the
first two. Losses, proposals, gradients in flight and the workspaces of libraries are not in the
calculation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

import detnas_d2.modeling  # noqa: F401  (registers the parts)
from detnas_d2.config.tools import load_config
from detnas_d2.modeling.mixed_block import MixedBlock

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/HitDetector/search/search_released_spaces.yaml"
MIB = 2**20


def parts_forward(model: nn.Module, images: Tensor, rois: int) -> list[Tensor]:
    """Outputs of backbone, neck, RPN head and box head (``rois`` regions for each image)."""
    features = model.backbone(images)
    generator = model.proposal_generator
    scores, deltas = generator.rpn_head([features[f] for f in generator.in_features])
    heads = model.roi_heads
    channels = features[heads.box_in_features[0]].shape[1]
    regions = features[heads.box_in_features[0]].new_zeros(
        rois * len(images), channels, *heads.box_pooler.output_size
    )
    # Regions depend on the features: their gradient is needed too.
    regions = regions + features[heads.box_in_features[0]].mean()
    return [*scores, *deltas, *heads.box_predictor(heads.box_head(regions))]


class Saved:
    """Bytes of all storages that autograd saves inside a ``with`` block, parameters left out."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self._kept: dict[int, Tensor] = {}

    def _pack(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self._parameters:
            self._kept[key] = tensor  # kept alive, so that no other storage gets its address
        return tensor

    def __enter__(self) -> Saved:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t)
        self._hooks.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._hooks.__exit__(*args)

    @property
    def bytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in self._kept.values())


def calculate(cfg: CfgNode, size: tuple[int, int], images: int, rois: int) -> dict[str, float]:
    """MiB by purpose; see the module."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg).train()
        x = torch.empty(images, 3, *size)
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [
        m.register_forward_pre_hook(lambda m, args: inputs.update({m: args[0].detach()}))
        for m in model.modules()
        if isinstance(m, MixedBlock)
    ]
    with Saved(model) as saved:
        parts_forward(model, x, rois)
    for hook in hooks:
        hook.remove()
    peak = 0
    if cfg.MODEL.HIT.RECOMPUTE:
        for block, data in inputs.items():
            for candidate in block.candidates.values():
                with Saved(model) as one:
                    candidate(data.requires_grad_())
                peak = max(peak, one.bytes)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "saved for backward": saved.bytes / MIB,
        "one candidate at most": peak / MIB,
        "weights, gradients, momentum": 3 * weights / MIB,
    }


def measure(cfg: CfgNode, size: tuple[int, int], images: int, rois: int) -> float:
    """Growth of this process's resident memory by one forward and backward pass, MiB (Linux).

    Weights and gradients are there before; momentum is not.
    """
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).train()
    x = torch.randn(images, 3, *size)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = _status("VmRSS")
    sum(y.sum() for y in parts_forward(model, x, rois)).backward()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """A size of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default=str(CONFIG))
    parser.add_argument("--input-size", type=int, nargs=2, default=(800, 1216))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rois", type=int, default=512, help="regions per image")
    parser.add_argument("--keep", action="store_true", help="keep all activations, no recomputing")
    parser.add_argument("--measure", action="store_true", help="also run it on the CPU")
    args = parser.parse_args()
    cfg = load_config(args.config_file)
    cfg.MODEL.HIT.NORM = "BN"
    cfg.MODEL.HIT.RECOMPUTE = not args.keep
    size = tuple(args.input_size)
    costs = calculate(cfg.clone(), size, args.images, args.rois)
    for name, value in costs.items():
        print(f"{name:<32}{value:>12,.1f} MiB")
    print(f"{'sum':<32}{sum(costs.values()):>12,.1f} MiB")
    if args.measure:
        grown = measure(cfg.clone(), size, args.images, args.rois)
        print(f"{'measured growth of memory':<32}{grown:>12,.1f} MiB")


if __name__ == "__main__":
    main()
