#!/usr/bin/env python
"""Convert one part of the authors' released DetNAS weights to this project's names.

The output file holds {"model": state dict}. A backbone can be named by MODEL.WEIGHTS of a detector
config; the keys of necks and box heads are those of ``model.backbone`` and ``model.roi_heads``.
The network must use the shuffle method that is printed.
"""

import argparse

import torch

from detnas_d2.command import run_command
from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.modeling.detnas.released import RELEASES, convert
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import new_file


def read_state(file: str, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint whose names start with ``prefix``, which is removed."""
    checkpoint = read_checkpoint(file)["model"]
    found = {k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)}
    if not found:
        raise InputError(
            f"{file}: no name starts with {prefix!r}; the first names are {list(checkpoint)[:3]}"
        )
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=list(RELEASES))
    parser.add_argument(
        "--prefix", default="", help="part of a whole checkpoint, e.g. module.backbone.body."
    )
    parser.add_argument("input")
    parser.add_argument("output")
    args = parser.parse_args(argv)
    state = convert(read_state(args.input, args.prefix), args.model)
    with new_file(args.output) as temporary, open(temporary, "wb") as file:
        torch.save({"model": state}, file)
    method = RELEASES[args.model].shuffle_method
    needs = "" if method is None else f"; needs MODEL.DETNAS.SHUFFLE_METHOD {method}"
    print(f"{len(state)} tensors written to {args.output}{needs}")


if __name__ == "__main__":
    run_command(main)
