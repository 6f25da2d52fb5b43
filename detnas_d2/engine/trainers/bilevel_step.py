"""First-order bi-level optimisation of a relaxed detector (Hit-Detector sections 3.2 to 3.4).

Every iteration from ``HIT_SEARCH.ARCH_START_ITER`` on takes two steps: the architecture parameters
on a batch of one half of the training set, then the weights on a batch of the other. First order:
the architecture gradient takes the current weights for the best ones.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.trainers.gradients import average_gradients
from detnas_d2.engine.trainers.iteration import (
    iteration_seed,
    loss_normalizers,
    set_loss_normalizers,
)
from detnas_d2.engine.trainers.path_step import PathTrainer
from detnas_d2.layers.batch_norm_mode import frozen_statistics
from detnas_d2.modeling.searchable_layers import relaxed_parts
from detnas_d2.search.gradient.objective import SPARSITY_TERMS, ExpectedCost
from detnas_d2.search.gradient.screening import Screening
from detnas_d2.utils.errors import InputError

logger = logging.getLogger("detnas_d2.search")


class BilevelStep(PathTrainer):
    """One iteration: architecture parameters first (once they learn), then weights.

    Running statistics (of BatchNorm, RetinaNet's loss normaliser) and Detectron2's metrics belong
    to the weights' step; the architecture step leaves them alone. In mixed precision each step has
    its own loss scale: gradients of architecture parameters, sums over whole feature maps, overflow
    at other scales than those of weights.

    Args:
        model: a model with relaxed parts; not wrapped.
        optimizer: of the weights.
        arch_optimizer: of the architecture parameters.
        arch_start: iteration from which they learn; negative: never.
        cost: C(alpha, beta, gamma).
        cost_weight: lambda of eq. 6, per 1e9 multiply-adds.
        sparsity: mu of eq. 4 and its term, a name in SPARSITY_TERMS; used when screening.
        screening: what removes operations, or None.
        record_period: iterations between two records of the scores.
        seed, amp: see :class:`PathTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        arch_optimizer: torch.optim.Optimizer,
        arch_start: int,
        cost: ExpectedCost,
        cost_weight: float,
        sparsity: tuple[float, str],
        screening: Screening | None,
        record_period: int,
        seed: int,
        amp: bool = False,
    ) -> None:
        super().__init__(model, optimizer, path_sampler=None, seed=seed, amp=amp)
        self.arch_optimizer, self.arch_start = arch_optimizer, arch_start
        self.cost, self.cost_weight = cost, cost_weight
        self.mu, self.sparsity = sparsity[0], SPARSITY_TERMS[sparsity[1]]
        self.screening, self.record_period = screening, record_period
        self.parts = relaxed_parts(model)
        self._arch = [layers.alpha for layers in self.parts.values()]
        own = {id(p) for p in self._arch}
        self._weights = [p for p in self._parameters if id(p) not in own]
        # What average_gradients sees in the weights' step.
        self._parameters = self._weights
        self._arch_iter: Any = None
        scale = self.grad_scaler.is_enabled()
        self.arch_grad_scaler = torch.amp.GradScaler("cuda", enabled=scale)

    def learns_architecture(self, iteration: int) -> bool:
        return 0 <= self.arch_start <= iteration

    def set_arch_data(self, data_loader: Any) -> None:
        """Sets what the architecture parameters learn from."""
        self._arch_iter = iter(data_loader)

    @plain_torchscript()
    def run_step(self) -> None:
        if self.screening is not None:
            self._screen(self.screening)
        if self.learns_architecture(self.iter):
            self._arch_step()
        self._set_trainable(weights=True)
        super().run_step()
        self._set_trainable(weights=True, architecture=True)
        self._write_architecture()

    def _set_trainable(self, *, weights: bool = False, architecture: bool = False) -> None:
        for p in self._weights:
            p.requires_grad_(weights)
        for p in self._arch:
            p.requires_grad_(architecture)

    def _arch_step(self) -> None:
        start = time.perf_counter()
        data = next(self._arch_iter)
        waited = time.perf_counter() - start
        torch.manual_seed(iteration_seed(self.seed + 1, self.iter, comm.get_rank()))
        self._set_trainable(architecture=True)
        self.arch_optimizer.zero_grad(set_to_none=True)
        dtype = torch.float16 if self.device_type == "cuda" else torch.bfloat16
        normalizers = loss_normalizers(self.model)
        # Scores that the model notes about this batch go to a storage that nobody reads.
        with frozen_statistics(self.model), EventStorage(self.iter):
            with torch.autocast(self.device_type, dtype, enabled=self.amp):
                loss = sum(self.model(data).values())
            # Backward inside the context: recomputed candidates must not move statistics either.
            self.arch_grad_scaler.scale(loss).backward()
        set_loss_normalizers(self.model, normalizers)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"architecture loss {value} at iteration {self.iter}")
        self._update_architecture()
        get_event_storage().put_scalar("arch/data_time", waited)
        get_event_storage().put_scalar("arch/loss", value)

    def _update_architecture(self) -> None:
        average_gradients(self._arch)
        self.arch_grad_scaler.unscale_(self.arch_optimizer)
        # The terms on the parameters alone are the same on every rank and unscaled: added last.
        self.regularizer().backward()
        gradients = [p.grad for p in self._arch if p.grad is not None]
        finite = all(torch.isfinite(gradient).all() for gradient in gradients)
        if not finite and not self.arch_grad_scaler.is_enabled():
            raise FloatingPointError(f"architecture gradient not finite at iteration {self.iter}")
        # With loss scaling an overflow is ordinary: the step is skipped and the scale lowered.
        self.arch_grad_scaler.step(self.arch_optimizer)
        self.arch_grad_scaler.update()

    def regularizer(self) -> torch.Tensor:
        """lambda * C (eq. 6), and mu * column sparsity (eq. 4) while screening."""
        total = self.cost_weight * self.cost()
        if self.screening is not None and self.mu:
            total = total + self.mu * self.sparsity(self.screening.layers.probabilities())
        return total

    def _screen(self, screening: Screening) -> None:
        if self.iter % self.record_period == 0:
            screening.record(self.iter)
        removed = screening.remove(self.iter)
        if removed:
            left = len(screening.layers.active)
            logger.info("Removed %s; %d operations left.", ", ".join(removed), left)

    def _write_architecture(self) -> None:
        # Reading values synchronises a GPU; writers show them every 20 iterations at most.
        if self.iter % 20:
            return
        with torch.no_grad():
            values = {f"arch/entropy_{n}": layers.entropy() for n, layers in self.parts.items()}
            values["arch/expected_gmacs"] = self.cost()
        for name, value in values.items():
            # No noise to smooth away: a median of the last 20 values would be 200 iterations late.
            get_event_storage().put_scalar(name, float(value), smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        state = {
            **super().state_dict(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "arch_grad_scaler": self.arch_grad_scaler.state_dict(),
            "candidates": self._candidates,
        }
        if self.screening is not None:
            state["screening"] = self.screening.state_dict()
        return state

    @property
    def _candidates(self) -> dict[str, list[str]]:
        return {name: list(layers.ops) for name, layers in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of both optimizers.

        Raises:
            ValueError: the state is of a search over other operations.
        """
        if state_dict["candidates"] != self._candidates:
            raise InputError(
                f"the checkpoint is of a search over {state_dict['candidates']}, the config "
                f"(MODEL.HIT.OPS, MODEL.HIT.SEARCHABLE_PARTS) over {self._candidates}: resume with "
                "its own config, or start in another OUTPUT_DIR"
            )
        super().load_state_dict(state_dict)
        self.arch_optimizer.load_state_dict(state_dict["arch_optimizer"])
        self.arch_grad_scaler.load_state_dict(state_dict["arch_grad_scaler"])
        if self.screening is not None:
            self.screening.load_state_dict(state_dict["screening"])
