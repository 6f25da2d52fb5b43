"""Malformed configs, pipelines and genotypes: ``python tests/campaigns/malformed.py --only TEXT``.

Each case changes a tiny pipeline (supernet, search, retraining; or Hit-Detector's) and runs it.
It must end with one line that names what is wrong before the first stage has begun, or be right.
Nothing may be executed or written outside, and nothing may hang. Ends with the number of each kind.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

import tests.campaigns.malformed_files
import tests.campaigns.malformed_more
import tests.campaigns.malformed_values  # noqa: F401  (they add the cases)
from detnas_d2.engine import default_argument_parser
from detnas_d2.pipeline.run import run_pipeline
from tests.campaigns.forked import Outcome, run_forked
from tests.campaigns.malformed_case import CASES, MARK, Case
from tests.campaigns.tiny import detnas_pipeline, hit_pipeline

NAMES = {"S": "supernet", "Q": "search", "R": "searched", "H": "search", "G": "searched"}
NAMES["T"] = "searched"
# Legal, though they look odd, and why.
RIGHT = {
    "S SOLVER.IMS_PER_BATCH = '50'": "images repeat",
    "S SOLVER.STEPS = '(100,)'": "Detectron2 drops steps beyond the end, with a warning",
    "S SOLVER.WARMUP_ITERS = '1000000'": "the warm-up ends with the training",
    "S INPUT.MAX_SIZE_TRAIN = '10'": "small images",
    "S VERSION = '1'": "the file's own version is not read from overrides",
    "S OUTPUT_DIR = '/tmp/elsewhere'": "a stage works in the pipeline's folder",
    "S MODEL.DETNAS.PATH = '3x3 / 3x3'": "a supernet has no path",
    "Q SEARCH.POPULATION = '1'": "one candidate after the other",
    "Q SEARCH.IMAGE_CACHE_GIB = '1e-09'": "no image fits",
    "Q SEARCH.VAL = 'shapes'": "a warning tells that it holds training images",
    "H MODEL.HIT.OPS.BACKBONE = '[]'": "all operations",
    "Q SEARCH.MAX_LATENCY_MS = '1e-06'": "latency is measured when the search starts",
    "R TEST.EXPECTED_RESULTS = \"[['bbox', 'AP', 99, 1]]\"": "compared at the end",
    "R MODEL.ANCHOR_GENERATOR.SIZES = '[[12]]'": "one list is for all levels",
}


def prepare(case: Case, base: Path, folder: Path) -> Path:
    """Writes the case's files; returns the pipeline's."""
    change = case.change
    hit = change.get("stage") in ("H", "G", "T")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base / ("hit" if hit else "detnas"), folder)
    stages = yaml.safe_load((folder / "pipeline.yaml").read_text())["STAGES"]
    stages = _hit_stages(change, stages) if hit else _detnas_stages(change, stages)
    target = NAMES.get(change.get("stage", ""))
    if hit and _screens(change):
        target = "screen_backbone"
    for stage in stages:
        if stage["NAME"] == target:
            opts = [list(o) if isinstance(o, tuple) else o for o in change.get("opts", [])]
            if opts:
                stage["OPTS"] = [*stage.get("OPTS", []), *opts]
            stage.update(change.get("edit", {}))
    data = {"OUTPUT_DIR": str(folder / "runs"), "STAGES": stages}
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    if not hit:
        shutil.copy(folder / "train.yaml", folder / "train_ok.yaml")
        (folder / "other.yaml").write_text("_BASE_: train.yaml\nVERSION: 2\n")
        evil = f"SEED: !!python/object/apply:os.system ['touch {MARK}']\nVERSION: 2\n"
        (folder / "evil.yaml").write_text(evil)
    if "text" in change:
        _write(folder / "train.yaml", change["text"])
    text = change.get("pipeline")
    if text == "ABSENT":
        return folder / "absent.yaml"
    if text is not None:
        runs = str(folder / "runs")
        _write(file, text if isinstance(text, bytes) else text.replace("OUT\n", f"{runs}\n"))
    return file


def _write(file: Path, text: str | bytes) -> None:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def _screens(change: dict[str, Any]) -> bool:
    return "SCREENING" in str(change.get("opts", [""])[0])


def _detnas_stages(change: dict[str, Any], stages: list[Any]) -> list[Any]:
    names = {"S": ["supernet"], "Q": ["supernet", "search"]}
    kept = names.get(change.get("stage", ""), ["supernet", "search", "searched"])
    return [stage for stage in stages if stage["NAME"] in kept]


def _hit_stages(change: dict[str, Any], stages: list[Any]) -> list[Any]:
    if _screens(change):
        return [stage for stage in stages if stage["NAME"] == "screen_backbone"]
    if change["stage"] == "G":
        texts = {"BACKBONE": " / ".join(["skip"] * 4), "HEAD": "skip skip"}
        texts["NECK"] = " / ".join(["skip skip skip skip"] * 2)
        opts = [word for part, text in texts.items() for word in (_genotype(part), text)]
        return [{"NAME": "searched", "KIND": "train", "CONFIG": "train.yaml", "OPTS": opts}]
    kept = [stage for stage in stages if stage["NAME"] in ("search", "searched")]
    kept[0].pop("MERGE", None)
    return kept


def _genotype(part: str) -> str:
    return f"MODEL.HIT.GENOTYPE.{part}"


def make_base(base: Path) -> None:
    """Pipelines of two iterations, for what is accepted to end soon."""
    detnas_pipeline(base / "detnas", scoring_workers=0, networks=1)
    hit_pipeline(base / "hit")
    for name in ("train", "retrain"):
        file = base / "detnas" / f"{name}.yaml"
        data = yaml.safe_load(file.read_text())
        data["SOLVER"].update(MAX_ITER=2, STEPS=[1], WARMUP_ITERS=0)
        file.write_text(yaml.safe_dump(data))
    file = base / "detnas" / "search.yaml"
    data = yaml.safe_load(file.read_text())
    data["SEARCH"].update(POPULATION=2, GENERATIONS=2)
    file.write_text(yaml.safe_dump(data))


def run_case(case: Case, base: Path, root: Path, limit: float = 90) -> tuple[str, Outcome]:
    """The kind of end that a case had, and what was seen of it."""
    Path(MARK).unlink(missing_ok=True)
    folder = root / "run"
    file = prepare(case, base, folder)
    before = {path.name for path in root.iterdir()}
    words = ["--config-file", str(file), *case.change.get("cli", [])]
    outcome = run_forked(
        lambda: run_pipeline(default_argument_parser().parse_args(words)) and None, folder, limit
    )
    outside = {path.name for path in root.iterdir()} - before - {"run.out"}
    begun = list((folder / "runs").glob("*/log.txt"))
    if Path(MARK).exists():
        return "CODE RUN", outcome
    if outside or Path("/tmp/absolute").exists() or (root.parent / "escape").exists():
        return "WROTE OUTSIDE", outcome
    if outcome.code is None:
        return "hang", outcome
    if case.title in RIGHT or (outcome.code == 0 and not case.words):
        return "right", outcome
    if outcome.code == 0:
        return "ACCEPTED", outcome
    if not outcome.is_one_line:
        return "TRACEBACK", outcome
    named = not case.words or any(word and word[:50] in outcome.line for word in case.words)
    return ("named" if named else "UNNAMED") + (", LATE" if begun else ""), outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose title holds the text")
    parser.add_argument("--root", type=Path, default=Path("/tmp/detnas_d2_malformed"))
    args = parser.parse_args()
    base, root = args.root / "base", args.root / "cases"
    shutil.rmtree(base, ignore_errors=True)  # of another state of the code, perhaps
    make_base(base)
    root.mkdir(parents=True, exist_ok=True)
    kinds: collections.Counter[str] = collections.Counter()
    for case in CASES:
        if args.only in case.title:
            kind, outcome = run_case(case, base, root)
            kinds[kind] += 1
            print(
                f"{kind:14} {outcome.seconds:4.1f}s {case.title} | {outcome.line[:220]}", flush=True
            )
    print(dict(kinds))
    sys.exit(any(kind not in ("named", "right") for kind in kinds))


if __name__ == "__main__":
    main()
