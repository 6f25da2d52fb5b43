"""The bi-level step on a toy model and the whole search on small built-in scenes."""

import argparse
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from detnas_d2.config.tools import load_config
from detnas_d2.data import DatasetError
from detnas_d2.engine.architectures import genotype_cost, genotype_of, random_genotype
from detnas_d2.engine.commands import gradient_search_main, screen_main
from detnas_d2.engine.evolution_search import search
from detnas_d2.engine.gradient_search import (
    gradient_search,
    screen,
)
from detnas_d2.engine.trainers.bilevel_step import BilevelStep
from detnas_d2.engine.trainers.bilevel_trainer import GenotypeProgress, GradientSearchTrainer
from detnas_d2.engine.trainers.optimizer import build_optimizer
from detnas_d2.engine.trainers.progress import Events
from detnas_d2.engine.training import train
from detnas_d2.modeling import find_supernet
from detnas_d2.modeling.hit import relaxed_parts
from detnas_d2.search_space import space_of
from tests.engine.hit_runs import DEMO, OPS, run, scene_config, toy_data, toy_step
from tests.engine.new_process import resumed
from tests.helpers import scalars_in
from tests.modeling.hit.test_detector import config


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


def test_lambda_counts_in_its_unit():
    cfg = config(("head",))
    cfg.HIT_SEARCH.COST_UNIT = 5e7
    model = build_model(cfg)
    optimizer = GradientSearchTrainer.build_optimizer(cfg, model)
    step = GradientSearchTrainer.build_step(cfg, model, optimizer)
    with torch.no_grad():
        gmacs = float(step.cost())
    # The paper's lambda, 0.01.
    assert step.cost_weight * gmacs == pytest.approx(0.01 * (gmacs * 1e9) / 5e7)


def test_metrics_show_the_present_architecture(tmp_path):
    step, events, costs = toy_step(cost_weight=1e4), Events(str(tmp_path), lambda: 0), {}
    with EventStorage() as storage:
        for step.iter in range(41):
            storage.iter = step.iter
            step.run_step()
            if step.iter % 20 == 0:
                costs[step.iter] = step.cost().item()
                events.write()
    events.close()
    shown = storage.latest_with_smoothing_hint(20)
    (layers,) = step.parts.values()
    now = {"entropy_head": layers.entropy(), "expected_gmacs": step.cost()}
    for name, value in now.items():
        assert shown[f"arch/{name}"][0] == pytest.approx(value.item(), rel=1e-6)
    found = scalars_in(tmp_path)
    assert dict(found["arch/expected_gmacs"]) == pytest.approx(costs, rel=1e-6)
    assert [iteration for iteration, _ in found["arch/entropy_head"]] == [0, 20, 40]


def test_architecture_step_leaves_metrics_and_loss_normalizer_to_the_weights():
    """Both are running values over the weights' half of the data."""
    step = toy_step()
    forward = step.model.forward

    def noting(data):
        get_event_storage().put_scalar("noted", 1.0)
        step.model.loss_normalizer = 0.9 * step.model.loss_normalizer + 1
        return forward(data)

    step.model.forward, step.model.loss_normalizer = noting, 100.0
    step.model.layers.loss_normalizer = "visible"  # as Detectron2's keypoint head
    step.iter = 0
    with EventStorage() as storage:
        step._arch_step()
        assert "arch/loss" in storage.latest() and "noted" not in storage.latest()
        assert step.state_dict()["loss_normalizer"] == {"": 100.0}
        step.run_step()
        assert len(storage.history("noted").values()) == 1
    assert step.model.loss_normalizer == 91


def test_overflow_of_the_architecture_gradient_lowers_its_own_loss_scale():
    step = toy_step()
    step.arch_grad_scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**127, backoff_factor=2.0**-40
    )
    far = [{"image": d["image"], "target": 1e6 * d["target"]} for d in next(toy_data(2, 8))]
    step.set_arch_data([far] * 8)
    first = run(step, range(1))["layers.alpha"]
    assert torch.equal(first, torch.zeros(2, 3))
    scaled = run(step, range(1, 8))["layers.alpha"]
    assert step.arch_grad_scaler.get_scale() < 2.0**127
    assert scaled.abs().min() > 0.03
    other = toy_step()
    other.arch_grad_scaler = torch.amp.GradScaler("cpu")
    other.load_state_dict(step.state_dict())
    assert other.arch_grad_scaler.get_scale() == step.arch_grad_scaler.get_scale()


