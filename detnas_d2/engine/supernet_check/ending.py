"""End of a supernet's training: its scores, chance and one path alone, and the verdict."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from detectron2.utils import comm

from detnas_d2.engine.supernet_check.hook import RESULT_FILE, SupernetCheck
from detnas_d2.engine.supernet_check.plan import equal_updates
from detnas_d2.engine.supernet_check.record import (
    failure_text,
    make_record,
    numbers_of,
    read_record,
    text_of,
)
from detnas_d2.engine.supernet_check.standalone import train_alone
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.evaluation.prefix_statistics import weights_digest
from detnas_d2.evaluation.ranks import Ranks
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_json

logger = logging.getLogger("detnas_d2.supernet")


class SupernetAtChance(InputError):
    """A supernet whose fixed paths score no better than chance."""


def conclude(trainer: Trainer) -> dict[str, dict[str, float]] | None:
    """Writes ``supernet.json`` about a training that is finished, and tells what is in it.

    A file about the same weights, paths and data is taken as it is. Collective.

    Returns:
        {"supernet": {name: number}} for a pipeline's records; None if the supernet is not checked.

    Raises:
        SupernetAtChance: unless ``SUPERNET.CHECK.REQUIRED`` is False. All files are written.
    """
    hook = next((hook for hook in trainer._hooks if isinstance(hook, SupernetCheck)), None)
    sampler = trainer.step.path_sampler
    if hook is None or sampler is None:
        return None
    folder, cfg = trainer.cfg.OUTPUT_DIR, trainer.cfg
    updates = equal_updates(cfg, hook.space, len(sampler(0)))
    key = {"plan": hook.plan.key, "updates": updates, "weights": weights_digest(trainer.model)}
    record = Ranks().from_main(_known(folder, key) if comm.is_main_process() else None)
    if record is None:
        if not hook.initial:  # finished before, perhaps without a check
            hook.measure_start(begins=False)
        final = hook.final or hook.score(hook.plan.whole)
        alone = train_alone(cfg, hook.plan, updates) if updates else None
        record = make_record(hook, final, alone, updates) | {"key": key}
        if comm.is_main_process():
            write_json(os.path.join(folder, RESULT_FILE), record, indent=1)
        comm.synchronize()
    logger.info("%s", text_of(record))
    if not record["learned"]:
        if cfg.SUPERNET.CHECK.REQUIRED:
            raise SupernetAtChance(failure_text(folder, record))
        logger.warning("%s", failure_text(folder, record))
    return {"supernet": numbers_of(record)}


def _known(folder: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record in a folder if it is about what ``key`` names."""
    record = read_record(folder)
    return record if record is not None and record["key"] == key else None
