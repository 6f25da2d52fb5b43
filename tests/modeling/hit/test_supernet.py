"""Single paths through a Hit-Detector with the tools made for DetNAS."""

import random

import pytest
import torch
from detectron2.utils.events import EventStorage

from detnas_d2.config.tools import load_config
from detnas_d2.engine.trainers.path_sampling import UniformPathSampler
from detnas_d2.engine.trainers.path_step import PathTrainer
from detnas_d2.evaluation.recalibration import recalibrate
from detnas_d2.modeling import activate, find_supernet
from detnas_d2.modeling.hit import ChoiceLayers, HitSupernet
from detnas_d2.modeling.searchable_layers import operation_builder
from detnas_d2.search import Evolution, EvolutionSettings
from detnas_d2.search_space import PathError
from detnas_d2.search_space.hit_network import get_hit_network
from detnas_d2.search_space.hit_space import HitSpace

OPS = (("backbone", ("skip", "sep_k3_d1")), ("head", ("skip", "conv_k1", "ir_k3_e1_d1")))
NETWORK = get_hit_network("hit_tiny_half")
SPACE = HitSpace.of_network(NETWORK, OPS)


class Detector(torch.nn.Module):
    """Backbone and head layers of a detector, joined by a 1x1 convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = self._part("backbone")
        self.join = torch.nn.Conv2d(64, 32, 1)
        self.head = self._part("head")

    def _part(self, name):
        build = operation_builder(name, torch.nn.BatchNorm2d)
        return ChoiceLayers(name, NETWORK.layers(name, dict(OPS)[name]), build, network=NETWORK)

    def forward(self, data):
        x = torch.stack([d["image"] for d in data])
        for i in range(len(self.backbone)):
            x = self.backbone(i, x)
        x = self.join(x)
        for i in range(len(self.head)):
            x = self.head(i, x)
        return {"loss": x.square().mean()}


def data(count):
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        yield [{"image": image} for image in torch.randn(2, 8, 32, 32, generator=generator)]


def test_space_of_several_parts():
    assert SPACE.cardinalities == (2, 2, 2, 2, 3, 3)
    assert SPACE.stage_depths == (1, 1, 1, 1, 2)
    path = SPACE.path("skip / sep_k3_d1 / 1 / skip / conv_k1 ir_k3_e1_d1")
    assert path.choices == (0, 1, 1, 0, 1, 2)
    assert SPACE.path(str(path)) == path
    assert SPACE.split(path) == {"backbone": (0, 1, 1, 0), "head": (1, 2)}
    assert str(SPACE.genotype(path)).endswith("skip; head: conv_k1 ir_k3_e1_d1")
    assert SPACE.cost_table((64, 64), 5).cost(path).macs > 0
    with pytest.raises(PathError, match="layer 0"):
        SPACE.path("conv_k1 / skip / skip / skip / skip skip")
    with pytest.raises(ValueError, match="in this order"):
        HitSpace.of_network(NETWORK, OPS[::-1])


def test_only_the_active_path_learns():
    model = Detector()
    supernet = find_supernet(model)
    assert isinstance(supernet, HitSupernet) and supernet.space == SPACE
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    sampler = UniformPathSampler(SPACE, 0)
    step = PathTrainer(model, optimizer, path_sampler=sampler, seed=0)
    step.set_data(data(9))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with EventStorage():
        step.iter = 0
        step.run_step()
    ops = SPACE.split(*sampler(0))
    for name, p in model.named_parameters():
        if ".candidates." not in name:
            continue
        part, _, index, _, op = name.split(".")[:5]
        chosen = dict(OPS)[part][ops[part][int(index)]] == op
        assert torch.equal(p, before[name]) != chosen or p.grad is not None and not p.grad.any()


def test_recalibration_and_evolution_run_on_it():
    model = Detector()
    settings = EvolutionSettings.preset("paper", population=4, generations=2, parents=2)
    searcher = Evolution(SPACE.cardinalities, settings, seed=0)
    while not searcher.done:
        for choices in searcher.ask():
            path = SPACE.path(choices)
            with activate(model, path):
                statistics = recalibrate(model, list(enumerate(data(2))), seed=0)
            assert all("candidates" in name for name in statistics.moments)
            searcher.tell(choices, float(len(statistics.moments)))
    assert searcher.best[1] > 0


def test_without_a_path_it_raises():
    with pytest.raises(RuntimeError, match="no path is active"):
        Detector()(next(data(1)))
    other = HitSpace.of_network(NETWORK, OPS[:1]).random_path(random.Random(0))
    with pytest.raises(ValueError, match="hit_tiny_half:backbone'"), activate(Detector(), other):
        pass


def test_config_builds_a_sampled_detector():
    from detectron2.modeling import build_model

    cfg = load_config("")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = "build_hit_backbone"
    cfg.MODEL.CLASSIFIER.IN_FEATURE = "stage4"
    cfg.MODEL.HIT.NETWORK = "hit_tiny"
    cfg.MODEL.HIT.SEARCHABLE_PARTS = ["backbone"]
    cfg.MODEL.HIT.STRATEGY = "sampling"
    model = build_model(cfg).eval()
    path = find_supernet(model).space.uniform_path("ir_k3_e3_d1")
    with activate(model, path), torch.no_grad():
        scores = model([{"image": torch.zeros(3, 64, 64)}])[0]["scores"]
    assert scores.shape == (1000,)
