"""The searchable head of a one-stage detector."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from detnas_d2.analysis.complexity import analyze
from detnas_d2.engine.architectures import fix_path, genotype_cost, searched_space, space_costs
from detnas_d2.modeling import activate, adapt_state_dict, find_supernet
from detnas_d2.modeling.hit.retinanet import TwinOperation
from tests.modeling.hit.test_detector import OPS, config, images

PARTS = ("backbone", "neck", "head")


def one_stage(searched=()):
    cfg = config(searched, retinanet=True)
    cfg.MODEL.META_ARCHITECTURE = "HitRetinaNet"
    cfg.MODEL.RETINANET.NORM = "GN"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.HIT_SEARCH.COST_INPUT = cfg.SEARCH.MAX_MACS_INPUT = [64, 96]
    return cfg


def test_twin_branches_see_their_own_half():
    twin = TwinOperation(nn.Identity(), nn.Conv2d(2, 3, 1))
    x = torch.randn(1, 4, 5, 5)
    out = twin(x)
    assert torch.equal(out[:, :2], x[:, :2])
    assert torch.equal(out[:, 2:], twin.branches[1](x[:, 2:]))


def test_relaxed_head_trains_every_candidate_of_both_subnets():
    torch.manual_seed(0)
    model = build_model(one_stage(PARTS)).train()
    with EventStorage():
        losses = model(images())
        sum(losses.values()).backward()
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    layers = model.head.layers
    assert layers.alpha.shape == (2, len(OPS)) and layers.alpha.grad.abs().min() > 0
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    twin = layers.blocks[0].candidates["sep_k3_d1"].branches
    assert not torch.equal(next(twin[0].parameters()).grad, next(twin[1].parameters()).grad)


def test_searched_head_detects_and_takes_the_relaxed_weights():
    torch.manual_seed(0)
    relaxed, searched = build_model(one_stage(PARTS)), build_model(one_stage()).eval()
    state = adapt_state_dict(relaxed.state_dict(), searched)
    assert state.keys() == searched.state_dict().keys()
    searched.load_state_dict(state)
    with torch.no_grad():
        logits, deltas = searched.head([torch.randn(1, 32, s, s) for s in (8, 4)])
        assert [tuple(t.shape) for t in logits] == [(1, 3, 8, 8), (1, 3, 4, 4)]
        assert [tuple(t.shape) for t in deltas] == [(1, 4, 8, 8), (1, 4, 4, 4)]
        assert logits[0].sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)
        assert len(searched(images())[0]["instances"].image_size) == 2


def test_cost_of_the_searched_layers_is_what_the_whole_model_has_more():
    """Against the counter of whole models: other operations, same difference."""
    found = []
    for head in ("skip skip", "ir_k3_e3_d1 sep_k3_d1"):
        cfg = one_stage()
        cfg.MODEL.HIT.GENOTYPE.HEAD = head
        whole = analyze(cfg, input_size=(64, 96))
        found.append((genotype_cost(cfg), whole["total"]))
    (ours_a, whole_a), (ours_b, whole_b) = found
    assert ours_b.macs - ours_a.macs == whole_b.macs - whole_a.macs > 0
    assert ours_b.params - ours_a.params == whole_b.params - whole_a.params > 0


def test_its_sub_spaces_are_those_of_evolution_too():
    cfg = one_stage(PARTS)
    cfg.MODEL.HIT.STRATEGY = "sampling"
    model, space = build_model(cfg), searched_space(cfg)
    assert find_supernet(model).space == space and space.stage_depths == (2, 2, 2, 2, 3, 3, 2)
    path = space.uniform_path("sep_k3_d1")
    with activate(model, path), torch.no_grad():
        assert len(model.eval()(images())[0]["instances"].image_size) == 2
    fixed = one_stage()
    fix_path(fixed, space, str(path))
    assert genotype_cost(fixed) == space_costs(cfg, space).cost(path)


def test_batch_statistics_are_refused():
    cfg = one_stage(PARTS)
    cfg.MODEL.RETINANET.NORM = "BN"
    with pytest.raises(ValueError, match=r"MODEL.RETINANET.NORM 'BN'.*'GN'"):
        build_model(cfg)