def test_architecture_loss_that_is_not_finite_stops_the_search():
    step = toy_step()
    step.set_arch_data([[{"image": torch.zeros(32, 5, 5), "target": torch.tensor(torch.inf)}]])
    step.iter = 3
    with EventStorage(), pytest.raises(FloatingPointError, match="architecture loss inf .* 3"):
        step._arch_step()


def test_full_model_clipping():
    cfg = load_config("")
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    optimizer = build_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    moved = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(moved, torch.full((3,), 3**-0.5))


@pytest.fixture
def scenes(tmp_path):
    """Makes configs of small scenes, in a folder of the test's own."""
    return partial(scene_config, tmp_path)


def test_search_result_is_a_config_that_trains(scenes, caplog):
    tested = ("DATASETS.TEST", ("digits_scenes_train",), "SOLVER.MAX_ITER", 2)
    with caplog.at_level("WARNING", "detnas_d2.search"):
        cfg = scenes("search.yaml", "search", *tested)
        genotype = gradient_search(cfg, resume=False)
    assert "images of 'digits_scenes_train', the test set" in caplog.text
    fragment = "search/genotype.yaml"
    best = load_config("search/best.yaml")
    assert genotype_of(best) == genotype and not best.MODEL.HIT.SEARCHABLE_PARTS
    # The genotype brings its frame along: another one may have the same depths.
    assert yaml.safe_load(Path(fragment).read_text())["MODEL"]["HIT"]["NETWORK"] == "hit_tiny_half"
    cfg = scenes("train.yaml", "train").clone()
    cfg.defrost()
    cfg.HIT_SEARCH.ARCH_START_ITER = -1
    cfg.merge_from_file(fragment)
    cfg.MODEL.WEIGHTS = "search/model_final.pth"
    cfg.SOLVER.MAX_ITER = 1
    assert "bbox" in train(cfg, resume=False)


def test_one_stage_detector_is_searched_and_trained(scenes):
    names = ("MODEL.META_ARCHITECTURE", "HitRetinaNet", "MODEL.RETINANET.NORM", "GN")
    backbone = ("MODEL.BACKBONE.NAME", "build_hit_retinanet_pafpn_backbone")
    levels = ("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"])
    features = ("MODEL.FPN.IN_FEATURES", ["stage2", "stage3", "stage4"])
    more = ("MODEL.RETINANET.NUM_CLASSES", 10, "SOLVER.MAX_ITER", 4)
    more = (*more, "SOLVER.STEPS", (3,), "HIT_SEARCH.RETRAIN_CONFIG", "")
    cfg = scenes("search.yaml", "one", *names, *backbone, *levels, *features, *more)
    genotype = gradient_search(cfg, resume=False)
    # Killed and resumed in a new process it is the same search, to the bit.
    again = resumed(cfg, "HitDetector/search_net.py", Path("torn"), "model_0000001.pth")
    ours = torch.load("one/model_final.pth", weights_only=True)
    assert all(torch.equal(value, again["model"][name]) for name, value in ours["model"].items())
    best = load_config("one/best.yaml")
    assert genotype_of(best) == genotype and list(map(len, genotype.parts.values())) == [4, 6, 2]
    assert best.MODEL.DEVICE == "cuda"  # the default, not this machine's
    best.MODEL.DEVICE = "cpu"
    best.HIT_SEARCH.ARCH_START_ITER = -1
    best.SOLVER.MAX_ITER = 1
    assert "bbox" in train(best, resume=False)


NECK, HEAD = (("MODEL.HIT.SEARCHABLE_PARTS", [part]) for part in ("neck", "head"))


def test_screening_writes_the_sub_space_and_its_history(scenes):
    opts = ("HIT_SEARCH.SCREENING.KEEP", 2, "HIT_SEARCH.SCREENING.REMOVE_START", 2)
    more = ("HIT_SEARCH.SCREENING.REMOVE_END", 4, "HIT_SEARCH.SCREENING.RECORD_PERIOD", 1)
    kept = screen(scenes("screen.yaml", "screen", *NECK, *opts, *more), resume=False)
    assert len(kept) == 2 and set(kept) < set(OPS)
    cfg = load_config("")
    cfg.merge_from_file("screen/sub_space.yaml")
    assert set(cfg.MODEL.HIT.OPS.NECK) == set(kept)
    report = yaml.safe_load(Path("screen/screening.yaml").read_text())
    assert report["part"] == "neck" and report["iterations"] == [0, 1, 2, 3]
    assert [len(report["scores"][op]) for op in kept] == [4, 4]
    (removed,) = report["removed"]
    assert removed["op"] not in kept and len(report["scores"][removed["op"]]) < 5


