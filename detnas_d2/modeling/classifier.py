"""Image classification over the same backbones, for pre-training (DetNAS section 3.1, step 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """Backbone, channel dropout, average pool, linear layer.

    Inputs are a list of dicts with "image" (3, H, W), all of one size, values 0 to 255, and in
    training "label" (int). Training returns {"loss_cls": scalar}; inference a list of
    {"scores": (num_classes,)}, probabilities.

    Args:
        backbone: a backbone whose feature ``in_feature`` is classified.
        num_classes: number of classes.
        pixel_mean, pixel_std: per channel, in input units.
        dropout: probability of dropping a channel.
        label_smoothing: see ``torch.nn.functional.cross_entropy``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        in_feature: str = "last",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        shapes = backbone.output_shape()
        if in_feature not in shapes:
            raise ValueError(
                f"the classifier needs feature {in_feature!r}, the backbone gives "
                f"{', '.join(shapes)}: set MODEL.CLASSIFIER.IN_FEATURE, or for 'last' "
                "MODEL.DETNAS.LAST_CONV True and OUT_FEATURES ['last']"
            )
        self.backbone = backbone
        self.in_feature = in_feature
        self.dropout = nn.Dropout2d(dropout)
        self.linear = nn.Linear(shapes[in_feature].channels, num_classes)
        self.label_smoothing = label_smoothing
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        nn.init.normal_(self.linear.weight, 0, 0.01)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.CLASSIFIER.NUM_CLASSES,
            "in_feature": cfg.MODEL.CLASSIFIER.IN_FEATURE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "dropout": cfg.MODEL.CLASSIFIER.DROPOUT,
            "label_smoothing": cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict]) -> Tensor:
        """Normalised images (N, 3, H, W)."""
        images = as_batch([x["image"] for x in batched_inputs]).to(self.device)
        return (images.float() - self.pixel_mean) / self.pixel_std

    def logits(self, images: Tensor) -> Tensor:
        """Class scores (N, num_classes) before softmax of normalised images (N, 3, H, W)."""
        features = self.dropout(self.backbone(images)[self.in_feature])
        return self.linear(features.mean((2, 3)))

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        logits = self.logits(self.preprocess_image(batched_inputs))
        if not self.training:
            return [{"scores": scores} for scores in logits.softmax(dim=1)]
        return self.losses(logits, batched_inputs)

    def losses(self, logits: Tensor, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """The training loss of class scores (N, num_classes) before softmax."""
        labels = torch.tensor([x["label"] for x in batched_inputs], device=logits.device)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss_cls": loss}


def as_batch(images: list[Tensor]) -> Tensor:
    """``torch.stack(images)``, without a copy where they are the rows of one tensor in order."""
    if torch.jit.is_tracing():  # which would take the addresses of these images for constants
        return torch.stack(images)
    first = images[0]
    size, start = first.numel(), first.storage_offset()
    storage = first.untyped_storage().data_ptr()
    rows = all(
        image.is_contiguous()
        and image.shape == first.shape
        and image.dtype == first.dtype
        and image.untyped_storage().data_ptr() == storage
        and image.storage_offset() == start + number * size
        for number, image in enumerate(images)
    )
    if not rows or not size:
        return torch.stack(images)
    return first.as_strided((len(images), *first.shape), (size, *first.stride()))
