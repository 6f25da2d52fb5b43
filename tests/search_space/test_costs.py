"""Costs against the figures of the released models and against fvcore on the built network."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from detnas_d2.layers import get_norm
from detnas_d2.modeling import DecodedBackbone
from detnas_d2.search_space import SPACES, Cost, Path, SearchSpace, build_cost_table

LARGE_PATH = "0 0 3 1 2 1 0 2 / 0 3 1 2 3 3 2 0 / 2 1 1 3 2 0 2 2 2 1 3 1 0 3 3 3 / 1 3 3 3 3 3 3 3"
# (space, path, parameters, multiply-adds at 224x224): the released classes, run by their authors'
# code; multiply-adds to the unit where they are known to it, else in units of 10,000.
RELEASED = [
    ("detnas_small", "2 1 2 0 / 2 1 1 2 / 3 3 1 3 0 0 3 1 / 3 1 3 2", 1_849_680, 288_082_368),
    ("detnas_small", "2 3 1 1 / 3 2 1 3 / 3 1 1 1 3 3 2 0 / 3 3 3 3", 2_041_888, 291.21),
    ("detnas_large", LARGE_PATH, 8_415_216, 1269.18),
    ("detnas_3.8G", LARGE_PATH, 26_724_428, 3937.83),
    ("detnas_small", "0 0 0 1 / 2 0 3 3 / 1 2 2 2 3 3 3 1 / 3 2 3 2", None, 299.94),
    ("detnas_small", "2 1 0 3 / 1 3 0 3 / 2 0 1 1 3 3 3 3 / 3 3 3 1", None, 316.39),
    ("detnas_small", "1 3 0 0 / 2 3 3 3 / 2 3 3 3 3 2 2 0 / 2 3 1 1", None, 327.49),
]
UNIFORM = [
    ("detnas_small", "3x3", 262_705_856),
    ("detnas_small", "5x5", 280_518_336),
    ("detnas_small", "7x7", 307_237_056),
    ("detnas_small", "xception", 325_689_280),
    ("detnas_large", "3x3", 1036.68),
    ("detnas_large", "5x5", 1087.79),
    ("detnas_large", "7x7", 1164.44),
    ("detnas_large", "xception", 1391.23),
    ("detnas_3.8G", "3x3", 3265),
    ("detnas_3.8G", "xception", 4349),
]


def _agrees(macs: int, expected: float) -> bool:
    if isinstance(expected, int) and expected > 1e6:
        return macs == expected
    digits = 2 if isinstance(expected, float) else 0
    return round(macs / 1e6, digits) == expected


@pytest.mark.parametrize(("space", "path", "params", "macs"), RELEASED)
def test_released_paths(space: str, path: str, params: int | None, macs: float) -> None:
    cost = build_cost_table(SPACES[space]).cost(SPACES[space].path(path))
    assert params is None or cost.params == params
    assert _agrees(cost.macs, macs), cost


@pytest.mark.parametrize(("space", "op", "macs"), UNIFORM)
def test_uniform_paths(space: str, op: str, macs: float) -> None:
    cost = build_cost_table(SPACES[space]).cost(SPACES[space].uniform_path(op))
    assert _agrees(cost.macs, macs), cost


@pytest.mark.parametrize(
    ("space", "macs", "params"),
    [
        ("detnas_small", (263.57, 296.42, 323.51), (1.523, 1.698, 2.038)),
        ("detnas_large", (1084.62, 1173.28, 1268.98), (6.538, 7.184, 7.936)),
    ],
)
def test_two_hundred_random_paths(space: str, macs: tuple, params: tuple) -> None:
    table, layers = build_cost_table(SPACES[space]), SPACES[space].num_layers
    draws = np.random.RandomState(0).randint(0, 4, (200, layers))
    costs = [table.cost(row) for row in draws]
    for values, unit, digits, expected in (
        ([c.macs for c in costs], 1e6, 2, macs),
        ([c.params for c in costs], 1e6, 3, params),
    ):
        found = (min(values), sum(values) / 200, max(values))
        assert tuple(round(v / unit, digits) for v in found) == expected


@pytest.mark.parametrize(
    ("space", "low", "high"),
    [("detnas_small", 237.22, 365.47), ("detnas_large", 966.77, 1485.60)],
)
def test_extremes_of_the_space(space: str, low: float, high: float) -> None:
    macs = build_cost_table(SPACES[space]).macs
    found = macs.cheapest(), macs.most_expensive()
    assert tuple(round(value / 1e6, 2) for value in found) == (low, high)


# Operations by name: all kinds of widths and of foreign blocks, and layers that are left out.
MIXED = SearchSpace(
    "mixed",
    8,
    (24, 48, 96),
    (3, 3, 2),
    64,
    ops=(
        ("3x3_e2", "xception_e2", "skip"),
        ("ir_k5_e3_d2", "ir_k3_e1_g2", "sep_k3_d1", "skip"),
        ("conv_k3", "7x7_e6", "conv_k1"),
    ),
)


@pytest.mark.parametrize("space", ["detnas_small", "detnas_tiny", "mixed"])
@pytest.mark.parametrize("size", [(224, 224), (97, 130)])
def test_table_agrees_with_fvcore(space: str, size: tuple[int, int]) -> None:
    chosen = MIXED if space == "mixed" else SPACES[space]
    for seed in (3, 4, 5) if space == "mixed" else (3,):
        _compare_with_fvcore(chosen.random_path(random.Random(seed)), size)


def _compare_with_fvcore(path: Path, size: tuple[int, int]) -> None:
    last = f"stage{len(path.space.stage_depths)}"
    model = DecodedBackbone(
        path, norm=lambda c: get_norm("BN", c), shuffle_method=2, out_features=[last]
    ).eval()
    counter = FlopCountAnalysis(model, torch.zeros(1, 3, *size))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    cost = build_cost_table(path.space, size).cost(path)
    assert cost.macs == counter.by_operator()["conv"]
    assert cost.params == sum(p.numel() for p in model.parameters())


def test_wider_and_skipped_blocks_by_hand() -> None:
    space = SearchSpace("x", 4, (8,), (2,), 8, ops=("3x3", "3x3_e2", "xception_e3", "skip"))
    table = build_cost_table(space, (16, 16))
    stem = Cost(4 * 27 + 4 + 8, 64 * 4 * 27)
    assert table.base == stem
    # Stride 2, 8x8 to 4x4: 1x1 4 -> 4e on 8x8, 3x3 on 4x4, 1x1 4e -> 4; projection of 4 channels.
    projection = 16 * (4 * 9 + 16)
    assert [cost.macs for cost in table.entries[0]] == [
        *(64 * 16 * e + 16 * (36 * e + 16 * e) + projection for e in (1, 2)),
        # Separable 4 -> 12 -> 12 -> 4.
        16 * (36 + 48 + 108 + 144 + 108 + 48) + projection,
    ]
    # Stride 1: the right half, 4 channels on 4x4.
    assert [cost.macs for cost in table.entries[1]] == [
        *(16 * (16 + 36 + 16) * e for e in (1, 2)),
        16 * (36 + 48 + 108 + 144 + 108 + 48),
        0,
    ]
    assert table.entries[1][3].params == 0
    # Weights, and the scale and shift of 8, 8 and 4 channels.
    assert table.entries[1][1].params == 32 + 72 + 32 + 2 * (8 + 8 + 4)
