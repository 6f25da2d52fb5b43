"""One optimisation step of a supernet's paths, or of a plain network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Any, TypeVar

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.trainers.distillation import Distillation
from detnas_d2.engine.trainers.gradients import PathGradients, average_gradients
from detnas_d2.engine.trainers.iteration import (
    NORMALIZER,
    iteration_seed,
    loss_normalizers,
    set_loss_normalizers,
    share_loss_normalizers,
)
from detnas_d2.engine.trainers.path_sampling import PathSampler
from detnas_d2.modeling import find_supernet
from detnas_d2.search_space import Path

Losses = dict[str, Tensor]
Forward = Callable[[Any], Losses]
Value = TypeVar("Value")


class PathTrainer(SimpleTrainer):
    """One optimisation step, of the sampled paths if the model holds a supernet.

    Paths with a resolution take a batch of it: where the sampler gives such, the data are dicts of
    batches by resolution.

    Only the paths of the update learn: the other parameters have no gradient (None), so the
    optimizer neither moves them nor their momentum, and weight decay does not touch them.

    Several paths see the same batch, forwards and backwards one after the other: n paths take n
    times the time, and the activations of one. A parameter's gradient is the mean over the paths
    that used it, see :class:`PathGradients`.

    Args:
        model: the model; may be wrapped in DistributedDataParallel if it holds no supernet.
            Otherwise the step averages the gradients over the ranks.
        optimizer: its optimizer.
        path_sampler: the paths of an iteration, or None for a model without supernet.
        distillation: begins the lesson of an update of several paths, in which the first teaches
            the others; None: all learn from the ground truth alone.
        seed: seed of the model's random choices.
        amp: mixed precision; float16 with loss scaling on GPUs, bfloat16 on CPUs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        path_sampler: PathSampler | None,
        distillation: Distillation | None = None,
        seed: int,
        amp: bool = False,
    ) -> None:
        super().__init__(model, (), optimizer)
        self.distillation = distillation
        self.path_sampler, self.seed, self.amp = path_sampler, seed, amp
        self.supernet = find_supernet(model)
        if (self.supernet is None) != (path_sampler is None):
            raise ValueError("a path sampler is needed exactly if the model holds a supernet")
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.device_type = self._parameters[0].device.type
        scale = amp and self.device_type == "cuda"
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=scale)

    def set_data(self, data_loader: Any) -> None:
        """Sets what the next steps train on."""
        self._batches = iter(data_loader)

    @plain_torchscript()
    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._batches)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad(set_to_none=True)
        paths = (None,) if self.path_sampler is None else self.path_sampler(self.iter)
        several = len(paths) > 1
        losses = self._backward_all(data, paths) if several else self._backward(data, paths[0])
        if not isinstance(self.model, DistributedDataParallel):
            average_gradients(self._parameters)
        self._write_metrics(losses, data_time)
        # Before the optimizer does: fused ones would after what clips gradients.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        share_loss_normalizers(self.model)

    def _backward(
        self, data: Any, path: Path | None, index: int = 0, forward: Forward | None = None
    ) -> Losses:
        """Adds the gradients of one path, the ``index``-th of the update; returns its losses."""
        torch.manual_seed(iteration_seed(self.seed, self.iter, comm.get_rank(), index))
        active: AbstractContextManager[None] = nullcontext()
        if self.supernet is not None and path is not None:
            active = self.supernet.active(path)
            data = data if path.resolution is None else data[path.resolution]
        with active:
            dtype = torch.float16 if self.device_type == "cuda" else torch.bfloat16
            with torch.autocast(self.device_type, dtype, enabled=self.amp):
                losses = (forward or self.model)(data)
                total: Any = sum(losses.values())
            self.grad_scaler.scale(total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _backward_all(self, data: Any, paths: Sequence[Path | None]) -> Losses:
        """Gradients of an update of several paths; returns the mean of each loss.

        A loss that only some paths have is averaged over those. Running averages that losses are
        divided by are of images: every path starts from the same ones, an update moves them once.
        """
        forward = self.model if self.distillation is None else self.distillation(self.model)
        gradients = PathGradients(self._parameters)
        before, after, losses = loss_normalizers(self.model), [], []
        for index, path in enumerate(paths):
            set_loss_normalizers(self.model, before)
            losses.append(self._backward(data, path, index, forward))
            after.append(loss_normalizers(self.model))
            gradients.take()
        gradients.give_means()
        set_loss_normalizers(self.model, {name: fmean(v) for name, v in _gathered(after).items()})
        return {name: torch.stack(values).mean() for name, values in _gathered(losses).items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            NORMALIZER: loss_normalizers(self.model),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if NORMALIZER in state_dict:
            set_loss_normalizers(self.model, state_dict[NORMALIZER])


def _gathered(dicts: Iterable[Mapping[str, Value]]) -> dict[str, list[Value]]:
    """Key -> its values in the dicts that have it, in the order of the first appearances."""
    found: dict[str, list[Value]] = {}
    for values in dicts:
        for key, value in values.items():
            found.setdefault(key, []).append(value)
    return found
