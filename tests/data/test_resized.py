"""Training batches at several resolutions against the loaders of configs at each."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from detnas_d2.config.resolutions import at_resolution
from detnas_d2.data import build_train_loader, register_datasets
from detnas_d2.data.loaders.resized import Resizing
from tests.engine.tiny_runs import Configs

SIZES = (32, 48, 80)
UPDATES = ((48,), (32, 80), (80, 32, 80, 48), (32,), (48,), (80, 48))


def config(folder: Path, *opts: Any) -> CfgNode:
    cfg = Configs(folder)("faster", "SEARCH.RESOLUTIONS", list(SIZES), *opts)
    register_datasets(cfg)
    return cfg


def sizes(number: int) -> tuple[int, ...]:
    return UPDATES[number % len(UPDATES)]


def batches(cfg: CfgNode, start: int, count: int) -> list[dict[int, list[dict[str, Any]]]]:
    resizing = Resizing({size: at_resolution(cfg, size) for size in SIZES}, sizes)
    return list(islice(build_train_loader(cfg, start_iter=start, resizing=resizing), count))


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    return len(ours) == len(theirs) and all(
        a["file_name"] == b["file_name"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_config_at_the_resolution(tmp_path: Path, workers: int) -> None:
    cfg = config(tmp_path, "DATALOADER.NUM_WORKERS", workers)
    plain = {
        size: list(islice(build_train_loader(at_resolution(cfg, size), start_iter=0), 8))
        for size in SIZES
    }
    found = batches(cfg, 0, 8)
    for number, batch in enumerate(found):
        assert batch.keys() == set(sizes(number))
        for size, samples in batch.items():
            assert same(samples, plain[size][number])
            shortest = {min(sample["image"].shape[1:]) for sample in samples}
            # Shortest sides of training: 48 and 64 where that of evaluation is 48.
            assert shortest <= {size, round(size * 64 / 48)}
    for later, batch in enumerate(batches(cfg, 5, 3), start=5):
        assert all(same(batch[size], found[later][size]) for size in found[later])


def test_ranks_share_a_batch_at_every_resolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path)
    whole, parts = batches(cfg, 0, 3), []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(batches(cfg, 0, 3))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch.keys() == first.keys() == second.keys()
        assert all(same(batch[size], [*first[size], *second[size]]) for size in batch)
