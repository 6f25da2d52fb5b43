"""A score of untrained networks: what any search has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from detnas_d2.data import build_train_loader
from detnas_d2.data.loaders.train import load_training_dicts

IMAGES = 32
"""In a batch; fewer if the training data have fewer."""
_RELUS: tuple[Callable[..., Any], ...] = (
    *(torch.relu, torch.relu_, F.relu, F.relu_),
    *(Tensor.relu, Tensor.relu_),
)


def training_batch(cfg: CfgNode) -> list[dict[str, Any]]:
    """The first images that a training of ``cfg`` with SEED 0 sees, :data:`IMAGES` at most."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = min(IMAGES, len(load_training_dicts(cfg, cfg.DATASETS.TRAIN)))
    return next(iter(build_train_loader(cfg, start_iter=0)))


def relu_code_score(cfg: CfgNode, batch: list[dict[str, Any]]) -> float:
    """NASWOT (Mellor et al., arXiv 2006.04647) of the backbone of ``cfg``, initialised with SEED 0.

    The logarithm of the determinant of the kernel of a batch: the number of ReLUs, over all places
    of all maps, that two images switch alike. A network that tells the images apart before it is
    trained has a large one; BatchNorms use the batch's statistics.

    Returns:
        the score; -inf if two images are coded alike.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETNAS.FUSED_OPS = cfg.MODEL.HIT.FUSED_OPS = "off"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build_model(cfg).train()
        return _log_determinant(model, batch)


def _log_determinant(model: nn.Module, batch: list[dict[str, Any]]) -> float:
    images = model.preprocess_image(batch)  # type: ignore[operator]  # of Detectron2's models
    images = images if isinstance(images, Tensor) else images.tensor
    with _ReluCodes(len(images)) as codes:
        model.backbone(images)  # type: ignore[operator]
    return float(torch.linalg.slogdet(codes.kernel).logabsdet)


class _ReluCodes(TorchFunctionMode):
    """Counts, for every pair of images, the outputs of ReLUs that are above 0 in both or neither.

    Attributes:
        kernel: the counts, float64 (N, N).
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.kernel = torch.zeros(images, images, dtype=torch.float64)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _RELUS:
            on = (result > 0).flatten(1).float()
            both, each = on @ on.T, on.sum(dim=1)
            alike = on.shape[1] - each[:, None] - each[None, :] + 2 * both
            self.kernel += alike.double().cpu()
        return result
