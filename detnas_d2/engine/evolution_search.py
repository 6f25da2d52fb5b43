"""The search for the best path of a trained supernet (DetNAS section 3.1, step 3)."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from detnas_d2.config.tools import short_yaml
from detnas_d2.data import DataState, data_state, drop_cache
from detnas_d2.engine.architectures import fix_path, searched_space, space_costs
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.data_checks import sharing_images
from detnas_d2.engine.outlook import outlook_text
from detnas_d2.engine.plan import retrain_config
from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.trainer import Trainer
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.evaluation.build import (
    calibration_set,
    candidate_evaluator,
    check_evaluator,
    check_validation,
    evaluation_fingerprint,
    validation_set,
)
from detnas_d2.evaluation.scoring import metric_name
from detnas_d2.modeling import find_supernet
from detnas_d2.search import Progress, open_history, run_search
from detnas_d2.search.build import build_constraint, build_searcher, search_fingerprint
from detnas_d2.search_space import LatencyTable, SearchSpace, measure_latency
from detnas_d2.search_space.space import PathSpace
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import sha256_of, write_text

logger = logging.getLogger("detnas_d2.search")


def check_search(cfg: CfgNode, config_dir: str, retrain_opts: Sequence[str] = ()) -> None:
    """Finds errors in a search's config before there is a supernet to search.

    A latency that is still to be measured is not compared with its limit.

    Args:
        config_dir, retrain_opts: see :func:`search`.

    Raises:
        OSError, ValueError: what :func:`search` would raise, without its data.
    """
    space, known = searched_space(cfg), cfg.clone()
    retrain_config(cfg, config_dir, retrain_opts)
    check_evaluator(cfg)
    known.defrost()
    if not cfg.SEARCH.LATENCY_TABLE:
        known.SEARCH.MAX_LATENCY_MS = 0.0
    constraint = build_constraint(known, space_costs(cfg, space), load_latency(known, space))
    build_searcher(known, space, constraint)


@plain_torchscript()
def search(
    cfg: CfgNode, *, resume: bool, config_dir: str = "", retrain_opts: Sequence[str] = ()
) -> CandidateRecord:
    """Runs or resumes a search in ``OUTPUT_DIR``.

    Files there: ``history.jsonl`` (every candidate), ``search.json`` (what determines them),
    ``generations.json`` (summaries), ``best.yaml`` (a config for ``train_net.py``); while it runs,
    the images (``SEARCH.IMAGE_CACHE_GIB``).

    Args:
        config_dir: folder that ``SEARCH.RETRAIN_CONFIG`` is relative to.
        retrain_opts: KEY, VALUE overrides of that file.

    Raises:
        ValueError: no weights, no supernet, limits that no path keeps, or validation images on
            which no score is defined; before anything is computed.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is empty: the search needs the weights of a supernet")
    retrain = retrain_config(cfg, config_dir, retrain_opts)
    check_evaluator(cfg)
    check_validation(cfg)
    for warning in leaks(cfg, retrain):
        logger.warning(warning)
    space = searched_space(cfg)
    plan = SearchPlan(cfg, space)
    model = load_supernet(cfg)
    evaluation = {
        "checkpoint_sha256": sha256_of(cfg.MODEL.WEIGHTS),
        "data": search_data(cfg),
        **evaluation_fingerprint(cfg),
    }
    best = plan.run(partial(candidate_evaluator, cfg, model), evaluation, resume=resume)
    if comm.is_main_process():
        fix_path(retrain, space, best.path)
        target = os.path.join(cfg.OUTPUT_DIR, "best.yaml")
        write_text(target, best_yaml(retrain, best, metric_name(cfg, validation_set(cfg))))
        logger.info("Best path (fitness %.3f): %s; written to %s", best.fitness, best.path, target)
    comm.synchronize()
    drop_cache(cfg.OUTPUT_DIR)
    return best


def search_data(cfg: CfgNode) -> DataState:
    """State of the data that score and calibrate, on rank 0, which writes and compares it."""
    names = (validation_set(cfg), calibration_set(cfg))
    return data_state(names) if comm.is_main_process() else {}


