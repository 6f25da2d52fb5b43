from __future__ import annotations

from collections import Counter

import pytest

from detnas_d2.config.tools import base_config
from detnas_d2.engine import FlopsBinnedPathSampler, UniformPathSampler
from detnas_d2.engine.trainers.path_sampling import build_path_sampler
from detnas_d2.search_space import SPACES

SMALL = SPACES["detnas_small"]
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
    with pytest.raises(ValueError, match="SUPERNET.PATH_SAMPLING 'fair'"):
        build_path_sampler(cfg, SMALL)
