"""Figure 3's detectors: one layer of ResNet-50, FPN or head replaced, everything else untouched."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from detnas_d2.analysis.complexity import analyze_model
from detnas_d2.config.merging import merge_overrides
from detnas_d2.modeling.hit import INFLUENCES
from detnas_d2.search_space.operations import OperationError, get_operation
from tests.experiments import content, load

# Part of the names of a layer's parameters, layer by layer.
PLACES = {
    "backbone": [f"res{s}.{i}" for s, n in ((3, 4), (4, 6), (5, 3)) for i in range(1, n)],
    "neck": [f"fpn_output{level}" for level in (5, 4, 3, 2)],
    "head": [f"box_head.conv{n}" for n in (1, 2, 3, 4)],
}


def build(*opts):
    cfg = load("HitDetector/ablations/influence.yaml")
    merge_overrides(cfg, opts)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    cfg.MODEL.HIT.NORM = "BN"
    with torch.device("meta"):
        return build_model(cfg).eval()


def replace(part, op, layer=-1, seed=0):
    key = "MODEL.HIT.REPLACED"
    return build(
        f"{key}.PART", part, f"{key}.OP", op, f"{key}.LAYER", str(layer), "SEED", str(seed)
    )


def shapes(model):
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


@pytest.fixture(scope="module")
def baseline():
    cfg = load("HitDetector/tables/tables1-2.yaml:fpn_4c1fc")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return shapes(build_model(cfg))


@pytest.mark.parametrize("part", PLACES)
def test_one_layer_is_replaced(part, baseline):
    for number, op in enumerate(("conv_k5_d3", "ir_k3_e1_d2")):
        layer = (number + 1) % len(PLACES[part])
        found = shapes(replace(part, op, layer))
        differing = {n for n in {*found, *baseline} if found.get(n) != baseline.get(n)}
        assert differing and all(PLACES[part][layer] in name for name in differing)
    conv = shapes(replace(part, "conv_k3", 0))
    # The 3x3 of a bottleneck does not take over pre-trained weights of the same shape.
    assert (conv != baseline) == (part == "backbone")


@pytest.mark.parametrize("part", PLACES)
def test_operations(part):
    assert len(set(INFLUENCES)) == 12
    for op in INFLUENCES[1::4]:
        model, wanted = replace(part, op, 1), get_operation(op)
        spatial = [
            m
            for name, m in model.named_modules()
            if PLACES[part][1] in name and isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1
        ]
        (conv,) = spatial
        assert (conv.kernel_size[0], conv.dilation[0]) == (wanted.kernel, wanted.dilation)
        assert (conv.groups > 1) == (wanted.kind == "ir")
    costs = analyze_model(model, input_size=(64, 96), proposals=2)
    assert costs["total"].macs > 0


def test_the_layer_is_drawn_by_seed():
    layers = {
        seed: next(n for n in shapes(replace("backbone", "conv_k3", seed=seed)) if "replaced" in n)
        for seed in (0, 100, 200)
    }
    assert len(set(layers.values())) > 1
    again = next(n for n in shapes(replace("backbone", "conv_k5_d1", seed=100)) if "replaced" in n)
    assert again == layers[100]


def test_what_cannot_be_replaced():
    with pytest.raises(OperationError, match="REPLACED.LAYER 4: the neck has layers 0 to 3"):
        replace("neck", "conv_k3", 4)
    with pytest.raises(OperationError, match="REPLACED.OP 'skip': expected one of conv_k3, conv_k"):
        replace("head", "skip")


def test_pipeline_has_every_operation_six_times():
    pipeline = content("HitDetector/tables/figure3.yaml")
    stages = pipeline["STAGES"]
    assert len(stages) == 36 and {stage["REPEAT"] for stage in stages} == {6}
    nodes = {tuple(stage["OPTS"][1::2]) for stage in stages}
    assert nodes == {(part, op) for part in PLACES for op in INFLUENCES}
    (table,) = pipeline["TABLES"]
    assert [row["ROW"] for row in table["ROWS"]] == [stage["NAME"] for stage in stages]
