"""Top-1 and top-5 accuracy over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm


class ClassificationEvaluator(DatasetEvaluator):
    """Gives {"classification": {"top1": percent, "top5": percent}}.

    Inputs hold "label", outputs "scores", Tensor[classes]. Scores that are not finite count as a
    miss. With ``distributed`` the result covers the images of all ranks and every rank gets it.
    """

    def __init__(self, distributed: bool = True) -> None:
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._images = 0
        self._hits = {1: 0, 5: 0}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            scores = output["scores"].detach().flatten()
            label = sample["label"]
            if not 0 <= label < len(scores):
                raise ValueError(f"label {label} has no score: the model gives {len(scores)}")
            self._images += 1
            if not torch.isfinite(scores).all():
                continue
            best = scores.topk(min(5, len(scores))).indices.tolist()
            for k in self._hits:
                self._hits[k] += label in best[:k]

    @property
    def counts(self) -> tuple[int, int, int]:
        """This process's images, and those whose label is the best or among the best five."""
        return self._images, self._hits[1], self._hits[5]

    def evaluate(self) -> dict[str, dict[str, float]]:
        counts = comm.all_gather(self.counts) if self._distributed else [self.counts]
        return accuracy(*(sum(column) for column in zip(*counts, strict=True)))


def accuracy(images: int, top1: int, top5: int) -> dict[str, dict[str, float]]:
    """The results of :class:`ClassificationEvaluator` from its counts."""
    if not images:
        raise ValueError("ClassificationEvaluator: no image was processed")
    return {"classification": {"top1": 100 * top1 / images, "top5": 100 * top5 / images}}