class Interrupted(Exception):
    pass


def test_screening_resumes_to_the_same_history(scenes, monkeypatch):
    screening = "HIT_SEARCH.SCREENING."
    opts = (f"{screening}KEEP", 1, f"{screening}REMOVE_START", 2, f"{screening}REMOVE_END", 4)
    more = (*opts, f"{screening}RECORD_PERIOD", 1)
    whole = screen(scenes("screen.yaml", "whole", *HEAD, *more), resume=False)
    run_step = BilevelStep.run_step

    def dies(self):
        if self.iter == 3:
            raise Interrupted
        run_step(self)

    cfg = scenes("screen.yaml", "resumed", *HEAD, *more)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(BilevelStep, "run_step", dies)
        screen(cfg, resume=False)
    assert screen(cfg, resume=True) == whole
    texts = [Path(name, "screening.yaml").read_text() for name in ("whole", "resumed")]
    assert texts[0] == texts[1] and len(yaml.safe_load(texts[0])["removed"]) == 2


ELASTIC = {
    "NAME": "mine",
    "STEM": 8,
    "LAST": 16,
    "OPS": ["3x3", "skip", "5x5_e2"],
    "STAGES": [
        {"CHANNELS": 16, "DEPTH": 2},
        {"CHANNELS": 24, "DEPTH": 2, "OPS": ["xception", "skip"]},
        {"CHANNELS": 32, "DEPTH": 1},
        {"CHANNELS": 40, "DEPTH": 1, "OPS": ["ir_k3_e1_d1", "3x3"]},
    ],
}


@pytest.mark.parametrize(
    ("space", "ops"),
    [
        (["detnas_tiny"], ["3x3", "5x5", "7x7", "xception"]),
        (
            ["mine", "MODEL.DETNAS.SPACES", [ELASTIC]],
            ["3x3", "5x5_e2", "skip", "xception", "ir_k3_e1_d1"],
        ),
    ],
)
def test_choice_blocks_of_detnas_searched_by_gradient(scenes, space, ops):
    backbone = ("MODEL.BACKBONE.NAME", "build_hit_fpn_backbone", "MODEL.HIT.SEARCHABLE_PARTS", [])
    bottom_up = ("MODEL.HIT.BOTTOM_UP", "build_detnas_relaxed_backbone")
    space = ("MODEL.DETNAS.SPACE", *space, "MODEL.FPN.OUT_CHANNELS", 32)
    head = ("MODEL.HIT.GENOTYPE.HEAD", "skip skip")
    cfg = scenes("search.yaml", "detnas", *backbone, *bottom_up, *space, *head)
    gradient_search(cfg, resume=False)
    best = load_config("detnas/best.yaml")
    path = space_of(best).path(best.MODEL.DETNAS.PATH)
    state = torch.load("detnas/model_final.pth", weights_only=True)["model"]
    alpha = state["backbone.bottom_up.blocks.alpha"]
    assert alpha.shape == (len(path), len(ops)) and alpha.abs().sum() > 0
    for layer, row, chosen in zip(path.space.layers, alpha.tolist(), path.ops, strict=True):
        assert row[ops.index(chosen)] == max(row[ops.index(op)] for op in layer.ops)
    assert best.MODEL.HIT.BOTTOM_UP == "build_detnas_backbone"
    best.MODEL.DEVICE = "cpu"
    model = build_model(best)
    assert not relaxed_parts(model) and find_supernet(model) is None


def test_evolution_over_the_sub_spaces(scenes):
    """The other strategy: single-path training, then DetNAS's search, same entry points."""
    options = ("MODEL.HIT.STRATEGY", "sampling", "HIT_SEARCH.ARCH_START_ITER", -1)
    limits = ("SEARCH.MAX_MACS_INPUT", [64, 64], "SEARCH.POPULATION", 3, "SEARCH.GENERATIONS", 1)
    images = ("SEARCH.CALIBRATION.IMAGES", 2, "SEARCH.CALIBRATION.BATCH_SIZE", 2)
    validation = ("SEARCH.VAL", "digits_scenes_train@search_val")
    check = ("SUPERNET.CHECK.PATHS", 2, "SUPERNET.CHECK.REQUIRED", False)
    check += ("SUPERNET.CHECK.CALIBRATION_IMAGES", 2, "SUPERNET.CHECK.VAL", validation[1])
    more = (*options, *limits, *images, *validation, *check)
    found = train(scenes("search.yaml", "supernet", *more), resume=False)["supernet"]
    assert found["score_min"] <= found["score_mean"] <= found["score_max"]
    assert "standalone" in found  # 4 iterations over 3 operations: one update
    weights = ("MODEL.WEIGHTS", "supernet/model_final.pth")
    best = search(scenes("search.yaml", "evolution", *more, *weights), resume=False)
    assert best.macs > 0
    cfg = load_config("evolution/best.yaml")
    assert not cfg.MODEL.HIT.SEARCHABLE_PARTS
    text = " / ".join(genotype_of(cfg).part_text(p) for p in ("backbone", "neck", "head"))
    assert text == best.path


