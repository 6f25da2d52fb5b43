"""Malformed annotations and images: ``python tests/campaigns/annotations.py [TEXT]``.

Each case (of those with TEXT in their title) is written to a temporary folder and used in a child
process as training and evaluation use it: checked, loaded, mapped, scored. It must give one error
that names the file, before anything is trained, or the expected number of objects; it must not
hang, change the data or write outside the cache. Prints a line per case and a table; exits with 1
if a case came out otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from detnas_d2.config.tools import base_config
from detnas_d2.data import DatasetError, register_datasets
from detnas_d2.data.loaders.train import load_training_dicts
from detnas_d2.evaluation.evaluators import build_evaluator
from detnas_d2.evaluation.scoring import quiet
from tests.campaigns import annotation_cases, voc_cases

LIMIT_S = 60
MEMORY = 8 << 30
FORMATS = {"coco": annotation_cases, "voc": voc_cases}


def config(format: str, folder: Path, cache: Path) -> CfgNode:
    """A training of a detector of boxes on the dataset in ``folder``."""
    cfg = base_config()
    cfg.OUTPUT_DIR = str(cache / "out")
    cfg.DATASETS.CACHE_DIR = str(cache)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("mine",)
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    declaration = {"NAME": "mine", "FORMAT": format}
    if format == "coco":
        files = {"IMAGES": str(folder / "images"), "ANNOTATIONS": str(folder / "a.json")}
    else:
        files = {"ROOT": str(folder), "SPLIT": "train", "CLASSES": ["a", "b", "c"]}
    cfg.DATASETS.REGISTER = [{**declaration, **files}]
    return cfg


def use(cfg: CfgNode) -> int:
    """Checks, loads, maps and scores the dataset; returns the number of objects learned."""
    register_datasets(cfg)
    with quiet():
        dicts = load_training_dicts(cfg, ["mine"])
        mapper = DatasetMapper(cfg, True)
        np.random.seed(0)
        learned = sum(len(mapper(record)["instances"]) for record in dicts)
        listed = sum(a.get("iscrowd", 0) == 0 for d in dicts for a in d["annotations"])
        score = perfect_score(cfg)
    if learned != listed:
        raise AssertionError(f"{listed} objects are listed, the mapper gives {learned}")
    # VOC's mean counts classes without objects as 0, COCO's leaves them out.
    labels = {a["category_id"] for record in dicts for a in record["annotations"]}
    if score < 99.99 * len(labels) / len(MetadataCatalog.get("mine").thing_classes):
        raise AssertionError(f"detections that are all right score {score}")
    return learned


def perfect_score(cfg: CfgNode) -> float:
    """AP50 of detections that equal the annotations."""
    evaluator = build_evaluator(cfg, "mine")
    evaluator.reset()
    for record in DatasetCatalog.get("mine"):
        found = Instances((record["height"], record["width"]))
        objects = [a for a in record["annotations"] if a.get("iscrowd", 0) == 0]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4))
        found.pred_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        found.scores = torch.ones(len(objects))
        evaluator.process([record], [{"instances": found}])
    return float((evaluator.evaluate() or {}).get("bbox", {}).get("AP50", float("nan")))


def in_child(work: Callable[[], Any]) -> dict[str, Any]:
    """What ``work`` returns or raises in a forked process: "value", "error" and "named", "hang"."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        # Raised as by a command: one text, of what the user can put right.
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            answer = {"value": work()}
        except DatasetError as error:
            answer = {"error": str(error), "named": True}
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            answer = {"error": text, "named": False}
        os.write(send, json.dumps(answer).encode()[:60_000])
        os._exit(0)
    os.close(send)
    end = time.monotonic() + LIMIT_S
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    with os.fdopen(receive, "rb") as pipe:
        content = pipe.read()
    return json.loads(content) if content else {"hang": True}


def state_of(folder: Path) -> dict[str, Any]:
    """Path -> kind and content of everything below a folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = path.stat().st_mode
    return found


def run_case(format: str, case: annotation_cases.Case, root: Path) -> tuple[str, str]:
    """(kind of outcome, what is wrong with it or ""): see :func:`judge`.

    Args:
        root: an empty folder for the dataset and the cache.
    """
    folder, cache = root / "set", root / "cache"
    folder.mkdir(parents=True)
    FORMATS[format].base(folder)
    case.files(folder)
    before = state_of(root)
    answer = in_child(lambda: use(config(format, folder, cache)))
    after = {p: s for p, s in state_of(root).items() if not p.startswith(str(cache))}
    kind, wrong = judge(case, answer, folder)
    if after != before:
        wrong = f"changed {sorted(p for p in {*before, *after} if before.get(p) != after.get(p))}"
    return kind, wrong


def judge(case: annotation_cases.Case, answer: dict[str, Any], folder: Path) -> tuple[str, str]:
    """("named", "unnamed", "accepted" or "hang", what is not as expected)."""
    if "hang" in answer:
        return "hang", f"no answer within {LIMIT_S} s, or killed"
    if "value" in answer:
        number = answer["value"]
        wrong = "" if number == case.expected else f"{number} objects, expected {case.expected!r}"
        return "accepted", wrong
    text = answer["error"]
    # The path of an image that lies elsewhere comes with its entry.
    if not answer["named"] or not (str(folder) in text or "(images[" in text):
        return "unnamed", text
    if isinstance(case.expected, int):
        return "named", f"refused, expected {case.expected} objects: {text}"
    return "named", "" if re.search(case.expected, text) else f"not {case.expected!r}: {text}"


def main(argv: list[str]) -> int:
    wanted = argv[0] if argv else ""
    counts: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        for format, module in FORMATS.items():
            for number, case in enumerate(module.CASES):
                if wanted not in case.title:
                    continue
                root = Path(place) / f"{format}{number}"
                kind, wrong = run_case(format, case, root)
                shutil.rmtree(root)
                counts[kind] += 1
                failed += bool(wrong)
                print(f"{kind:9} {format} {case.title}{f'  WRONG: {wrong}' * bool(wrong)}")
    print(", ".join(f"{kind} {number}" for kind, number in counts.most_common()))
    print(f"{failed} of {counts.total()} not as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    MetadataCatalog.pop("mine", None)
    sys.exit(main(sys.argv[1:]))
