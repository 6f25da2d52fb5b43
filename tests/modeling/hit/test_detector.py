"""Relaxed, searched and sampled detectors under Detectron2's meta-architectures."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import genotype_cost
from detnas_d2.modeling import WeightsError, adapt_state_dict
from detnas_d2.modeling.hit import relaxed_parts
from detnas_d2.modeling.hit.build import part_specs
from detnas_d2.search_space.genotype import GenotypeError

OPS = ["skip", "ir_k3_e3_d1", "sep_k3_d1"]
GENOTYPE = ["ir_k3_e3_d1 skip / sep_k3_d1 skip / skip skip / ir_k3_e3_d1 skip",
            "sep_k3_d1 skip skip skip / skip ir_k3_e3_d1 skip sep_k3_d1",
            "skip ir_k3_e3_d1"]  # fmt: skip


def config(searched=(), retinanet=False):
    cfg = load_config("")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.HIT.NETWORK = "hit_tiny"
    cfg.MODEL.HIT.NORM = "BN"
    cfg.MODEL.HIT.SEARCHABLE_PARTS = list(searched)
    for part, text in zip(("BACKBONE", "NECK", "HEAD"), GENOTYPE, strict=True):
        cfg.MODEL.HIT.OPS[part] = OPS
        cfg.MODEL.HIT.GENOTYPE[part] = text
    cfg.MODEL.FPN.IN_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_hit_pafpn_backbone"
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.NAME = "HitBoxHead"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    if retinanet:
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        cfg.MODEL.BACKBONE.NAME = "build_hit_retinanet_pafpn_backbone"
        cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4"]
        cfg.MODEL.HIT.GENOTYPE.NECK = "skip skip skip / skip sep_k3_d1 skip"
        cfg.MODEL.RETINANET.NUM_CLASSES = 3
    return cfg


def images(count=1, size=64):
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4, 40, 44], [20, 10, 60, 60]]))
    instances.gt_classes = torch.tensor([0, 2])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator)
    return [{"image": p.float(), "instances": instances} for p in pixels]


@pytest.mark.parametrize("side", [4, 7])
def test_costs_of_the_head_follow_its_regions(side):
    """Against the counter of whole models: other operations, same difference."""
    found = []
    for head in ("skip skip", "ir_k3_e3_d1 sep_k3_d1"):
        cfg = config()
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = side
        cfg.MODEL.HIT.GENOTYPE.HEAD = head
        cfg.HIT_SEARCH.COST_PROPOSALS = 9
        found.append((genotype_cost(cfg), analyze(cfg, input_size=(64, 96), proposals=9)["total"]))
    (ours_a, whole_a), (ours_b, whole_b) = found
    assert ours_b.macs - ours_a.macs == whole_b.macs - whole_a.macs > 0
    cfg.HIT_SEARCH.COST_REGION = 2 * side
    alone, counted = (ours_a.macs, genotype_cost(cfg).macs)
    assert counted - alone == 4 * (ours_b.macs - alone)


def test_parts_that_share_a_sub_space():
    cfg = config(("backbone", "neck", "head"))
    cfg.MODEL.HIT.OPS.BACKBONE = ["conv_k1", *OPS]
    cfg.MODEL.HIT.SHARED_OPS = "backbone"
    parts = relaxed_parts(build_model(cfg))
    assert [part.ops for part in parts.values()] == [("conv_k1", *OPS)] * 3
    specs = part_specs(cfg)
    assert {layer.ops for layers in specs.values() for layer in layers} == {("conv_k1", *OPS)}
    cfg.MODEL.HIT.OPS.BACKBONE = ["conv_k9"]
    with pytest.raises(ValueError, match=r"MODEL.HIT.OPS.BACKBONE: no operation 'conv_k9'"):
        build_model(cfg)


@pytest.mark.parametrize("retinanet", [False, True])
def test_relaxed_detector_trains_every_candidate_and_choice(retinanet):
    torch.manual_seed(0)
    parts = ["backbone", "neck"] if retinanet else ["backbone", "neck", "head"]
    model = build_model(config(parts, retinanet=retinanet)).train()
    assert set(relaxed_parts(model)) == set(parts)
    with EventStorage():
        sum(model(images()).values()).backward()
    for name, layers in relaxed_parts(model).items():
        assert layers.alpha.grad.abs().sum(1).gt(0).all(), name
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing


@pytest.mark.parametrize("retinanet", [False, True])
def test_searched_detector_trains_and_detects(retinanet):
    torch.manual_seed(0)
    model = build_model(config(retinanet=retinanet)).train()
    assert not relaxed_parts(model)
    with EventStorage():
        sum(model(images()).values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    with torch.no_grad():
        outputs = model.eval()(images())
    assert outputs[0]["instances"].image_size == (64, 64)


def test_relaxed_weights_load_into_the_searched_detector():
    relaxed = build_model(config(["backbone", "neck", "head"]))
    searched = build_model(config())
    state = adapt_state_dict(relaxed.state_dict(), searched)
    assert state.keys() == searched.state_dict().keys()
    block = "roi_heads.box_head.layers.blocks.1"
    weight = "expand.conv.weight"
    found = state[f"{block}.{weight}"]
    assert torch.equal(found, relaxed.state_dict()[f"{block}.candidates.ir_k3_e3_d1.{weight}"])


def test_weights_of_a_larger_space_lose_their_architecture_parameters():
    source = build_model(config(["backbone"])).state_dict()
    same = adapt_state_dict(source, build_model(config(["backbone"])))
    assert same.keys() == source.keys()
    smaller = config(["backbone"])
    smaller.MODEL.HIT.OPS.BACKBONE = OPS[1:]
    state = adapt_state_dict(source, build_model(smaller))
    assert "backbone.bottom_up.layers.alpha" not in state
    assert not any(".candidates.skip." in key for key in state)


def test_classifier_weights_move_under_the_neck():
    backbone = config(["backbone"])
    backbone.MODEL.META_ARCHITECTURE = "ImageClassifier"
    backbone.MODEL.BACKBONE.NAME = "build_hit_backbone"
    backbone.MODEL.HIT.OUT_FEATURES = ["stage4"]
    backbone.MODEL.CLASSIFIER.IN_FEATURE = "stage4"
    state = build_model(backbone).state_dict()
    detector = build_model(config(["backbone"]))
    moved = adapt_state_dict(state, detector)
    own = {k for k in detector.state_dict() if k.startswith("backbone.bottom_up.")}
    assert own <= set(moved)


def test_weights_of_another_genotype_are_refused():
    relaxed = build_model(config(["backbone"]))
    other = config()
    other.MODEL.HIT.GENOTYPE.BACKBONE = "conv_k3 " * 8
    with pytest.raises(WeightsError, match="conv_k3"):
        adapt_state_dict(relaxed.state_dict(), build_model(other))


def test_a_part_without_genotype_or_search_is_an_error():
    cfg = config()
    cfg.MODEL.HIT.GENOTYPE.NECK = ""
    with pytest.raises(GenotypeError, match="MODEL.HIT.GENOTYPE.NECK is empty"):
        build_model(cfg)
    with pytest.raises(ValueError, match="SEARCHABLE_PARTS"):
        build_model(config(["body"]))
