"""Networks of a search with the weights that they have in the supernet: no training needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from detnas_d2.engine.checkpoint import write_checkpoint
from detnas_d2.engine.checkpoint_files import damage, read_checkpoint
from detnas_d2.engine.checks.models import Models
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.evaluation.recalibration import BNStatistics, override_bn_stats
from detnas_d2.evaluation.resized import PathEvaluator
from detnas_d2.modeling import WeightsError, adapt_state_dict, find_supernet
from detnas_d2.modeling.weights_fit import check_fit
from detnas_d2.search.history import HEADER_FILE
from detnas_d2.search_space.candidates import Candidates
from detnas_d2.utils.errors import CandidateFailed
from detnas_d2.utils.io import sha256_of

INHERITED_FILE = "best_inherited.pth"
INHERITED_CONFIG = "best_inherited.yaml"
FRONT_FOLDER = "front"
"""In the folder of a search: the members of its front."""

logger = logging.getLogger("detnas_d2.search")


def member_file(number: int) -> str:
    """Checkpoint of a member of a front, relative to the folder of the search.

    Args:
        number: of ``front.yaml``.
    """
    return os.path.join(FRONT_FOLDER, f"{number}.pth")


def write_inherited(
    folder: str,
    networks: Sequence[tuple[CfgNode, CandidateRecord]],
    candidates: Candidates,
    evaluator: PathEvaluator,
) -> bool:
    """Writes the checkpoints of networks that a search found (collective).

    The BatchNorm statistics in them are those that their fitness was computed with. A checkpoint of
    the same search and path stays as it is.

    Args:
        folder: of the search.
        networks: config of a network, with the modules of the searched model and its checkpoint as
            MODEL.WEIGHTS, and the candidate that it is; at least one.
        evaluator: of the search; holds the supernet.

    Returns:
        whether there are checkpoints now that this process has to tell of: on rank 0, unless the
        supernet is one of the user's own, of which no single path can be built.

    Raises:
        CandidateFailed: the statistics cannot be computed again.
        WeightsError: a config builds other modules.
    """
    first = networks[0][0]
    if find_supernet(Models().of(first)) is not None:
        logger.warning("%s: no decoded backbone is known, no weights", first.MODEL.BACKBONE.NAME)
        return False
    sources: list[dict[str, Any]] = []
    there: list[bool] = []
    if comm.is_main_process():
        search = sha256_of(os.path.join(folder, HEADER_FILE))
        for cfg, record in networks:
            sources.append({"path": record.path, "fitness": record.fitness, "search": search})
            there.append(_source_of(cfg.MODEL.WEIGHTS) == sources[-1])
    waiting = [number for number, is_there in enumerate(comm.all_gather(there)[0]) if not is_there]
    for start in range(0, len(waiting), evaluator.chunk):
        chunk = waiting[start : start + evaluator.chunk]
        paths = {number: candidates.path(networks[number][1].choices) for number in chunk}
        statistics = evaluator.statistics(list(dict.fromkeys(paths.values())))
        for number, path in paths.items():
            found = statistics[path]
            if isinstance(found, CandidateFailed):
                raise found
            if comm.is_main_process():
                _write(networks[number][0], sources[number], evaluator.model, found)
    return comm.is_main_process()


def remove_members(folder: str, first: int) -> None:
    """Removes what an earlier search left in the folder of a front, from member ``first`` on."""
    place = os.path.join(folder, FRONT_FOLDER)
    for name in os.listdir(place) if os.path.isdir(place) else ():
        number, extension = os.path.splitext(name)
        if number.isdecimal() and int(number) >= first and extension in (".pth", ".yaml"):
            os.remove(os.path.join(place, name))


def _write(
    decoded: CfgNode, source: dict[str, Any], model: nn.Module, statistics: BNStatistics
) -> None:
    file = decoded.MODEL.WEIGHTS
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    state = inherited_state(model, Models().of(decoded), statistics)
    write_checkpoint(file, {"model": state, "inherited": source})
    logger.info("%s with the supernet's weights: %s", source["path"], file)


def inherited_state(
    model: nn.Module, network: nn.Module, statistics: BNStatistics
) -> dict[str, Tensor]:
    """The state of ``network``, on the CPU, taken out of a supernet.

    Args:
        model: holds the supernet; not changed.
        network: one path of it, with the same neck and heads; may be on the meta device.
        statistics: recalibrated for that path.

    Raises:
        WeightsError: the network is none of the supernet's, or has other modules around it.
    """
    with override_bn_stats(model, statistics):
        found = adapt_state_dict(model.state_dict(), network)
    check_fit(found, network, whole=True)
    return {key: found[key].detach().cpu().clone() for key in network.state_dict() if key in found}


def _source_of(file: str) -> Any:
    """The search that a checkpoint is of; None if there is none, or a damaged one."""
    try:
        return None if damage(file) else read_checkpoint(file).get("inherited")
    except WeightsError:
        return None
