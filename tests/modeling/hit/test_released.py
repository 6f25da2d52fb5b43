"""The released network: parameters to the unit, multiply-adds of the paper."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg

import detnas_d2.modeling.hit  # noqa: F401
from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.hit_config import add_hit_detector_config
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_costs import part_cost_table
from detnas_d2.search_space.hit_network import PARTS, get_hit_network

CONFIGS = Path(__file__).parents[3] / "configs" / "HitDetector"


def load(name):
    cfg = get_cfg()
    add_hit_detector_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


@pytest.fixture(scope="module")
def costs():
    cfg = load("released/coco.yaml")
    return analyze(cfg, input_size=(800, 1216), proposals=1000)


def test_parameters_of_the_released_network(costs):
    # The released head regresses 4 x 81 numbers (background too), Detectron2's 4 x 80: 2,052
    # parameters (4 x 512 weights, 4 biases) fewer than 9,932,181 and 27,123,916.
    assert {part: cost.params for part, cost in costs.items()} == {
        "backbone": 13_881_848,
        "neck": 2_715_952,
        "proposal_generator": 593_935,
        "head": 9_930_129,
        "total": 27_121_864,
    }


def test_multiply_adds_of_the_released_network(costs):
    gmacs = {part: round(cost.macs / 1e9, 3) for part, cost in costs.items()}
    assert gmacs["backbone"] == 34.921
    assert gmacs["neck"] == 19.342
    assert gmacs["proposal_generator"] == 48.085
    # 167.093 and 269.441 with background regression: 4 x 512 x 1000 multiply-adds more.
    background = 4 * 512 * 1000
    assert round((costs["head"].macs + background) / 1e9, 3) == 167.093
    assert round((costs["total"].macs + background) / 1e9, 3) == 269.441


def test_tables_differ_between_genotypes_as_the_models_do(costs):
    """Additive tables and the counted network agree on what a change of genotype changes."""
    cfg = load("released/coco.yaml")
    network = get_hit_network("hit")
    released = Genotype(network, *(cfg.MODEL.HIT.GENOTYPE[part.upper()] for part in PARTS))
    other = Genotype(
        network,
        ["sep_k3_d2", "skip", "conv_k3", "ir_k5_e1_g2"] * 5,
        ["conv_k1", "skip", "ir_k3_e6_d3", "conv_k3"] * 2,
        ["skip", "conv_k1", "sep_k5_d1", "ir_k7_e1"],
    )
    for part in PARTS:
        cfg.MODEL.HIT.GENOTYPE[part.upper()] = other.part_text(part)
    changed = analyze(cfg, input_size=(800, 1216), proposals=1000)
    for part in PARTS:
        ops = tuple(sorted({*getattr(released, part), *getattr(other, part)}))
        table = part_cost_table(part, network.layers(part, ops))
        a, b = (table.cost(ops.index(op) for op in getattr(g, part)) for g in (released, other))
        assert b.params - a.params == changed[part].params - costs[part].params
        assert b.macs - a.macs == changed[part].macs - costs[part].macs
