"""Every Hit-Detector config builds and trains a step; parameters of baselines and ablations."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.tools import flatten
from detnas_d2.engine.training import trainer_class
from detnas_d2.modeling import adapt_state_dict
from detnas_d2.search_space.hit_network import HIT_NETWORKS, PARTS
from detnas_d2.search_space.operations import SCREENED
from tests.experiments import EXPERIMENTS, frozen, load
from tests.helpers import classification_batch, training_batch

NAMES = [n for n in EXPERIMENTS if n.startswith("HitDetector") and "Base" not in n]


@cache
def completed(name):
    """The config with operations where a pipeline would fill them in."""
    cfg = load(name)
    node = cfg.MODEL.HIT
    for part in PARTS:
        key = part.upper()
        if part in node.SEARCHABLE_PARTS:
            # Two of the candidates: building all takes seconds. CANDIDATES are built elsewhere.
            node.OPS[key] = node.OPS[key][:2] or ["skip", "sep_k3_d1"]
        elif not node.GENOTYPE[key]:
            depths = HIT_NETWORKS[node.NETWORK].depths(part, len(cfg.MODEL.FPN.IN_FEATURES))
            node.GENOTYPE[key] = " / ".join(" ".join(["sep_k3_d1"] * depth) for depth in depths)
    cfg.freeze()
    return cfg


def same_model(name):
    """Equal for configs of equal models; test_replacement.py builds those with a replaced layer."""
    values = flatten(completed(name).MODEL)
    ignored = ("WEIGHTS", "HIT.REPLACED.")
    return str(sorted((k, v) for k, v in values.items() if not k.startswith(ignored)))


def same_code(name):
    """Equal for configs whose training steps run the same code: genotypes do not count."""
    cfg = completed(name)
    model, hit = cfg.MODEL, cfg.MODEL.HIT
    parts = tuple(hit.SEARCHABLE_PARTS)
    step = hit.STRATEGY, cfg.HIT_SEARCH.SCREENING.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE
    names = model.BACKBONE.NAME, hit.BOTTOM_UP, model.ROI_BOX_HEAD.NAME, model.FPN.NORM
    frame = hit.NETWORK if "hit" in model.BACKBONE.NAME else ""
    return model.META_ARCHITECTURE, parts, step, names, frame, model.RESNETS.NUM_GROUPS


BUILT = sorted({same_model(name): name for name in NAMES}.values())
TRAINED = sorted({same_code(name): name for name in NAMES}.values())


@cache
def costs(name):
    return analyze(completed(name), input_size=(128, 128), proposals=10)


@pytest.mark.parametrize("name", BUILT)
def test_every_config_builds(name):
    assert costs(name)["backbone"].params > 0 and costs(name)["head"].params > 0


def narrow(network):
    """The frame with its depths and an eighth of its widths."""
    return replace(
        network,
        stage_channels=tuple(tuple(8 * (c // 64 + 1) for c in s) for s in network.stage_channels),
        stem_channels=8,
        stem_ops=tuple((op, 8) for op, _ in network.stem_ops),
        tail=tuple((op, 64) for op, _ in network.tail),
        neck_channels=32,
        fc_channels=16,
    )


@pytest.mark.parametrize("name", TRAINED)
def test_a_config_of_each_kind_trains_a_step(name, monkeypatch):
    torch.manual_seed(0)
    cfg = completed(name).clone()
    cfg.defrost()
    frame = cfg.MODEL.HIT.NETWORK
    monkeypatch.setitem(HIT_NETWORKS, frame, narrow(HIT_NETWORKS[frame]))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 32
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 1 if cfg.MODEL.RESNETS.NUM_GROUPS > 1 else 8
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.HIT_SEARCH.SCREENING.KEEP = 1
    trainer = trainer_class(cfg)
    searches = cfg.HIT_SEARCH.ARCH_START_ITER >= 0
    cfg.HIT_SEARCH.ARCH_START_ITER = 0 if searches else -1
    model = build_model(cfg)
    step = trainer.build_step(cfg, model, trainer.build_optimizer(cfg, model))
    batch = training_batch(sizes=((64, 64),) * 2, classes=(0, 1))
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        batch = classification_batch(64, [0, 1])
    step.set_data([batch])
    if searches:
        step.set_arch_data([batch])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with EventStorage(0):
        step.iter = 0
        step.run_step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert all(p.isfinite().all() for p in model.parameters())
    parts = {n.partition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert parts == {n.partition(".")[0] for n in moved}
    assert searches == any(n.endswith("alpha") for n in moved)


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        # The paper's text: 11.649M and 2.263M.
        ("HitDetector/search/pipeline_paper.yaml:searched", "backbone", 11_649_000),
        ("HitDetector/search/pipeline_paper.yaml:searched", "neck", 2_263_000),
        # Table 1: R50 23.508M, FPN 3.344M, two fully connected layers 14.311M.
        ("HitDetector/baselines/faster_rcnn_r50.yaml", "neck", 3_344_000),
        ("HitDetector/baselines/faster_rcnn_r50.yaml", "head", 14_311_000 - 4 * 1025),
        # NAS-FPN on ResNet-50 and on DetNASNet: 30.448M and 29.673M.
        ("HitDetector/tables/tables1-2.yaml:nasfpn", "neck", 30_448_000),
        ("HitDetector/tables/tables1-2.yaml:detnasnet_nasfpn", "neck", 29_673_000),
        ("HitDetector/tables/tables1-2.yaml:detnasnet_nasfpn", "backbone", 9_401_328),
        # MobileNetV2 is 3,504,872 with a last convolution of 412,160 and a classifier of
        # 1,281,000; the stem here has a bias of 32.
        ("HitDetector/baselines/faster_rcnn_mobilenetv2.yaml", "backbone", 1_811_744),
        # FBNet-C's last convolution is its C5; its body alone is 2,884,880 (with the stem's bias).
        ("HitDetector/tables/tables1-2.yaml:fbnetc", "backbone", 3_587_216),
        ("HitDetector/tables/table5.yaml:backbone", "backbone", 13_881_848),
        # Four convolutions and a fully connected layer, with 4 x 81 regressions 15,621,525.
        ("HitDetector/tables/tables1-2.yaml:detnasnet_nasfpn", "head", 15_621_525 - 4 * 1025),
        ("HitDetector/tables/table5.yaml:head", "head", 9_930_129),
    ],
)
def test_parameters(name, part, expected):
    tolerance = 1000 if expected % 1000 == 0 or "r50" in name else 0
    assert abs(costs(name)[part].params - expected) <= tolerance


def test_released_training_recipe():
    """The values of the released configuration files, where Detectron2 has other defaults."""
    cfg = completed("HitDetector/released/coco.yaml")
    head, rpn = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.RPN
    assert (head.POOLER_TYPE, head.POOLER_SAMPLING_RATIO, head.SMOOTH_L1_BETA) == ("ROIAlign", 2, 1)
    assert rpn.BOUNDARY_THRESH == 0
    assert abs(rpn.SMOOTH_L1_BETA - 1 / 9) < 1e-6
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD) == ("RGB", [58.395, 57.12, 57.375])
    # DetNASNet's weights are of unnormalised BGR images.
    other = completed("HitDetector/tables/tables1-2.yaml:detnasnet_nasfpn")
    assert (other.INPUT.FORMAT, other.MODEL.PIXEL_STD) == ("BGR", [1, 1, 1])
    assert other.MODEL.PIXEL_MEAN == [0, 0, 0]


def test_search_in_the_sub_spaces_of_the_paper():
    ops = frozen("HitDetector/search/search_paper_spaces.yaml").MODEL.HIT.OPS
    assert {part: tuple(ops[part.upper()]) for part in PARTS} == SCREENED


def test_resnext_moves_from_the_classifier_to_the_detector():
    models = []
    for name in ("x101_imagenet", "x101"):
        cfg = completed(f"HitDetector/tables/tables1-2.yaml:{name}").clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            models.append(build_model(cfg))
    state = adapt_state_dict(models[0].state_dict(), models[1])
    body = models[1].backbone.bottom_up.state_dict()
    assert {f"backbone.bottom_up.{name}" for name in body} <= set(state)
