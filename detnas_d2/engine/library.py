"""Training and search of a model that is there, whatever made it: a LazyConfig, or your own code.

A model holds a supernet anywhere, e.g. ``LazyCall(supernet_backbone)(space="detnas_small", ...)``
as the ``bottom_up`` of Detectron2's FPN. See projects/DetNAS/README.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter
from torch import nn

from detnas_d2.config.tools import base_config
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.evolution_search import search_candidates
from detnas_d2.engine.proposals import Proposals
from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.trainers.distillation import Distillation
from detnas_d2.engine.trainers.gradients import broadcast
from detnas_d2.engine.trainers.path_sampling import PathSampler, UniformPathSampler
from detnas_d2.engine.trainers.path_step import PathTrainer
from detnas_d2.engine.trainers.trainer import refuse_relaxed
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.evaluation.evaluator_scoring import EvaluatorScoring
from detnas_d2.evaluation.graphed_supernet import graphed_calls
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.prefix_statistics import weights_digest
from detnas_d2.layers.batch_norm_mode import in_mode
from detnas_d2.modeling import find_supernet
from detnas_d2.utils.errors import InputError

logger = logging.getLogger("detnas_d2.search")

Batches = Iterable[list[dict[str, Any]]]


@plain_torchscript()
def train_model(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Batches],
    *,
    max_iter: int,
    output_dir: str,
    scheduler: Any = None,
    path_sampler: PathSampler | None = None,
    distillation: Distillation | None = None,
    seed: int = 0,
    amp: bool = False,
    checkpoint_period: int = 5000,
    eval_period: int = 0,
    evaluate: Callable[[], Any] | None = None,
    resume: bool = False,
) -> None:
    """Trains ``model`` in place to ``max_iter``; of a supernet, the sampled paths of an iteration.

    Writes checkpoints, ``metrics.json`` and at the end ``model_final.pth``. With ``resume`` a
    killed training goes on from its last checkpoint, and ends with the same bits if what
    ``batches`` gives depends on the iteration alone.

    Args:
        batches: gives the training batches from an iteration on, e.g. ``lambda start:
            resumable_loader(dicts, mapper, total_batch_size=16, start_iter=start)``.
        scheduler: what Detectron2's ``LRScheduler`` hook takes, e.g. the ``lr_multiplier`` of a
            LazyConfig; None: a constant rate.
        path_sampler: the paths of an iteration; default: one, drawn uniformly.
        distillation: how the first path of an iteration teaches the others, e.g.
            ``partial(FeatureLesson, weight=1.0)``; default: not at all.
        evaluate: called every ``eval_period`` iterations and at the end; returns results.

    Raises:
        InputError: the model has relaxed parts.
    """
    refuse_relaxed(model)
    os.makedirs(output_dir, exist_ok=True)
    supernet = find_supernet(model)
    if supernet is not None and path_sampler is None:
        path_sampler = UniformPathSampler(supernet.space, seed)
    step = PathTrainer(
        model,
        optimizer,
        path_sampler=path_sampler,
        distillation=distillation,
        seed=seed,
        amp=amp,
    )
    checkpointer = DetNASCheckpointer(model, output_dir, trainer=step)
    wanted: list[Any] = [hooks.IterationTimer()]
    if scheduler is not None:
        wanted.append(hooks.LRScheduler(optimizer, scheduler))
    if comm.is_main_process():
        wanted.append(hooks.PeriodicCheckpointer(checkpointer, checkpoint_period, max_iter))
    if evaluate is not None:
        wanted.append(hooks.EvalHook(eval_period, evaluate))
    if comm.is_main_process():
        writers = [CommonMetricPrinter(max_iter), JSONWriter(f"{output_dir}/metrics.json")]
        wanted.append(hooks.PeriodicWriter(writers, period=20))
    step.register_hooks(wanted)
    resumes = resume and checkpointer.has_checkpoint()
    checkpointer.resume_or_load("", resume=resume)
    broadcast((*model.parameters(), *model.buffers()))
    start = step.iter + 1 if resumes else 0
    if start >= max_iter:
        checkpointer.save_final(start - 1)
        return
    step.set_data(batches(start))
    step.train(start, max_iter)


@plain_torchscript()
def search_model(
    model: nn.Module,
    *,
    data_loader: Batches,
    calibration: Sequence[list[dict[str, Any]]],
    build_evaluator: Callable[[], DatasetEvaluator],
    metric: str,
    output_dir: str,
    data_key: str = "",
    resume: bool = False,
    **settings: Any,
) -> CandidateRecord:
    """Searches the best path of the supernet in ``model``; returns it. The model is not changed.

    Writes ``history.jsonl``, ``search.json`` and ``generations.json``. A history of other weights,
    settings, metric or ``data_key`` is refused.

    Args:
        data_loader: images that candidates are scored on, the same at every iteration; on several
            ranks each has its share, as of ``build_detection_test_loader``.
        calibration: batches with ground truth, of all ranks, of which BatchNorm statistics are
            made; a sequence, read again for every chunk of candidates.
        build_evaluator: makes a fresh evaluator of Detectron2's interface for one candidate; what
            it reads may be shared between them.
        metric: "task/name" of its results, to be maximised.
        data_key: names the data, e.g. a version, so that a search does not go on over others.
        settings: keys of ``cfg.SEARCH``, e.g. ``POPULATION=50, GENERATIONS=20,
            MAX_MACS=300_000_000``; those that name data or files of a config have no meaning here.

    Raises:
        ValueError: no supernet, no calibration batch, an unknown or wrong setting.
    """
    supernet = find_supernet(model)
    if supernet is None:
        raise InputError(f"{type(model).__name__} holds no supernet to search")
    if not calibration:
        raise InputError("calibration: expected at least one batch")
    cfg = base_config()
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = output_dir, str(next(model.parameters()).device.type)
    for setting, value in settings.items():
        if setting not in cfg.SEARCH or setting in _OF_A_CONFIG:
            known = [name for name in cfg.SEARCH if name not in _OF_A_CONFIG]
            raise InputError(f"settings: {setting!r}, expected some of {', '.join(known)}")
        cfg.SEARCH[setting] = value
    proposals = Proposals.from_config(cfg, supernet.space).measured()
    proposals.check()
    for warning in proposals.warnings():
        logger.warning(warning)
    key = {"metric": metric, "data_key": data_key, "calibration_batches": len(calibration)}
    evaluator = PopulationEvaluator(
        model,
        scoring=EvaluatorScoring(build_evaluator),
        calibration=FixedBatches(calibration),
        data_loader=data_loader,
        metric=metric,
        seed=cfg.SEARCH.CALIBRATION.SEED,
        chunk=cfg.SEARCH.CHUNK,
        graphs=graphed_calls(model, cfg.SEARCH.CUDA_GRAPHS),
    )
    with in_mode(model, training=False):
        return search_candidates(
            proposals,
            lambda: nullcontext(evaluator),
            {"checkpoint_sha256": weights_digest(model), **key},
            resume=resume,
        )


_OF_A_CONFIG = (
    "METRIC",
    "RESOLUTIONS",
    "VAL",
    "CALIBRATION",
    "RETRAIN_CONFIG",
    "SCORING_WORKERS",
    "IMAGE_CACHE_GIB",
)


class FixedBatches:
    """Calibration batches that are given; ranks share them out, see :class:`CalibrationBatches`."""

    def __init__(self, batches: Sequence[list[dict[str, Any]]]) -> None:
        self._batches = batches
        self.batch_ids = tuple(range(comm.get_rank(), len(batches), comm.get_world_size()))

    def __len__(self) -> int:
        return len(self.batch_ids)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return (self._batches[number] for number in self.batch_ids)
