#!/usr/bin/env python
"""Convert the released Hit-Detector checkpoint (mmdetection 1.x) for Detectron2."""

from __future__ import annotations

import argparse
import os

import torch
from detectron2.modeling import build_model

import detnas_d2.modeling  # noqa: F401  (registers the parts)
from detnas_d2.command import run_command
from detnas_d2.config.tools import load_config
from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.modeling.hit.released import convert_released_hit
from detnas_d2.utils.io import new_file

CONFIG = os.path.join(os.path.dirname(__file__), "../../configs/HitDetector/released/coco.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", help="released .pth file")
    parser.add_argument("output", help="file to write")
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE")
    args = parser.parse_args()
    cfg = load_config(args.config_file)
    cfg.MODEL.DEVICE = "cpu"
    state = convert_released_hit(read_checkpoint(args.input)["model"], build_model(cfg))
    with new_file(args.output) as temporary, open(temporary, "wb") as file:
        torch.save({"model": state}, file)
    print(f"{len(state)} tensors written to {args.output}")


if __name__ == "__main__":
    run_command(main)
