"""Images for pre-training a network as a classifier."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from detnas_d2.data.checks.image_check import depth_problem
from detnas_d2.data.loaders.user_images import UnreadableImage
from detnas_d2.utils.compat import apply_exif_orientation


class ClassificationMapper:
    """Turns {"file_name" or "image", "label", ...} into {"image", "label", ...}.

    The input's "image" is uint8[H, W, 3] BGR. The output's is a uint8 tensor [C, crop, crop] in
    INPUT.FORMAT, 0-255. In training: random resized crop, colour jitter, mirroring, drawn from
    torch's global generator; else the center of the resized image. Nothing is normalised: that is
    the model's part.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        image_format: str,
        crop_size: int,
        resize_size: int,
        min_scale: float,
        color_jitter: float,
        hflip: bool,
    ) -> None:
        if resize_size < crop_size:
            raise ValueError(
                f"INPUT.CLASSIFICATION.RESIZE_SIZE ({resize_size}) must not be smaller than "
                f"CROP_SIZE ({crop_size})"
            )
        self.is_train = is_train
        self.image_format = image_format
        steps: list[Any] = []
        if is_train:
            steps.append(T.RandomResizedCrop(crop_size, scale=(min_scale, 1.0)))
            if color_jitter:
                steps.append(T.ColorJitter(color_jitter, color_jitter, color_jitter))
            if hflip:
                steps.append(T.RandomHorizontalFlip())
        else:
            steps.append(T.Resize(resize_size, InterpolationMode.BILINEAR))
            steps.append(T.CenterCrop(crop_size))
        self.transform = T.Compose(steps)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        settings = cfg.INPUT.CLASSIFICATION
        return {
            "is_train": is_train,
            "image_format": cfg.INPUT.FORMAT,
            "crop_size": settings.CROP_SIZE,
            "resize_size": settings.RESIZE_SIZE,
            "min_scale": settings.MIN_SCALE,
            "color_jitter": settings.COLOR_JITTER,
            "hflip": settings.HFLIP,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        result = copy.copy(dataset_dict)
        if "image" in result:
            image = Image.fromarray(np.ascontiguousarray(result["image"][..., ::-1]))
        else:
            image = read_rgb(result["file_name"])
        result["image"] = to_tensor(self.transform(image), self.image_format)
        result["label"] = int(result["label"])
        return result


def to_tensor(image: Image.Image, image_format: str) -> torch.Tensor:
    """uint8 tensor [C, H, W] of an RGB image in ``image_format``."""
    array = convert_PIL_to_numpy(image, image_format)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def read_rgb(file: str) -> Image.Image:
    """The pixels of Detectron2's ``read_image(file, "RGB")``, without its copies of them.

    Raises:
        UnreadableImage: they have more than 8 bits.
    """
    with PathManager.open(file, "rb") as stream:
        image = Image.open(stream)
        problem = depth_problem(image)
        if problem:
            raise UnreadableImage(f"{file}: {problem}")
        image = apply_exif_orientation(image)
        if image.mode != "RGB":
            return image.convert("RGB")
        image.load()
        return image


def rows_of_one_tensor(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collates samples with images of one size: these become the rows of one tensor.

    A worker then passes one piece of shared memory to the training process instead of one for each
    image; receiving it takes a small part of the time.
    """
    batch = default_collate([sample["image"] for sample in samples])
    return [{**sample, "image": row} for sample, row in zip(samples, batch, strict=True)]
