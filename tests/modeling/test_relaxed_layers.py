"""Relaxed layers that do not all have the same candidates."""

from __future__ import annotations

import pickle

import pytest
import torch

from detnas_d2.layers import get_norm
from detnas_d2.modeling import RelaxedShuffleNet, Supernet
from detnas_d2.search.gradient.objective import ExpectedCost, decode_parts, scores
from detnas_d2.search_space import SearchSpace, build_cost_table

SPACE = SearchSpace("x", 4, (8, 16), (2, 2), 8, ops=(("3x3", "skip"), ("5x5_e2", "3x3", "skip")))
OFFERED = [(1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)]  # of 3x3, skip, 5x5_e2


def net(kind: type = RelaxedShuffleNet):
    torch.manual_seed(0)
    made = kind(
        SPACE,
        norm=lambda channels: get_norm("BN", channels),
        shuffle_method=1,
        out_features=["stage2"],
        init="default",
    ).double()
    made.fused_ops = "off"
    return made


def test_a_layer_weighs_its_own_candidates() -> None:
    relaxed, supernet = net(), net(Supernet)
    layers = relaxed.blocks
    assert layers.ops == ("3x3", "skip", "5x5_e2")
    with torch.no_grad():
        layers.alpha.normal_()
    mask = torch.tensor(OFFERED, dtype=torch.float64)
    expected = layers.alpha.exp() * mask / (layers.alpha.exp() * mask).sum(1, keepdim=True)
    torch.testing.assert_close(layers.probabilities(), expected)
    keys = {key.replace("blocks.", "blocks.blocks.", 1) for key in supernet.state_dict()}
    assert relaxed.state_dict().keys() - keys == {"blocks.alpha", "blocks.remaining"}
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    y = supernet.stem(x)
    for index, layer in enumerate(SPACE.layers):
        candidates = supernet.blocks[index].candidates
        y = sum(expected[index, layers.ops.index(op)] * candidates[op](y) for op in layer.ops)
    found = relaxed(x)["stage2"]
    torch.testing.assert_close(found, y)
    found.sum().backward()
    assert ((layers.alpha.grad != 0) == (mask == 1))[1:].all()  # alone, a weight is 1


def test_costs_scores_and_decoding() -> None:
    layers = net().blocks
    cost = ExpectedCost({"backbone": layers}, input_size=(32, 32), proposals=1)
    table = build_cost_table(SPACE, (32, 32))
    rows = [
        dict(zip(layer.ops, row, strict=True))
        for layer, row in zip(SPACE.layers, table.entries, strict=True)
    ]
    mean = sum(sum(c.macs for c in row.values()) / len(row) for row in rows)
    assert cost().item() * 1e9 == pytest.approx(mean, rel=1e-6)
    assert scores(layers) == pytest.approx(
        {"3x3": (1 + 0.5 + 0.5 + 1 / 3) / 4, "skip": (0.5 + 1 / 3) / 2, "5x5_e2": (0.5 + 1 / 3) / 2}
    )
    with torch.no_grad():
        layers.alpha[:, 1] = 2.0
    (ops,) = decode_parts(layers).values()
    assert ops == ("3x3", "skip", "3x3", "skip")
    path = SPACE.path(ops)
    body = table.cost(path.choices).macs - table.base.macs
    assert cost.decoded_gmacs() * 1e9 == pytest.approx(body)


def test_candidates_are_removed_where_another_is_left() -> None:
    relaxed = net()
    layers = relaxed.blocks
    with pytest.raises(ValueError, match="cannot remove '3x3'"):
        layers.remove("3x3")  # the first layer's only one
    layers.remove("skip")
    expected = torch.tensor([[1, 0, 0], [1, 0, 0], [0.5, 0, 0.5], [0.5, 0, 0.5]])
    torch.testing.assert_close(layers.probabilities(), expected.double())
    assert relaxed(torch.rand(2, 3, 32, 32, dtype=torch.float64))["stage2"].isfinite().all()


def test_pickled_layers_follow_loaded_weights() -> None:
    layers, other = net().blocks, pickle.loads(pickle.dumps(net().blocks))
    layers.remove("skip")
    other.load_state_dict(layers.state_dict())
    assert other.active_ops == layers.active_ops
