from __future__ import annotations

import random

import pytest

from detnas_d2.search_space import SHUFFLE_OPS, SPACES, PathError, SearchSpace, get_space

SMALL = SPACES["detnas_small"]


def test_sizes_of_the_papers_spaces() -> None:
    assert [SPACES[n].num_layers for n in ("detnas_small", "detnas_large", "detnas_3.8G")] == [
        20,
        40,
        40,
    ]
    assert SMALL.cardinalities == (4,) * 20


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_text_round_trip(space: SearchSpace) -> None:
    rng = random.Random(0)
    for _ in range(20):
        path = space.random_path(rng)
        assert space.path(str(path)) == path
        assert space.path(" ".join(map(str, path.choices))) == path
        assert space.path(list(path.choices)) == path
        assert hash(space.path(path.ops)) == hash(path)


def test_canonical_text() -> None:
    path = SMALL.path("2 1 2 0 / 2 1 1 2 / 3 3 1 3 0 0 3 1 / 3 1 3 2")
    assert str(path).startswith("7x7 5x5 7x7 3x3 / 7x7 5x5 5x5 7x7 / xception xception 5x5")
    assert SMALL.path(str(path).replace(" / ", ", ").replace(" ", ",")) == path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("0 0 0", "has 20 layers"),
        ([0] * 19 + [4], "layer 19: 4"),
        ([0] * 19 + [-1], "layer 19: -1"),
        ([0] * 19 + ["9x9"], "layer 19: '9x9'"),
        ([0] * 19 + [True], "layer 19: True"),
        ([0] * 19 + [1.5], "layer 19: 1.5"),
        ("0 0 0 / 0 0 0 0 0 / 0 0 0 0 0 0 0 0 / 0 0 0 0", "stages of"),
        ([0] * 19 + ["01"], "layer 19: '01'"),
    ],
)
def test_wrong_paths_are_refused(source: object, message: str) -> None:
    with pytest.raises(PathError, match=message):
        SMALL.path(source)


def test_path_of_another_space_is_refused() -> None:
    with pytest.raises(PathError, match="detnas_large"):
        SMALL.path(SPACES["detnas_large"].uniform_path("3x3"))


def test_strides_and_channels_of_layers() -> None:
    layers = SMALL.layers
    assert [layer.stride for layer in layers if layer.index in (0, 4, 8, 16)] == [2] * 4
    assert sum(layer.stride == 2 for layer in layers) == 4
    assert (layers[0].in_channels, layers[0].out_channels) == (16, 64)
    assert (layers[16].in_channels, layers[16].out_channels, layers[16].reduction) == (320, 640, 32)


def test_random_paths_use_every_operation_about_equally() -> None:
    rng = random.Random(1)
    counts = dict.fromkeys(range(4), 0)
    for _ in range(200):
        for choice in SMALL.random_path(rng):
            counts[choice] += 1
    assert all(850 < n < 1150 for n in counts.values()), counts


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(PathError, match="detnas_small"):
        get_space("small")
    with pytest.raises(PathError, match="no|not an operation"):
        SMALL.uniform_path("4x4")
    assert SMALL.uniform_path("7x7").ops == ("7x7",) * 20
    assert SHUFFLE_OPS[3] == "xception"


@pytest.mark.parametrize(
    "arguments",
    [
        {"stage_channels": (64,), "stage_depths": (2, 2)},
        {"stage_channels": (63,), "stage_depths": (2,)},
        {"stage_channels": (64,), "stage_depths": (0,)},
        {"stage_channels": (64,), "stage_depths": (2,), "ops": ("skip",)},
        {"stage_channels": (64, 96), "stage_depths": (2, 2), "ops": (("3x3",), ("skip",))},
        {"stage_channels": (64, 96), "stage_depths": (2, 2), "ops": (("3x3",),)},
        {"stage_channels": (64,), "stage_depths": (2,), "ops": ("3x3", "5x5", "3x3")},
    ],
)
def test_impossible_spaces_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="space 'x'"):
        SearchSpace("x", 16, last_channels=8, **arguments)


ELASTIC = SearchSpace(
    "elastic", 8, (16, 32), (3, 2), 8, ops=(("skip", "3x3", "5x5_e2"), ("xception", "skip", "7x7"))
)


def test_layers_have_the_operations_of_their_stage_and_skip_at_stride_1_alone() -> None:
    assert [layer.ops for layer in ELASTIC.layers] == [
        ("3x3", "5x5_e2"),
        *[("skip", "3x3", "5x5_e2")] * 2,
        ("xception", "7x7"),
        ("xception", "skip", "7x7"),
    ]
    assert ELASTIC.cardinalities == (2, 3, 3, 2, 3)
    path = ELASTIC.path("5x5_e2 skip 3x3 / 7x7 skip")
    assert path.choices == (1, 0, 1, 1, 1)
    assert ELASTIC.path(str(path)) == path == ELASTIC.path([1, 0, 1, 1, 1])
    assert ELASTIC.first_path().ops == ("3x3", "skip", "skip", "xception", "xception")
    for text in ("skip skip skip / xception xception", "3x3 7x7 3x3 / 7x7 7x7"):
        with pytest.raises(PathError, match=r"layer [01]: '(skip|7x7)' is not an operation of it"):
            ELASTIC.path(text)
    with pytest.raises(PathError, match="layer 3: '3x3'"):
        ELASTIC.uniform_path("3x3")


def test_elastic_spaces_hold_the_papers() -> None:
    for name in ("detnas_small", "detnas_large"):
        paper, elastic = SPACES[name], SPACES[f"{name}_elastic"]
        assert elastic.stage_channels == paper.stage_channels
        for layer, wider in zip(paper.layers, elastic.layers, strict=True):
            assert wider.ops[:4] == layer.ops
            assert wider.ops[4:7] == ("3x3_e2", "5x5_e2", "7x7_e2")
            assert wider.ops[7:] == (("skip",) if layer.stride == 1 else ())
        assert elastic.path(paper.random_path(random.Random(0)).ops).ops


def test_random_paths_of_layers_with_different_candidates() -> None:
    rng = random.Random(0)
    drawn = {ELASTIC.random_path(rng).choices for _ in range(1500)}
    assert len(drawn) == 2 * 3 * 3 * 2 * 3
