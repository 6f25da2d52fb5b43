"""The bi-level step on a toy model and the whole search on small built-in scenes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from detnas_d2.config.tools import load_config
from detnas_d2.data import catalog, register_datasets
from detnas_d2.engine.clipping import build_clipped_optimizer
from detnas_d2.engine.gradient_search import BilevelStep, GradientSearchTrainer
from detnas_d2.engine.hit_search import (
    genotype_cost,
    genotype_of,
    gradient_search,
    hit_train,
    random_genotype,
    screen,
)
from detnas_d2.engine.search import search
from detnas_d2.layers import get_norm
from detnas_d2.modeling import find_supernet
from detnas_d2.modeling.hit import RelaxedLayers, relaxed_parts
from detnas_d2.modeling.hit.layers import operation_builder
from detnas_d2.search.relaxation import ExpectedCost
from detnas_d2.search_space import get_space
from detnas_d2.search_space.hit_network import get_hit_network

DEMO = Path(__file__).parents[2] / "configs" / "HitDetector" / "demo"
OPS = ["skip", "sep_k3_d1", "conv_k1"]


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
        sparsity=0.0,
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


def test_architecture_waits_for_its_iteration_and_is_not_decayed():
    step = toy_step(arch_start=2)
    before = run(step, range(2))
    assert torch.equal(before["layers.alpha"], torch.zeros(2, 3))
    after = run(step, range(2, 3))
    assert after["layers.alpha"].abs().min() > 0
    never = run(toy_step(arch_start=-1), range(3))
    assert torch.equal(never["layers.alpha"], torch.zeros(2, 3))
    assert not torch.equal(never["layers.blocks.0.candidates.conv_k1.conv.weight"],
                           before["layers.blocks.0.candidates.conv_k1.conv.weight"])  # fmt: skip


def test_architecture_step_moves_neither_weights_nor_statistics():
    step = toy_step()
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    step.iter = 0
    with EventStorage():
        step._arch_step()
    changed = {n for n, v in step.model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"layers.alpha"}
    assert all(p.grad is None for p in step._weights)


def test_cost_term_makes_the_search_prefer_cheap_operations():
    cheap = run(toy_step(cost_weight=1e4), range(10))["layers.alpha"]
    assert (cheap.argmax(1) == OPS.index("skip")).all()


def _two_processes(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    state = run(toy_step("SyncBN", rank=rank, world=2), range(3))
    if rank == 0:
        torch.save(state, f"{folder}/state.pth")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(_two_processes, (str(tmp_path),), nprocs=2)
    two = torch.load(tmp_path / "state.pth", weights_only=True)
    one = run(toy_step("SyncBN"), range(3))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_full_model_clipping():
    cfg = load_config("")
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    optimizer = build_clipped_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    moved = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(moved, torch.full((3,), 3**-0.5))


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """A config of small scenes, in a folder of its own."""
    before = dict(DatasetCatalog), dict(MetadataCatalog)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "_ORIGINALS", {})
    monkeypatch.setattr(catalog, "_DECLARED", set())

    def make(name, output, *opts) -> CfgNode:
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
        cfg.OUTPUT_DIR = str(tmp_path / output)
        cfg.merge_from_list(list(opts))
        cfg.freeze()
        register_datasets(cfg)
        torch.manual_seed(0)  # as Detectron2's default_setup does
        return cfg

    yield make
    for registry, content in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        registry.clear()
        registry.update(content)


class Killed(Exception):
    pass


def test_search_resumes_to_the_same_genotype_and_weights(scenes, monkeypatch):
    whole = gradient_search(scenes("search.yaml", "whole"), resume=False)
    cfg = scenes("search.yaml", "killed")
    run_step = BilevelStep.run_step

    def dies(self):
        if self.iter == 3:
            raise Killed
        run_step(self)

    monkeypatch.setattr(BilevelStep, "run_step", dies)
    with pytest.raises(Killed):
        gradient_search(cfg, resume=False)
    monkeypatch.setattr(BilevelStep, "run_step", run_step)
    assert gradient_search(cfg, resume=True) == whole
    states = [
        torch.load(Path("whole").with_name(name) / "model_final.pth", weights_only=True)["model"]
        for name in ("whole", "killed")
    ]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    assert any(v.abs().sum() > 0 for n, v in states[0].items() if n.endswith("alpha"))


def test_search_result_is_a_config_that_trains(scenes):
    genotype = gradient_search(scenes("search.yaml", "search"), resume=False)
    fragment = "search/genotype.yaml"
    best = load_config("search/best.yaml")
    assert genotype_of(best) == genotype and not best.MODEL.HIT.SEARCHED_PARTS
    cfg = scenes("train.yaml", "train").clone()
    cfg.defrost()
    cfg.HIT_SEARCH.ARCH_START_ITER = -1
    cfg.merge_from_file(fragment)
    cfg.MODEL.WEIGHTS = "search/model_final.pth"
    cfg.SOLVER.MAX_ITER = 1
    assert "bbox" in hit_train(cfg, resume=False)


def test_screening_writes_the_sub_space_and_its_history(scenes):
    opts = ("HIT_SEARCH.SCREENING.KEEP", 2, "HIT_SEARCH.SCREENING.REMOVE_START", 2)
    more = ("HIT_SEARCH.SCREENING.REMOVE_END", 4, "HIT_SEARCH.SCREENING.RECORD_PERIOD", 1)
    kept = screen(scenes("screen_neck.yaml", "screen", *opts, *more), resume=False)
    assert len(kept) == 2 and set(kept) < set(OPS)
    cfg = load_config("")
    cfg.merge_from_file("screen/sub_space.yaml")
    assert set(cfg.MODEL.HIT.OPS.NECK) == set(kept)
    report = yaml.safe_load(Path("screen/screening.yaml").read_text())
    assert report["part"] == "neck" and report["iterations"] == [0, 1, 2, 3]
    assert [len(report["scores"][op]) for op in kept] == [4, 4]
    (removed,) = report["removed"]
    assert removed["op"] not in kept and len(report["scores"][removed["op"]]) < 5


def test_choice_blocks_of_detnas_searched_by_gradient(scenes):
    backbone = ("MODEL.BACKBONE.NAME", "build_hit_fpn_backbone", "MODEL.HIT.SEARCHED_PARTS", [])
    bottom_up = ("MODEL.HIT.BOTTOM_UP", "build_detnas_relaxed_backbone")
    space = ("MODEL.DETNAS.SPACE", "detnas_tiny", "MODEL.FPN.OUT_CHANNELS", 32)
    head = ("MODEL.HIT.GENOTYPE.HEAD", "skip skip")
    cfg = scenes("search.yaml", "detnas", *backbone, *bottom_up, *space, *head)
    gradient_search(cfg, resume=False)
    best = load_config("detnas/best.yaml")
    path = get_space("detnas_tiny").path(best.MODEL.DETNAS.PATH)
    state = torch.load("detnas/model_final.pth", weights_only=True)["model"]
    alpha = state["backbone.bottom_up.blocks.alpha"]
    assert alpha.shape == (len(path), 4) and alpha.abs().sum() > 0
    chosen = alpha[range(len(path)), path.choices]
    torch.testing.assert_close(chosen, alpha.max(1).values)
    assert best.MODEL.HIT.BOTTOM_UP == "build_detnas_backbone"
    model = build_model(best)
    assert not relaxed_parts(model) and find_supernet(model) is None


def test_evolution_over_the_sub_spaces(scenes):
    """The other strategy: single-path training, then DetNAS's search, same entry points."""
    options = ("MODEL.HIT.STRATEGY", "sampling", "HIT_SEARCH.ARCH_START_ITER", -1)
    limits = ("SEARCH.MAX_MACS_INPUT", [64, 64], "SEARCH.POPULATION", 3, "SEARCH.GENERATIONS", 1)
    images = ("SEARCH.CALIBRATION.IMAGES", 2, "SEARCH.CALIBRATION.BATCH_SIZE", 2)
    validation = ("SEARCH.VAL", "digits_scenes_train@search_val")
    more = (*options, *limits, *images, *validation)
    hit_train(scenes("search.yaml", "supernet", *more), resume=False)
    weights = ("MODEL.WEIGHTS", "supernet/model_final.pth")
    best = search(scenes("search.yaml", "evolution", *more, *weights), resume=False)
    assert best.macs > 0
    cfg = load_config("evolution/best.yaml")
    assert not cfg.MODEL.HIT.SEARCHED_PARTS
    text = " / ".join(genotype_of(cfg).part_text(p) for p in ("backbone", "neck", "head"))
    assert text == best.path


