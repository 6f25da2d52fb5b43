from __future__ import annotations

from collections import Counter

import pytest

from detnas_d2.config.tools import base_config
from detnas_d2.engine import (
    FairPathSampler,
    FlopsBinnedPathSampler,
    SandwichPathSampler,
    UniformPathSampler,
)
from detnas_d2.engine.trainers.path_sampling import build_path_sampler
from detnas_d2.search_space import SPACES, Path, SearchSpace, build_cost_table
from detnas_d2.search_space.hit_network import get_hit_network
from detnas_d2.search_space.hit_space import HitSpace

SMALL = SPACES["detnas_small"]
NETWORK = get_hit_network("hit_tiny_half")
WIDTHS = ("ir_k3_e1_d1", "ir_k3_e3_d1", "ir_k3_e6_d1")
HIT = HitSpace.of_network(
    NETWORK, [("backbone", ("skip", "sep_k3_d1")), ("head", ("skip", "conv_k1", *WIDTHS))]
)
PATH_0 = (
    "7x7 5x5 5x5 xception / 3x3 3x3 7x7 xception / 3x3 5x5 5x5 5x5 xception 7x7 3x3 7x7"
    " / 3x3 3x3 5x5 xception"
)
PATH_123456 = (
    "xception 7x7 3x3 xception / xception xception 7x7 7x7 / "
    "7x7 7x7 xception 3x3 xception 7x7 3x3 5x5 / 5x5 xception 7x7 xception"
)


def test_a_path_depends_on_seed_and_iteration_alone() -> None:
    sampler = UniformPathSampler(SMALL, 3)
    forwards = [sampler(i) for i in range(50)]
    assert [UniformPathSampler(SMALL, 3)(i) for i in reversed(range(50))] == forwards[::-1]
    assert len(set(forwards)) == 50
    assert all(UniformPathSampler(SMALL, 4)(i) != path for i, path in enumerate(forwards))


def test_sequence_is_that_of_earlier_versions() -> None:
    # Checkpoints of interrupted trainings rely on it.
    assert list(map(str, UniformPathSampler(SMALL, 0)(0))) == [PATH_0]
    assert list(map(str, UniformPathSampler(SMALL, 7)(123_456))) == [PATH_123456]


def test_choices_are_uniform() -> None:
    sampler = UniformPathSampler(SMALL, 0)
    paths = (path for i in range(2000) for path in sampler(i))
    counts = Counter((layer, c) for path in paths for layer, c in enumerate(path))
    assert len(counts) == 80
    # 500 expected, standard deviation 19.4.
    assert all(400 < count < 600 for count in counts.values())


EDGES = [290_000_000 + 10_000_000 * i for i in range(8)]


def test_bins_count_the_whole_classifier() -> None:
    sampler = FlopsBinnedPathSampler(SMALL, 0, EDGES)
    # Measured with the authors' table: ShuffleNetV2-20 and all-xception.
    assert sampler.macs(SMALL.uniform_path("3x3")) == 295_842_496
    assert sampler.macs(SMALL.uniform_path("xception")) == 358_825_920


