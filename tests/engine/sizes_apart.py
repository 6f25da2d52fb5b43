"""Updates of a supernet at several sizes of images, two ways."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from detnas_d2.config.resolutions import at_resolution
from detnas_d2.data import build_train_loader
from detnas_d2.data.loaders.resized import Resizing
from detnas_d2.engine import Trainer
from detnas_d2.engine.trainers.path_sampling import ResolutionSampler


def updated_both_ways(
    cfg: CfgNode, sizes: Sequence[int], updates: int
) -> tuple[list[dict[str, Any]], ResolutionSampler]:
    """What a model holds after ``updates``: with one loader that resizes, and the slow way, each
    path's batch out of the loader of a config at its resolution.
    """
    states = []
    for slow in (False, True):
        torch.manual_seed(0)
        model = build_model(cfg)
        step = Trainer.build_step(cfg, model, Trainer.build_optimizer(cfg, model))
        sampler = step.path_sampler
        assert isinstance(sampler, ResolutionSampler)
        if slow:
            loaders = {s: build_train_loader(at_resolution(cfg, s), start_iter=0) for s in sizes}
            plain = {size: list(islice(loader, updates)) for size, loader in loaders.items()}
            step.set_data({s: plain[s][number] for s in sizes} for number in range(updates))
        else:
            resizing = Resizing({s: at_resolution(cfg, s) for s in sizes}, sampler.sizes)
            step.set_data(build_train_loader(cfg, start_iter=0, resizing=resizing))
        with EventStorage(0) as storage:
            for iteration in range(updates):
                step.iter = storage.iter = iteration
                step.run_step()
        states.append(model.state_dict())
    return states, sampler