def test_errors_come_before_training(scenes):
    with pytest.raises(ValueError, match="ARCH_TRAIN"):
        same = "('digits_scenes_train@search_train',)"
        GradientSearchTrainer(scenes("search.yaml", "a", "HIT_SEARCH.ARCH_TRAIN", same))
    with pytest.raises(ValueError, match="ARCH_START_ITER"):
        gradient_search(scenes("search.yaml", "b", "HIT_SEARCH.ARCH_START_ITER", 4), resume=False)
    with pytest.raises(ValueError, match="SCREENING.ENABLED"):
        screen(scenes("search.yaml", "c"), resume=False)
    with pytest.raises(ValueError, match="one part"):
        screen(scenes("search.yaml", "d", "HIT_SEARCH.SCREENING.ENABLED", True), resume=False)


def test_random_genotype_costs_what_the_reference_does():
    cfg = load_config(str(DEMO / "search.yaml"))
    train = load_config(str(DEMO / "train.yaml"))
    reference = random_genotype(
        cfg,
        0,
        {"backbone": ("skip",) * 8, "neck": ("skip",) * 8, "head": ("ir_k5_e3_d1",) * 2},
        draws=5,
    )
    drawn = [random_genotype(cfg, seed, reference.parts) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    macs = []
    for genotype in (reference, *drawn):
        for part in genotype.parts:
            train.MODEL.HIT.GENOTYPE[part.upper()] = genotype.part_text(part)
        macs.append(genotype_cost(train).macs)
    assert all(abs(m - macs[0]) < 0.02 * macs[0] for m in macs)
