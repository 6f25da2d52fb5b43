"""Augmentation as a pure function of the sample's position."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from detnas_d2.data import SeededMapDataset
from detnas_d2.data.loaders.samples import SampleError


def draw(record):
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


DICTS = [{"id": i} for i in range(5)]


def test_draws_depend_on_seed_and_position():
    dataset = SeededMapDataset(DICTS, draw, 1)
    first = dataset[7, 2]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert dataset[7, 2] == first
    assert first["id"] == 2
    assert dataset[8, 2]["drawn"] != first["drawn"]
    assert SeededMapDataset(DICTS, draw, 2)[7, 2]["drawn"] != first["drawn"]
    assert len(dataset) == 5


def test_the_main_process_keeps_its_own_state():
    def states():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        yield
        yield random.random(), np.random.rand(), torch.rand(()).item()

    untouched = list(states())[1]
    steps = states()
    next(steps)
    SeededMapDataset(DICTS, draw, 1)[0, 0]
    assert next(steps) == untouched


def test_state_is_put_back_after_an_error():
    def fail(record):
        raise RuntimeError("broken")

    random.seed(1)
    expected = random.random()
    random.seed(1)
    with pytest.raises(SampleError, match="RuntimeError: broken"):
        SeededMapDataset(DICTS, fail, 1)[0, 0]
    assert random.random() == expected


def test_refused_images_are_replaced_by_the_next():
    dataset = SeededMapDataset(DICTS, lambda r: None if r["id"] in (3, 4) else draw(r), 1)
    assert dataset[0, 3]["id"] == 0
    assert dataset[0, 3] == dataset[0, 3]
    with pytest.raises(RuntimeError, match="refused 5 images"):
        SeededMapDataset(DICTS, lambda r: None, 1)[0, 3]


def test_the_mapper_cannot_change_the_data():
    def change(record):
        record["id"] = -1
        return record

    dataset = SeededMapDataset(DICTS, change, 1)
    dataset[0, 3]
    assert dataset.samples[3] == {"id": 3}
