"""Damaged, foreign and hostile weights: ``python tests/campaigns/checkpoints.py --only TEXT``.

Each case writes a file, names it by MODEL.WEIGHTS, and trains and searches with it. What cannot be
used must end with one line that names the file, before an iteration or a candidate; what can be
used must be. Nothing may be executed. Ends with the number of each kind.
"""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import Tensor

from detnas_d2.config.tools import load_config
from detnas_d2.engine import default_argument_parser, search_main, train_main
from tests.campaigns.forked import Outcome, run_forked
from tests.campaigns.malformed import make_base

MARK = "/tmp/detnas_d2_checkpoints_EXECUTED"
State = dict[str, Tensor]
Write = Callable[[State, Path], None]


class _Malicious:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {MARK}",)


def _saved(change: Callable[[State], object]) -> Write:
    return lambda state, file: torch.save(change(state), file)


def _model(change: Callable[[State], object]) -> Write:
    return _saved(lambda state: {"model": change(state)})


def _bytes(change: Callable[[bytes], bytes]) -> Write:
    def write(state: State, file: Path) -> None:
        buffer = io.BytesIO()
        torch.save({"model": state}, buffer)
        file.write_bytes(change(buffer.getvalue()))

    return write


def _flipped(data: bytes, share: float) -> bytes:
    place = int(len(data) * share)
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _without(text: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if text not in key}


def _each(change: Callable[[Tensor], object], text: str = "") -> Callable[[State], object]:
    return lambda state: {k: change(v) if text in k else v for k, v in state.items()}


def _prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def _zip(state: State, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")


def _pickled(value: Callable[[State], object]) -> Write:
    return lambda state, file: file.write_bytes(pickle.dumps(value(state)))


def _arrays(state: State) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state.items()}


def _floats(change: Callable[[Tensor], Tensor]) -> Callable[[State], object]:
    return _each(lambda value: change(value) if value.is_floating_point() else value)