class SearchPlan:
    """Settings of ``cfg.SEARCH`` for a search of ``space``, limits and numbers checked.

    Raises:
        ValueError: a key is wrong, or limits that no path keeps.
    """

    def __init__(self, cfg: CfgNode, space: PathSpace) -> None:
        self.cfg, self.space = cfg, space
        self.latency = load_latency(cfg, space)
        self.constraint = build_constraint(cfg, space_costs(cfg, space), self.latency)
        self.searcher = build_searcher(cfg, space, self.constraint)

    def run(
        self,
        evaluator: Callable[[], AbstractContextManager[Any]],
        evaluation: Mapping[str, Any],
        *,
        resume: bool,
    ) -> CandidateRecord:
        """Searches in ``OUTPUT_DIR``, or goes on; returns the best candidate.

        Args:
            evaluator: gives the evaluator of candidates.
            evaluation: what decides a candidate's fitness, weights included; JSON values.
        """
        cfg, searcher = self.cfg, self.searcher
        fingerprint = search_fingerprint(
            space=self.space,
            searcher=searcher,
            limits=self.constraint.limits,
            latency_table_sha256=latency_digest(self.latency),
            **evaluation,
        )
        history = open_history(cfg.OUTPUT_DIR, fingerprint, resume=resume)
        progress = None
        if comm.is_main_process():
            progress = Progress(searcher, cfg.OUTPUT_DIR, outlook=outlook_text)
        with evaluator() as evaluates:
            if progress is not None and hasattr(evaluates, "on_pass"):
                evaluates.on_pass = progress.passed
            return run_search(
                searcher,
                evaluates,
                history,
                space=self.space,
                limits=self.constraint,
                max_failures=cfg.SEARCH.MAX_FAILURES,
                on_progress=progress,
            )


def load_supernet(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` with the weights ``MODEL.WEIGHTS``, in eval mode.

    Raises:
        ValueError: it holds no supernet.
        WeightsError: the weights are not those of the whole model, e.g. a classifier's.
    """
    model = Trainer.build_model(cfg)
    if find_supernet(model) is None:
        raise InputError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}: no supernet to search")
    DetNASCheckpointer(model).load_all(cfg.MODEL.WEIGHTS)
    return model.eval()


def load_latency(cfg: CfgNode, space: SearchSpace) -> LatencyTable | None:
    """The latency table, if latency is limited: from ``SEARCH.LATENCY_TABLE``, or measured once."""
    named = cfg.SEARCH.LATENCY_TABLE
    if named and not os.path.isfile(named):
        raise InputError(f"SEARCH.LATENCY_TABLE: {named!r} does not exist")
    if not cfg.SEARCH.MAX_LATENCY_MS:
        return None
    file = cfg.SEARCH.LATENCY_TABLE or os.path.join(cfg.OUTPUT_DIR, "latency.json")
    if comm.is_main_process() and not os.path.exists(file):
        logger.info("Measuring latency on %s; kept in %s", cfg.MODEL.DEVICE, file)
        table = measure_latency(
            space,
            input_size=tuple(cfg.SEARCH.MAX_MACS_INPUT),
            device=cfg.MODEL.DEVICE,
            shuffle_method=cfg.MODEL.DETNAS.SHUFFLE_METHOD,
        )
        write_text(file, table.to_json())
    comm.synchronize()
    try:
        with open(file, encoding="utf-8") as text:
            return LatencyTable.from_json(text.read(), space)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"SEARCH.LATENCY_TABLE: {file} is no table of this space ({error}); delete it, or name "
            "another"
        ) from error


def latency_digest(latency: LatencyTable | None) -> str:
    """Hash of the table, "" without one."""
    return "" if latency is None else hashlib.sha256(latency.to_json().encode()).hexdigest()


def leaks(cfg: CfgNode, retrain: CfgNode) -> list[str]:
    """A text for each data set that the candidates' scores must not share images with, but do."""
    validation = [validation_set(cfg)]
    return [
        f"Candidates are scored on {validation[0]!r}, of which images are in {name!r}, {why}"
        for names, why in (
            (
                cfg.DATASETS.TRAIN,
                "which the supernet is trained on: scores favour what it memorised",
            ),
            (retrain.DATASETS.TEST, "the test set: the searched network's results are biased"),
        )
        for name, _ in sharing_images(names, validation)
    ]


def best_yaml(retrain: CfgNode, best: CandidateRecord, metric: str) -> str:
    """Text of ``best.yaml``."""
    return (
        f"# The best path of a search: supernet {metric} {best.fitness:.3f}, "
        f"{best.macs / 1e6:.1f}M multiply-adds and {best.params / 1e6:.3f}M parameters of the "
        f"searched layers.\n{short_yaml(retrain)}"
    )
