"""Small runs of the gradient search: a toy's steps, and configs of whole detectors on scenes."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from detnas_d2.config.tools import load_config
from detnas_d2.data import register_datasets
from detnas_d2.engine.trainers.bilevel_step import BilevelStep
from detnas_d2.layers import get_norm
from detnas_d2.modeling.hit import RelaxedLayers, relaxed_parts
from detnas_d2.modeling.searchable_layers import operation_builder
from detnas_d2.search.gradient.objective import ExpectedCost
from detnas_d2.search_space.hit_network import get_hit_network

DEMO = Path(__file__).parents[2] / "configs" / "HitDetector" / "demo"
OPS = ["skip", "sep_k3_d1", "conv_k1"]


def scene_config(root: Path, name: str, output: str, *opts: object) -> CfgNode:
    """A config of the demo on twelve small scenes for four iterations; its data registered."""
    cfg = load_config(str(DEMO / name))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.HIT.NETWORK = "hit_tiny_half"
    for part in ("BACKBONE", "NECK", "HEAD"):
        cfg.MODEL.HIT.OPS[part] = OPS
    cfg.DATASETS.DIGITS.SCENE_SIZE = 64
    cfg.DATASETS.DIGITS.NUM_TRAIN = 12
    cfg.DATASETS.DIGITS.NUM_TEST = 4
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.MAX_ITER = 4
    cfg.HIT_SEARCH.ARCH_START_ITER = 1
    cfg.OUTPUT_DIR = str(root / output)
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    register_datasets(cfg)
    torch.manual_seed(0)  # as Detectron2's default_setup does
    return cfg


class Toy(nn.Module):
    """A relaxed head on images (N, 32, 5, 5); loss: mean square of its output."""

    def __init__(self, norm):
        super().__init__()
        network = get_hit_network("hit_tiny")
        build = operation_builder("head", lambda c: get_norm(norm, c))
        self.layers = RelaxedLayers("head", network.head_layer_specs(tuple(OPS)), build)

    def forward(self, data):
        y = torch.stack([d["image"] for d in data])
        for i in range(len(self.layers)):
            y = self.layers(i, y)
        target = torch.stack([d["target"] for d in data])
        return {"loss": (y - target).square().mean()}


def toy_data(seed, batch, rank=0, world=1):
    generator = torch.Generator().manual_seed(seed)
    share = batch // world
    while True:
        x, y = torch.randn(2, batch, 32, 5, 5, generator=generator)
        samples = [{"image": a, "target": b} for a, b in zip(x, y, strict=True)]
        yield samples[rank * share : (rank + 1) * share]


def toy_step(norm="BN", arch_start=0, rank=0, world=1, **options):
    torch.manual_seed(0)
    model = Toy(norm)
    alpha = [layers.alpha for layers in relaxed_parts(model).values()]
    weights = [p for p in model.parameters() if p is not alpha[0]]
    step = BilevelStep(
        model,
        torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-4),
        arch_optimizer=torch.optim.Adam(alpha, lr=0.05),
        arch_start=arch_start,
        cost=ExpectedCost(relaxed_parts(model), input_size=(64, 64), proposals=4),
        cost_weight=options.get("cost_weight", 0.1),
        sparsity=(0.0, "sparse"),
        screening=None,
        record_period=20,
        seed=0,
    )
    step.set_data(toy_data(1, 8, rank, world))
    step.set_arch_data(toy_data(2, 8, rank, world))
    return step


def run(step, iterations):
    with EventStorage():
        for step.iter in iterations:
            step.run_step()
    return {name: value.clone() for name, value in step.model.state_dict().items()}
