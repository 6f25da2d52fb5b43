"""In-place distillation (BigNAS, arXiv 2003.11142): an update's first path teaches the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from detnas_d2.modeling.classifier import ImageClassifier
from detnas_d2.utils.errors import InputError

LOSS = "loss_distill"
"""Name of the loss that pulls a path towards the first one."""


class Lesson(ABC):
    """The forward passes of one update, called as the model is; the first one's path teaches.

    It learns from the ground truth; its outputs, without gradient, are kept until the update ends.

    Args:
        model: the model whose active path changes from call to call.
        weight: of the loss that the others learn from its outputs by.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        self.model: Any = model
        self.weight = weight
        self._taught = False

    def __call__(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses = self.learn(data) if self._taught else self.teach(data)
        self._taught = True
        return losses

    @abstractmethod
    def teach(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses of the teacher, whose outputs are kept."""

    @abstractmethod
    def learn(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses of another path."""


class SoftLabelLesson(Lesson):
    """Of a classifier: the others learn the teacher's probabilities in place of the ground truth.

    As in BigNAS, dropout is the teacher's alone.
    """

    def teach(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        logits = self.model.logits(self.model.preprocess_image(data))
        self._labels = logits.detach().float().softmax(1)
        return self.model.losses(logits, data)

    def learn(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.model.dropout.eval()
        try:
            logits = self.model.logits(self.model.preprocess_image(data))
        finally:
            self.model.dropout.train()
        return {LOSS: self.weight * F.cross_entropy(logits, self._labels)}


class FeatureLesson(Lesson):
    """Of a detector: the others learn the features of the teacher's ``backbone`` besides.

    The loss is the mean over the levels of the mean squared difference, in standard deviations of
    the teacher's level over all elements of all ranks.
    """

    def teach(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses, features = self._forward(data)
        self._features = {name: feature.detach() for name, feature in features.items()}
        self._variances = _variances(self._features)
        return losses

    def learn(self, data: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses, features = self._forward(data)
        differences = [
            F.mse_loss(features[name].float(), feature.float()) / self._variances[name]
            for name, feature in self._features.items()
        ]
        return {**losses, LOSS: self.weight * torch.stack(differences).mean()}

    def _forward(self, data: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with _outputs_of(self.model.backbone) as found:
            losses = self.model(data)
        if len(found) != 1 or not isinstance(found[0], dict):
            raise InputError(
                f"distillation: {type(self.model).__name__} ran its backbone {len(found)} times; "
                "expected once, giving a dict of features (SUPERNET.DISTILL_WEIGHT 0: none)"
            )
        return losses, found[0]


Distillation = Callable[[nn.Module], Lesson]
"""Begins an update's lesson."""


def build_distillation(cfg: CfgNode, model: nn.Module) -> Distillation | None:
    """What a supernet of ``SUPERNET.PATH_SAMPLING`` is trained with besides its own losses.

    Raises:
        InputError: the model has no features to learn from.
    """
    weight = cfg.SUPERNET.DISTILL_WEIGHT
    if cfg.SUPERNET.PATH_SAMPLING != "sandwich" or not weight:
        return None
    if isinstance(model, ImageClassifier):
        return partial(SoftLabelLesson, weight=weight)
    if not isinstance(getattr(model, "backbone", None), nn.Module):
        raise InputError(
            f"SUPERNET.DISTILL_WEIGHT {weight}: {type(model).__name__} has no module `backbone` "
            "whose features could teach; expected 0"
        )
    return partial(FeatureLesson, weight=weight)


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """What the module returns within the block, call by call."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def _variances(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variance of each feature over all its elements on all ranks; 1 where it is 0."""
    wide = torch.float64  # sums of squares of millions of elements; no copy of them is made
    rows = []
    for x in features.values():
        norm = torch.linalg.vector_norm(x, dtype=wide)
        rows.append(torch.stack([norm.new_tensor(x.numel()), x.sum(dtype=wide), norm.square()]))
    sums = torch.stack(rows)
    if comm.get_world_size() > 1:
        dist.all_reduce(sums)
    counts, totals, squares = sums.unbind(1)
    variances = (squares / counts - (totals / counts).square()).clamp(min=0)
    variances = torch.where(variances > 0, variances, torch.ones_like(variances)).float()
    return dict(zip(features, variances, strict=True))
