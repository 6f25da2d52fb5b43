"""The order of training images."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from detnas_d2.data import TrainingBatchSampler, aspect_flags
from detnas_d2.data.loaders.sampling import permutation

FLAGS = [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1]


def batches(count, flags=FLAGS, size=4, seed=3, **options):
    return list(islice(TrainingBatchSampler(flags, size, seed, **options), count))


def test_permutation_is_fixed():
    # RandomState's streams are frozen; these numbers must never change.
    assert permutation(8, 0, 0).tolist() == [6, 3, 5, 0, 7, 2, 1, 4]
    assert permutation(8, 0, 1).tolist() != permutation(8, 0, 0).tolist()


def test_aspect_flags():
    sizes = [(40, 30), (30, 40), (30, 30)]
    dicts = [{"width": w, "height": h} for w, h in sizes]
    assert aspect_flags(dicts).tolist() == [1, 0, 0]
    assert aspect_flags([{"label": 1}]).tolist() == [0]


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("size", [1, 4, 6, 30])
def test_resuming_continues(grouping, size):
    whole = batches(60, size=size, aspect_grouping=grouping)
    for start in (1, 2, 3, 7, 20, 41):
        resumed = batches(60 - start, size=size, aspect_grouping=grouping, start_batch=start)
        assert resumed == whole[start:]


def test_batches_do_not_mix_aspects():
    for batch in batches(50):
        assert len({FLAGS[index] for _, index in batch}) == 1


def test_every_image_is_seen_equally_often():
    # 44 batches of 4 from 11 images: 16 epochs, up to what waits in the buckets.
    seen = Counter(index for batch in batches(44) for _, index in batch)
    assert set(seen) == set(range(11))
    assert max(seen.values()) - min(seen.values()) <= 2
    ungrouped = Counter(i for batch in batches(44, aspect_grouping=False) for _, i in batch)
    assert set(ungrouped.values()) == {16}


def test_positions_count_the_samples():
    positions = [position for batch in batches(5, start_batch=2) for position, _ in batch]
    assert positions == list(range(8, 28))


def test_ranks_share_the_global_batch():
    whole = batches(9)
    parts = [batches(9, rank=rank, world_size=2) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_seeds_and_epochs_differ():
    assert batches(5, seed=3) == batches(5, seed=3)
    assert batches(5, seed=4) != batches(5, seed=3)
    order = [i for batch in batches(11, size=2, aspect_grouping=False) for _, i in batch]
    assert order[:11] != order[11:]


def test_one_image_and_one_aspect():
    assert batches(2, flags=[1]) == [[(i, 0) for i in range(4)], [(i, 0) for i in range(4, 8)]]
    assert all(0 <= i < 3 for b in batches(5, flags=np.ones(3, dtype=int)) for _, i in b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flags": []}, "empty"),
        ({"size": 0}, "positive multiple"),
        ({"size": 5, "world_size": 2}, r"batch_size_total \(5\).*\(2\)"),
        ({"rank": 1}, "rank"),
        ({"start_batch": -1}, "start_batch"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        batches(1, **options)
