"""Every member of a front on the test images, with the weights that it has in the supernet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from detnas_d2.engine.architectures import fix_path
from detnas_d2.engine.inherited import member_file
from detnas_d2.engine.telling import tell
from detnas_d2.engine.training import evaluate
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.evaluation.candidate import finite_or_none
from detnas_d2.pipeline.state import read_json
from detnas_d2.search.front_file import read_front
from detnas_d2.search.history import History
from detnas_d2.search_space.space import PathSpace
from detnas_d2.utils.io import sha256_of, write_json

MEMBERS_FILE = "members.json"
"""In the folder of the stage: number of a member -> its path, weights and results."""


@dataclass(frozen=True)
class TestedMember:
    """A member of a front; ``results``: of the test, None for what is undefined."""

    __test__ = False  # no class of tests

    record: CandidateRecord
    results: Mapping[str, float | None]


def evaluate_front(cfg: CfgNode, search: str, space: PathSpace) -> dict[str, Any]:
    """Evaluates every member of a front on ``DATASETS.TEST`` of a config (collective).

    Each has the checkpoint that the search wrote for it. What was evaluated before, with the same
    weights, is kept; member k works in ``OUTPUT_DIR/k``.

    Args:
        cfg: of a network of the search's space.
        search: folder of the finished search.
        space: of its paths.

    Returns:
        {"members": number of them}.

    Raises:
        InputError: a damaged front.
    """
    members = read_front(search, History.read(search)).members
    told = comm.all_gather(read_json(cfg.OUTPUT_DIR, MEMBERS_FILE))[0]
    for number, record in enumerate(members, start=1):
        tell("members", number - 1, len(members))
        network = cfg.clone()
        network.defrost()
        network.MODEL.WEIGHTS = os.path.join(search, member_file(number))
        network.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, str(number))
        fix_path(network, space, record.path)
        mark = {"path": record.path, "weights": sha256_of(network.MODEL.WEIGHTS)}
        before = told.get(str(number), {})
        if {key: before.get(key) for key in mark} == mark:
            continue
        results = flatten_results_dict(evaluate(network))
        told[str(number)] = {**mark, "results": finite_or_none(results)}
        if comm.is_main_process():
            write_json(os.path.join(cfg.OUTPUT_DIR, MEMBERS_FILE), told, indent=1)
    return {"members": len(members)}


def tested_members(folder: str, search: str) -> list[TestedMember]:
    """Those that :func:`evaluate_front` has evaluated in ``folder``, the cheapest first.

    Raises:
        InputError: a damaged front.
    """
    told = read_json(folder, MEMBERS_FILE)
    members = enumerate(read_front(search, History.read(search)).members, start=1)
    return [
        TestedMember(record, entry["results"])
        for number, record in members
        if (entry := told.get(str(number))) and entry["path"] == record.path
    ]
