"""Checks of a run before it starts: by its command, or by a pipeline for every stage.

Datasets are registered before; models stand on the meta device, see
:mod:`detnas_d2.engine.checks.models`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from detnas_d2.engine.architectures import decoded_example
from detnas_d2.engine.checkpoint import weights_of
from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.engine.checks.models import (
    Models,
    check_evaluation,
    check_names,
    check_training,
    told,
)
from detnas_d2.engine.gradient_search import check_screening
from detnas_d2.engine.inference import check_network
from detnas_d2.engine.plan import GradientPlan, SearchPlan
from detnas_d2.engine.training import check_plain_training
from detnas_d2.modeling import WeightsError, adapt_state_dict, find_supernet
from detnas_d2.modeling.baselines.resnet_names import is_torchvision_resnet, torchvision_settings
from detnas_d2.modeling.weights_fit import check_fit
from detnas_d2.utils.errors import InputError


def check_run(
    cfg: CfgNode,
    kind: str,
    models: Models,
    *,
    config_dir: str,
    opts: Sequence[str] = (),
    data: bool = True,
    processes: int = 1,
) -> None:
    """Model, optimizer, schedule, search, evaluation, and the network that a search completes.

    Args:
        kind: "train", "evaluate", "search", "screen" or "gradient".
        config_dir, opts: folder and overrides of the config that a search completes.
        data: look at the datasets too; False for a run that is finished.
        processes: on which it will run, all machines together.

    Raises:
        InputError: naming the key, and what is wrong.
    """
    model = models.of(cfg)
    if kind == "search":
        plan = SearchPlan.from_config(cfg, config_dir, opts)
        _check_search(cfg, models, plan, data=data)
        return
    if kind == "evaluate":
        check_network(cfg, model)
        if not cfg.DATASETS.TEST:
            raise InputError("DATASETS.TEST is empty: expected what the network is evaluated on")
        if data:
            check_evaluation(cfg)
        return
    check_training(cfg, model, evaluation=data)
    if kind == "screen":
        check_screening(cfg)
    elif kind == "gradient":
        gradient = GradientPlan.from_config(cfg, config_dir, opts)
        gradient.check()
        models.of(gradient.completed(decoded_example(cfg, model)))
    else:
        check_plain_training(cfg)
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: expected a multiple of the "
            f"{processes} processes (--num-gpus, --num-machines)"
        )


def _check_search(cfg: CfgNode, models: Models, plan: SearchPlan, *, data: bool) -> None:
    if find_supernet(models.of(cfg)) is None:
        raise InputError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} holds no supernet to search"
        )
    plan.check(data=False)
    candidates = plan.proposals.candidates
    path = str(candidates.path((0,) * len(candidates.cardinalities)))
    retrain = plan.completed(path)
    with told("SEARCH.RETRAIN_CONFIG"):
        check_names(retrain)
        models.of(retrain)
    models.of(plan.inherited(path, ""))
    if data:
        plan.evaluation.check()


def check_weights(
    key: str,
    name: str,
    model: nn.Module,
    *,
    whole: bool,
    state: Mapping[str, Tensor] | None = None,
) -> Mapping[str, Tensor]:
    """Compares weights with the model that will start from them.

    Args:
        key: that names them.
        name: a file or an address, unless ``state`` is what it will hold.
        whole: they must be those of the whole model.

    Returns:
        the tensors as they are in the file; none if they are matched by name when they are loaded.

    Raises:
        InputError: they cannot be read, or do not fit.
    """
    try:
        with told(f"{key} {name!r}"):
            if state is None:
                checkpoint = read_checkpoint(_local(key, name))
                if checkpoint.get("matching_heuristics"):
                    return {}
                state = weights_of(checkpoint, model)
            check_fit(adapt_state_dict(state, model), model, whole=whole)
            return state
    except WeightsError as error:
        raise WeightsError(f"{key} {name!r}: {error}") from error


def weights_warnings(cfg: CfgNode, state: Mapping[str, Tensor]) -> list[str]:
    """A text where a config does not see images as the weights that it starts from have.

    Args:
        state: see :func:`check_weights`.
    """
    told = torchvision_settings(cfg) if is_torchvision_resnet(state) else []
    return [f"the weights are a ResNet's of torchvision: {'; '.join(told)}"] if told else []


def _local(key: str, name: str) -> str:
    """The file of weights, fetched if it is an address."""
    try:
        file = PathManager.get_local_path(name)
    except Exception as error:  # of the many that handlers of addresses raise
        raise InputError(f"{key} {name!r} cannot be fetched: {error}") from error
    if not os.path.isfile(file):
        raise InputError(f"{key} {name!r}: no such file")
    return file