def test_errors_come_before_training(scenes):
    with pytest.raises(ValueError, match="ARCH_TRAIN"):
        same = "('digits_scenes_train@search_train',)"
        GradientSearchTrainer(scenes("search.yaml", "a", "HIT_SEARCH.ARCH_TRAIN", same))
    with pytest.raises(ValueError, match="share no image"):
        whole = "('digits_scenes_train',)"
        GradientSearchTrainer(scenes("search.yaml", "a", "HIT_SEARCH.ARCH_TRAIN", whole))
    with pytest.raises(ValueError, match="ARCH_START_ITER"):
        gradient_search(scenes("search.yaml", "b", "HIT_SEARCH.ARCH_START_ITER", 4), resume=False)
    with pytest.raises(ValueError, match="SCREENING.ENABLED"):
        screen(scenes("search.yaml", "c"), resume=False)
    with pytest.raises(ValueError, match="one part"):
        screen(scenes("search.yaml", "d", "HIT_SEARCH.SCREENING.ENABLED", True), resume=False)
    with pytest.raises(ValueError, match=r"REMOVE_END \(80\) <= SOLVER.MAX_ITER \(4\)"):
        screen(scenes("screen.yaml", "e", *NECK), resume=False)
    schedule = ("HIT_SEARCH.SCREENING.REMOVE_START", 1, "HIT_SEARCH.SCREENING.REMOVE_END", 4)
    with pytest.raises(ValueError, match=r"ARCH_START_ITER \(1\) < SCREENING.REMOVE_START \(1\)"):
        screen(scenes("screen.yaml", "f", *NECK, *schedule), resume=False)
    early = (*schedule, "HIT_SEARCH.ARCH_START_ITER", 0)
    with pytest.raises(ValueError, match="KEEP 4: expected 1 to 3, .* operations of the neck"):
        screen(scenes("screen.yaml", "g", *NECK, *early), resume=False)
    with pytest.raises(ValueError, match="MODEL.HIT.OPS.HEAD: no operation 'ir_k9'"):
        gradient_search(scenes("search.yaml", "h", "MODEL.HIT.OPS.HEAD", ["ir_k9"]), resume=False)
    with pytest.raises(DatasetError, match="'nowhere' is neither"):
        scenes("search.yaml", "i", "HIT_SEARCH.ARCH_TRAIN", ("nowhere@search_val",))
    with pytest.raises(ValueError, match="REFERENCE_WORLD_SIZE 8: .* expected 0"):
        GradientSearchTrainer(scenes("search.yaml", "j", "SOLVER.REFERENCE_WORLD_SIZE", 8))
    for main in (screen_main, gradient_search_main):
        with pytest.raises(ValueError, match="--eval-only: .*best.yaml"):
            main(argparse.Namespace(eval_only=True))


def test_genotypes_are_logged_once_the_architecture_learns(caplog):
    hook = GenotypeProgress()
    with caplog.at_level("INFO", "detnas_d2.search"):
        for arch_start, iteration in ((200, 99), (-1, 299), (200, 298), (200, 299)):
            hook.trainer = SimpleNamespace(iter=iteration, step=toy_step(arch_start=arch_start))
            hook.after_step()
    (line,) = caplog.messages
    assert line.startswith("Iteration 300: expected") and "head (entropy 1.099): skip skip" in line


def test_state_of_other_operations_is_refused():
    step = toy_step()
    state = {**step.state_dict(), "candidates": {"head": ["skip", "conv_k1", "sep_k3_d1"]}}
    with pytest.raises(ValueError, match="'conv_k1', 'sep_k3_d1'.* MODEL.HIT.SEARCHABLE_PARTS"):
        step.load_state_dict(state)


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