def test_bins_are_drawn_equally_often() -> None:
    sampler = FlopsBinnedPathSampler(SMALL, 0, EDGES)
    paths = [path for i in range(350) for path in sampler(i)]
    counts = Counter((sampler.macs(path) - EDGES[0]) // 10_000_000 for path in paths)
    # 50 expected, standard deviation 6.5; of uniform paths about 4 in the first and 110 in the
    # fourth bin.
    assert set(counts) == set(range(7))
    assert all(28 < count < 72 for count in counts.values())


def test_binned_paths_depend_on_seed_and_iteration_alone() -> None:
    forwards = [FlopsBinnedPathSampler(SMALL, 3, EDGES)(i) for i in range(10)]
    sampler = FlopsBinnedPathSampler(SMALL, 3, EDGES)
    assert [sampler(i) for i in reversed(range(10))] == forwards[::-1]
    assert all(FlopsBinnedPathSampler(SMALL, 4, EDGES)(i) != p for i, p in enumerate(forwards))


def test_a_bin_that_is_not_hit_gives_a_random_path() -> None:
    sampler = FlopsBinnedPathSampler(SMALL, 0, [359_000_000, 390_000_000], attempts=1)
    assert min(sampler.macs(path) for i in range(20) for path in sampler(i)) < 359_000_000


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([300], "at least two"),
        ([300_000_000, 300_000_000], "each above the last"),
        ([1_000_000, 2_000_000, 400_000_000], r"\(1000000, 2000000\)\] hold no path"),
        ([300_000_000, 500_000_000, 600_000_000], "hold no path"),
    ],
)
def test_bad_bins(edges: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlopsBinnedPathSampler(SMALL, 0, edges)


def counts_of(paths: tuple[Path, ...]) -> list[Counter[int]]:
    """How often an update takes each operation, layer by layer."""
    return [Counter(choices) for choices in zip(*paths, strict=True)]


def test_fair_updates_take_every_operation_once() -> None:
    sampler = FairPathSampler(SMALL, 3)
    for iteration in range(20):
        paths = sampler(iteration)
        assert counts_of(paths) == [Counter(range(4))] * 20
    forwards = [sampler(i) for i in range(10)]
    assert [FairPathSampler(SMALL, 3)(i) for i in reversed(range(10))] == forwards[::-1]
    assert all(FairPathSampler(SMALL, 4)(i) != paths for i, paths in enumerate(forwards))
    # Orders of layers are drawn apart: a path is one of all, not the same operation everywhere.
    assert len(set(forwards[0][0])) == 4 and len({path for p in forwards for path in p}) == 40


def test_fair_updates_of_layers_with_fewer_operations() -> None:
    sampler = FairPathSampler(HIT, 0)
    assert HIT.cardinalities == (2, 2, 2, 2, 5, 5)
    first, twice = Counter(), Counter()
    for iteration in range(200):
        paths = sampler(iteration)
        assert len(paths) == 5
        for counts, cardinality in zip(counts_of(paths), HIT.cardinalities, strict=True):
            assert sorted(counts) == list(range(cardinality))
            assert max(counts.values()) - min(counts.values()) == (cardinality == 2)
        first.update(enumerate(paths[0]))
        more = [max(counts, key=counts.get) for counts in counts_of(paths)[:4]]
        twice.update(enumerate(more))
    # Which one is taken once more, and which comes first, is drawn: 100 and 40 of 200 expected,
    # standard deviations 7.1 and 5.7.
    assert all(70 < twice[layer, op] < 130 for layer in range(4) for op in range(2))
    assert all(70 < first[layer, op] < 130 for layer in range(4) for op in range(2))
    assert all(17 < first[layer, op] < 63 for layer in (4, 5) for op in range(5))


def test_sequences_of_several_paths() -> None:
    # Checkpoints of interrupted trainings rely on them.
    def choices(paths: tuple[Path, ...]) -> list[str]:
        return ["".join(map(str, path)) for path in paths]

    fair = ["111120", "000014", "010003", "101131", "110142"]
    assert choices(FairPathSampler(HIT, 7)(123_456)) == fair
    assert choices(sandwich(7)(123_456)) == ["111144", "000000", "110133", "111130"]


def sandwich(seed: int = 0, random_paths: int = 2) -> SandwichPathSampler:
    costs = HIT.cost_table((64, 64), 5).macs
    return SandwichPathSampler(HIT, seed, costs, random_paths=random_paths)


def test_sandwich_has_the_extremes_and_random_paths() -> None:
    costs = HIT.cost_table((64, 64), 5).macs
    dearest, cheapest, *others = sandwich()(0)
    assert str(dearest) == "sep_k3_d1 / sep_k3_d1 / sep_k3_d1 / sep_k3_d1 / ir_k3_e6_d1 ir_k3_e6_d1"
    assert str(cheapest) == "skip / skip / skip / skip / skip skip"
    assert costs.total(dearest) == costs.most_expensive() > costs.cheapest()
    assert costs.total(cheapest) == costs.cheapest()
    assert len(others) == 2
    updates = [sandwich(random_paths=3)(i) for i in range(50)]
    assert all(len(paths) == 5 and paths[:2] == (dearest, cheapest) for paths in updates)
    drawn = {path for paths in updates for path in paths[2:]}
    assert len(drawn) > 120  # of 400
    assert [sandwich(random_paths=3)(i) for i in reversed(range(50))] == updates[::-1]
    assert sandwich(1)(0) != sandwich(0)(0) and len(sandwich(random_paths=0)(0)) == 2


@pytest.mark.parametrize(
    ("ops", "elastic"),
    [
        (("skip", "conv_k1"), True),
        (("ir_k3_e3_d1", "ir_k5_e6_d1"), True),
        (("ir_k3_e3_d1", "ir_k5_e3_d1", "sep_k3_d1"), False),
        (("skip",), False),
        (("3x3", "7x7", "xception", "sep_k3_d1"), False),
        (("3x3", "7x7_e2"), True),
        (("3x3_e3", "ir_k3_e3_d1"), False),
        (("7x7", "skip"), True),
    ],
)
def test_sandwich_needs_depth_or_width(ops: tuple[str, ...], elastic: bool) -> None:
    detnas = any("x" in op for op in ops)
    space = (
        SearchSpace("mine", 8, (16,), (2,), 8, ops)
        if detnas
        else HitSpace.of_network(NETWORK, [("head", ops)])
    )
    costs = build_cost_table(space).macs if detnas else space.cost_table().macs
    if elastic:
        SandwichPathSampler(space, 0, costs)
        return
    with pytest.raises(ValueError, match=f"space '{space.name}' has neither .* or 'fair'"):
        SandwichPathSampler(space, 0, costs)


def test_sampler_by_config() -> None:
    cfg = base_config()
    cfg.SEED = 5
    assert isinstance(build_path_sampler(cfg, SMALL), UniformPathSampler)
    cfg.SUPERNET.PATH_SAMPLING = "flops_bins"
    sampler = build_path_sampler(cfg, SMALL)
    assert sampler(9) == FlopsBinnedPathSampler(SMALL, 5, EDGES)(9)
    with pytest.raises(ValueError, match="SUPERNET.FLOPS_BINS: .*detnas_large"):
        build_path_sampler(cfg, SPACES["detnas_large"])
    cfg.SUPERNET.PATH_SAMPLING = "fair"
    assert build_path_sampler(cfg, SMALL)(9) == FairPathSampler(SMALL, 5)(9)
    assert build_path_sampler(cfg, HIT)(9) == FairPathSampler(HIT, 5)(9)
    cfg.SUPERNET.PATH_SAMPLING, cfg.SUPERNET.SANDWICH_PATHS = "sandwich", 3
    assert build_path_sampler(cfg, HIT)(9) == sandwich(5, 3)(9)
    elastic = SPACES["detnas_small_elastic"]
    costs = build_cost_table(elastic).macs
    dearest, cheapest, *others = build_path_sampler(cfg, elastic)(9)
    assert costs.total(dearest) == costs.most_expensive() and len(others) == 3
    assert costs.total(cheapest) == costs.cheapest() and cheapest.ops.count("skip") == 16
    with pytest.raises(ValueError, match="PATH_SAMPLING 'sandwich': space 'detnas_small' has nei"):
        build_path_sampler(cfg, SMALL)
    cfg.SUPERNET.PATH_SAMPLING = "flops_bins"
    with pytest.raises(ValueError, match="'flops_bins': only DetNAS spaces have bins"):
        build_path_sampler(cfg, HIT)
    cfg.SUPERNET.PATH_SAMPLING = "spos"
    with pytest.raises(ValueError, match="SUPERNET.PATH_SAMPLING 'spos': .* 'fair', 'sandwich'"):
        build_path_sampler(cfg, SMALL)
