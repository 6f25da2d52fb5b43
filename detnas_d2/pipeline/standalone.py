"""Trains some paths of a search by themselves: what its fitness is to be compared with."""

from __future__ import annotations

import argparse
import json
import os

import yaml

from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.report import measured
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.search.diagnostics import spread_over_fitness
from detnas_d2.search.history import HEADER_FILE, History
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text

PIPELINE_FILE = "pipeline.yaml"
SCORES_FILE = "scores.json"


def train_standalone(
    args: argparse.Namespace, *, search: str, count: int, output_dir: str, pretrain: str = ""
) -> dict[str, float]:
    """Trains and evaluates ``count`` candidates of a search with the config ``args.config_file``.

    They are a pipeline, ``pipeline.yaml`` in ``output_dir``: what was interrupted is resumed, what
    is finished is kept. ``scores.json`` there is the result.

    Args:
        args: of Detectron2's argument parser; ``opts`` hold for every training.
        search: output folder of the search.
        pretrain: config that each network is trained with first; none by default.

    Returns:
        path -> the metric of the search.

    Raises:
        ValueError: the search has fewer candidates.
        KeyError: the evaluation does not give the metric.
    """
    with open(os.path.join(search, HEADER_FILE), encoding="utf-8") as header:
        metric = json.load(header)["fingerprint"]["metric"]
    records = spread_over_fitness(History.read(search), count)
    stages = [
        stage
        for record in records
        for stage in _stages(record, args.config_file, pretrain, output_dir)
    ]
    file = os.path.join(output_dir, PIPELINE_FILE)
    content = {"OUTPUT_DIR": output_dir, "STAGES": stages, "TABLE": []}
    write_text(file, yaml.safe_dump(content, sort_keys=False, width=1000))
    run_pipeline(argparse.Namespace(**{**vars(args), "config_file": file}))
    pipeline = read_pipeline(file, tuple(args.opts))
    scores = {}
    for record in records:
        score = measured(pipeline, pipeline.known_stage(_name(record)), metric)
        if score is None:
            raise InputError(f"{args.config_file} does not evaluate {metric}, the search's metric")
        scores[record.path] = score
    write_text(os.path.join(output_dir, SCORES_FILE), json.dumps(scores, indent=1) + "\n")
    return scores


def _name(record: CandidateRecord) -> str:
    return f"candidate_{record.index}"


def _stages(
    record: CandidateRecord, config: str, pretrain: str, output_dir: str
) -> list[dict[str, str]]:
    stage = {
        "NAME": _name(record),
        "KIND": "train",
        "CONFIG": os.path.relpath(config, output_dir),
        "PATH": record.path,
    }
    if not pretrain:
        return [stage]
    name = f"{_name(record)}_pretrain"
    first = {**stage, "NAME": name, "CONFIG": os.path.relpath(pretrain, output_dir)}
    return [first, {**stage, "WEIGHTS": name}]