# Title, suffix of the file, how it is written.
REFUSED: list[tuple[str, str, Write]] = [
    ("empty", ".pth", _bytes(lambda data: b"")),
    ("cut to a half", ".pth", _bytes(lambda data: data[: len(data) // 2])),
    ("cut by a byte", ".pth", _bytes(lambda data: data[:-1])),
    ("cut to 100 bytes", ".pth", _bytes(lambda data: data[:100])),
    ("zeros", ".pth", _bytes(lambda data: bytes(len(data)))),
    ("zeros at the end", ".pth", _bytes(lambda data: data[: len(data) // 2] + bytes(5000))),
    ("a byte of the directory flipped", ".pth", _bytes(lambda data: _flipped(data, 0.999))),
    ("text", ".pth", _bytes(lambda data: b"not a checkpoint\n")),
    ("HTML of a failed download", ".pth", _bytes(lambda data: b"<!DOCTYPE html><html></html>")),
    ("pointer of Git LFS", ".pth", _bytes(lambda data: b"version https://git-lfs.github.com/spec")),
    ("a zip file of something else", ".pth", _zip),
    ("JPEG", ".pth", _bytes(lambda data: b"\xff\xd8\xff\xe0" + data[:1000])),
    ("gzip", ".pth", _bytes(lambda data: b"\x1f\x8b\x08" + data[:1000])),
    ("a list", ".pth", _saved(lambda state: list(state.values()))),
    ("a number", ".pth", _saved(lambda state: 3)),
    ("None", ".pth", _saved(lambda state: None)),
    ("a tensor", ".pth", _saved(lambda state: torch.zeros(3))),
    ("an empty dict", ".pth", _saved(lambda state: {})),
    ("an empty model", ".pth", _model(lambda state: {})),
    ("model is a list", ".pth", _model(list)),
    ("model is None", ".pth", _model(lambda state: None)),
    ("numbers for tensors", ".pth", _model(_each(lambda value: 3))),
    ("texts for tensors", ".pth", _model(_each(lambda value: "x", "fpn"))),
    ("numbers for keys", ".pth", _model(lambda state: dict(enumerate(state.values())))),
    ("code", ".pth", _saved(lambda state: {"model": state, "x": _Malicious()})),
    ("code for a tensor", ".pth", _model(_each(lambda value: _Malicious(), "stem.conv.weight"))),
    ("code alone", ".pth", _pickled(lambda state: _Malicious())),
    ("code in .pkl", ".pkl", _pickled(lambda state: {"model": _Malicious(), "__author__": "x"})),
    ("code in .pyth", ".pyth", _saved(lambda state: {"model_state": _Malicious()})),
    ("a list in .pkl", ".pkl", _pickled(lambda state: [1, 2])),
    (".pth named .pkl", ".pkl", _model(dict)),
    ("NaN everywhere", ".pth", _model(_floats(lambda value: value * float("nan")))),
    ("an infinite weight", ".pth", _model(_each(lambda v: v + float("inf"), "fpn_lateral3.w"))),
    ("all keys foreign", ".pth", _model(lambda s: {k.replace("e", "a"): v for k, v in s.items()})),
    ("an unknown prefix", ".pth", _model(_prefixed("net."))),
    ("half of the neck", ".pth", _model(_without("fpn_lateral3"))),
    ("a layer of the backbone missing", ".pth", _model(_without("blocks.2."))),
    ("a candidate missing", ".pth", _model(_without("blocks.1.candidates.5x5"))),
    ("other shapes in the neck", ".pth", _model(_each(lambda v: v[:1], "fpn_output2.weight"))),
    ("other shapes in the backbone", ".pth", _model(_each(lambda v: v[:1], "stem.conv.weight"))),
    ("transposed", ".pth", _model(_each(lambda value: value.flatten(), "fpn_lateral3.weight"))),
    ("sparse", ".pth", _model(_each(lambda value: value.to_sparse(), "fpn_lateral3.weight"))),
]
USED: list[tuple[str, str, Write]] = [
    ("whole", ".pth", _model(dict)),
    ("without 'model'", ".pth", _saved(dict)),
    ("state_dict", ".pth", _saved(lambda state: {"state_dict": state})),
    ("module.", ".pth", _model(_prefixed("module."))),
    ("_orig_mod.", ".pth", _model(_prefixed("_orig_mod."))),
    ("model.", ".pth", _model(_prefixed("model."))),
    ("module. of module.", ".pth", _model(_prefixed("module.module."))),
    ("half precision", ".pth", _model(_floats(lambda value: value.half()))),
    ("double precision", ".pth", _model(_floats(lambda value: value.double()))),
    ("arrays", ".pkl", _pickled(lambda state: {"model": _arrays(state), "__author__": "x"})),
]


def run_case(
    write: Write, suffix: str, kind: str, state: State, base: Path, root: Path, limit: float = 90
) -> Outcome:
    """``kind`` is "train" or "search"."""
    folder = root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / f"weights{suffix}"
    write(dict(state), file)
    words = ["--config-file", str(base / "detnas" / f"{kind}.yaml")]
    words += ["MODEL.WEIGHTS", str(file), "OUTPUT_DIR", str(folder / "out")]
    main = {"train": train_main, "search": search_main}[kind]
    return run_forked(
        lambda: main(default_argument_parser().parse_args(words)) and None, folder, limit
    )


def kind_of(outcome: Outcome, *, used: bool) -> str:
    if Path(MARK).exists():
        return "CODE RUN"
    if outcome.code is None:
        return "hang"
    if outcome.code == 0:
        return "right" if used else "ACCEPTED"
    if used:
        return "REFUSED"
    if not outcome.is_one_line:
        return "TRACEBACK"
    return "named" if "run/weights" in outcome.line else "UNNAMED"


def supernet_state(base: Path) -> State:
    torch.manual_seed(0)
    return build_model(load_config(str(base / "detnas" / "train.yaml"))).state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose title holds the text")
    parser.add_argument("--root", type=Path, default=Path("/tmp/detnas_d2_checkpoints"))
    args = parser.parse_args()
    base = args.root / "base"
    if not base.exists():
        make_base(base)
    state, kinds = supernet_state(base), collections.Counter()
    for used, cases in ((False, REFUSED), (True, USED)):
        for title, suffix, write in cases:
            for kind in ("train", "search") if args.only in title else ():
                Path(MARK).unlink(missing_ok=True)
                outcome = run_case(write, suffix, kind, state, base, args.root / "cases")
                end = kind_of(outcome, used=used)
                kinds[end] += 1
                seconds, line = outcome.seconds, outcome.line[:200]
                print(f"{end:10} {seconds:4.1f}s {kind:6} {title} | {line}", flush=True)
    print(dict(kinds))
    sys.exit(any(kind not in ("named", "right") for kind in kinds))


if __name__ == "__main__":
    main()
