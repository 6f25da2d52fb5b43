"""The best network of a search with the weights that it has in the supernet: no training needed."""

from __future__ import annotations

import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from detnas_d2.engine.checkpoint import write_checkpoint
from detnas_d2.engine.checkpoint_files import damage, read_checkpoint
from detnas_d2.engine.checks.models import Models
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.recalibration import BNStatistics, override_bn_stats
from detnas_d2.modeling import WeightsError, adapt_state_dict, find_supernet
from detnas_d2.modeling.weights_fit import check_fit
from detnas_d2.search.history import HEADER_FILE
from detnas_d2.search_space.space import PathSpace
from detnas_d2.utils.errors import CandidateFailed
from detnas_d2.utils.io import sha256_of

INHERITED_FILE = "best_inherited.pth"
INHERITED_CONFIG = "best_inherited.yaml"

logger = logging.getLogger("detnas_d2.search")


def write_inherited(
    decoded: CfgNode, best: CandidateRecord, space: PathSpace, evaluator: PopulationEvaluator
) -> bool:
    """Writes the checkpoint ``decoded.MODEL.WEIGHTS`` of a search's winner (collective).

    The BatchNorm statistics in it are those that its fitness was computed with. A checkpoint of the
    same search and path stays as it is.

    Args:
        decoded: config of the winner's network, with the modules of the searched model.
        evaluator: of the search; holds the supernet.

    Returns:
        whether there is a checkpoint now that this process has to tell of: on rank 0, unless the
        supernet is one of the user's own, of which no single path can be built.

    Raises:
        CandidateFailed: the statistics cannot be computed again.
        WeightsError: ``decoded`` builds other modules.
    """
    file, network = decoded.MODEL.WEIGHTS, Models().of(decoded)
    if find_supernet(network) is not None:
        logger.warning("%s: no decoded backbone is known, no weights", decoded.MODEL.BACKBONE.NAME)
        return False
    source, there = {}, True
    if comm.is_main_process():
        header = os.path.join(os.path.dirname(file), HEADER_FILE)
        source = {"path": best.path, "fitness": best.fitness, "search": sha256_of(header)}
        there = _source_of(file) == source
    if comm.all_gather(there)[0]:
        return comm.is_main_process()
    path = space.path(best.choices)
    statistics = evaluator.statistics([path])[path]
    if isinstance(statistics, CandidateFailed):
        raise statistics
    if comm.is_main_process():
        state = inherited_state(evaluator.model, network, statistics)
        write_checkpoint(file, {"model": state, "inherited": source})
        logger.info("The best path with the supernet's weights: %s", file)
    return comm.is_main_process()


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
