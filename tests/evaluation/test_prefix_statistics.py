"""A population's statistics against those of its paths recalibrated one by one."""

from __future__ import annotations

import logging
import random
from collections import Counter

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from detnas_d2.evaluation.prefix_statistics import (
    StatisticsMemory,
    _merged,
    recalibrate_population,
    shared_preprocessing,
)
from detnas_d2.evaluation.recalibration import BNStatistics, recalibrate
from detnas_d2.layers import get_norm
from detnas_d2.modeling import PrefixWalk, Supernet, activate, find_supernet
from detnas_d2.search_space import SHUFFLE_OPS, SPACES, Path, SearchSpace
from detnas_d2.utils.errors import CandidateFailed
from tests.helpers import (
    changed,
    classification_batch,
    classifier,
    detector_config,
    snapshot,
    training_batch,
)

TINY = SPACES["detnas_tiny"]
DETECTORS = {  # kind, norm of neck, norm of box head, fused operators
    "backbone only": ("faster", "", "", "off"),
    "fused": ("faster", "", "", "on"),
    "neck": ("retinanet", "BN", "", "off"),
    "neck and head": ("faster", "SyncBN", "SyncBN", "off"),
    "mask": ("mask", "", "BN", "off"),
}


def detector(name: str) -> nn.Module:
    kind, neck, head, fused = DETECTORS[name]
    cfg = detector_config(kind)
    cfg.MODEL.FPN.NORM, cfg.MODEL.ROI_BOX_HEAD.NORM = neck, head
    cfg.MODEL.DETNAS.FUSED_OPS = fused
    torch.manual_seed(0)
    return build_model(cfg)


def population(size: int, seed: int) -> list[Path]:
    """Random paths, half of them children that differ from another in one layer."""
    rng = random.Random(seed)
    paths = [TINY.random_path(rng) for _ in range((size + 1) // 2)]
    while len(paths) < size:
        choices = list(rng.choice(paths).choices)
        choices[rng.randrange(len(choices))] = rng.randrange(4)
        paths.append(TINY.path(choices))
    rng.shuffle(paths)
    return paths


def batches(masks: bool = False) -> list[tuple[int, list[dict]]]:
    generator = torch.Generator().manual_seed(5)
    sizes = (((64, 96), (80, 64)), ((33, 47),), ((65, 50), (40, 71)))
    return [
        (3 * i, training_batch(sizes=s, masks=masks, generator=generator))
        for i, s in enumerate(sizes)
    ]


def one_by_one(model: nn.Module, paths: list[Path], data: list) -> dict[Path, BNStatistics]:
    found = {}
    for path in paths:
        with activate(model, path):
            found[path] = recalibrate(model, data, seed=2)
    return found


def assert_equal(ours: BNStatistics, theirs: BNStatistics, *, bitwise: bool = True) -> None:
    assert isinstance(ours, BNStatistics) and ours.moments.keys() == theirs.moments.keys()
    tolerance = {"rtol": 0, "atol": 0} if bitwise else {"rtol": 1e-4, "atol": 1e-6}
    for name, moments in ours.moments.items():
        other = theirs.moments[name]
        assert moments.count == other.count
        torch.testing.assert_close(moments.mean, other.mean, **tolerance)
        torch.testing.assert_close(moments.variance, other.variance, **tolerance)


@pytest.mark.parametrize("name", DETECTORS)
def test_equal_to_one_by_one(name: str) -> None:
    model, paths = detector(name), population(7, seed=len(name))
    data = batches(masks=name == "mask")
    model.train()
    before, random_state = snapshot(model), torch.get_rng_state()
    found = recalibrate_population(model, paths, data, seed=2)
    assert changed(model, before) == set() and model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert "preprocess_image" not in vars(model)
    expected = one_by_one(model, paths, data)
    for path in paths:
        assert_equal(found[path], expected[path], bitwise=name != "fused")


def test_classifier() -> None:
    model, paths = classifier(), population(5, seed=3)
    data = list(enumerate(classification_batch(32, [0, 1], seed=s) for s in (1, 2)))
    found = recalibrate_population(model, paths, data, seed=2)
    expected = one_by_one(model, paths, data)
    for path in paths:
        assert_equal(found[path], expected[path])


def test_every_node_of_the_trie_runs_once_per_batch() -> None:
    model, paths = detector("backbone only"), population(8, seed=1)
    runs: Counter[int] = Counter()
    supernet = find_supernet(model)
    for index, block in enumerate(supernet.blocks):
        block.register_forward_hook(lambda *_, i=index: runs.update([i]))
    recalibrate_population(model, paths, batches())
    for index in range(len(supernet.blocks)):
        nodes = {path.choices[: index + 1] for path in paths}
        assert runs[index] == len(nodes) * len(batches())


def test_a_path_that_ends_in_a_skipped_layer_is_remembered() -> None:
    space = SearchSpace("skips", 4, (8,), (2,), 8, ops=("3x3", "skip"))
    net = Supernet(
        space,
        norm=lambda channels: get_norm("BN", channels),
        shuffle_method=1,
        out_features=["stage1"],
    )
    model, data = _Model(net), [(0, [{"image": torch.rand(3, 32, 32)}] * 2)]
    paths, known = [space.path("3x3 skip"), space.path("3x3 3x3")], {}
    first = recalibrate_population(model, paths, data, known=known)
    net.stem.register_forward_hook(lambda *_: pytest.fail("calibrated again"))
    again = recalibrate_population(model, paths, data, known=known)
    for path in paths:
        assert_equal(again[path], first[path])
    assert len(first[paths[0]].moments) == 1 + 5 and len(first[paths[1]].moments) == 1 + 5 + 3


def test_nodes_are_remembered() -> None:
    model, paths, data = detector("neck"), population(9, seed=4), batches()
    known: dict = {}
    first = recalibrate_population(model, paths[:5], data, seed=2, known=known)
    size = len(known)
    assert recalibrate_population(model, paths[:5], [], seed=2, known=known).keys() == first.keys()
    assert len(known) == size
    found = recalibrate_population(model, paths, data, seed=2, known=known)
    expected = one_by_one(model, paths, data)
    for path in paths:
        assert_equal(found[path], expected[path])


def test_a_failing_path_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = detector("backbone only"), batches()
    paths = [TINY.path(choices) for choices in ((0, 1, 2, 0, 3), (0, 1, 2, 1, 3), (0, 1, 0, 0, 0))]
    block = find_supernet(model).blocks[3].candidates["3x3"]
    inner, calls = block.forward, Counter()

    def forward(x):
        calls["3x3"] += 1
        # The first path's second batch; the third path uses the block too.
        if calls["3x3"] == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate\nmore")
        return inner(x)

    monkeypatch.setattr(block, "forward", forward)
    known: dict = {}
    found = recalibrate_population(model, paths, data, seed=2, known=known)
    ordered = sorted(paths, key=lambda path: path.choices)
    failed = [path for path in ordered if isinstance(found[path], CandidateFailed)]
    assert len(failed) == 1
    assert str(found[failed[0]]) == "RuntimeError: CUDA out of memory. Tried to allocate"
    monkeypatch.undo()
    rest = [path for path in paths if path not in failed]
    expected = one_by_one(model, paths, data)
    for path in rest:
        assert_equal(found[path], expected[path])
    # Nothing incomplete is remembered: the failed one can be recalibrated later.
    assert failed[0].choices not in known
    again = recalibrate_population(model, failed, data, seed=2, known=known)
    assert_equal(again[failed[0]], expected[failed[0]])


def test_statistics_that_are_not_finite_fail_their_paths_only() -> None:
    model, paths = detector("backbone only"), [TINY.uniform_path(op) for op in ("3x3", "5x5")]
    with torch.no_grad():
        find_supernet(model).blocks[1].candidates["5x5"].main[0].conv.weight[0] = float("inf")
    found = recalibrate_population(model, paths, batches())
    assert isinstance(found[paths[0]], BNStatistics)
    assert "blocks.1.candidates.5x5.main.0.norm are not finite" in str(found[paths[1]])


def test_no_calibration_batch() -> None:
    with pytest.raises(ValueError, match="no calibration batch"):
        recalibrate_population(detector("backbone only"), population(2, seed=0), [])


def test_memory_forgets_other_weights_and_other_calibration_images(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, memory = detector("backbone only"), StatisticsMemory()
    memory.use(model, "a")
    memory.nodes[()] = BNStatistics()
    memory.use(model, "a")
    assert memory.nodes
    with caplog.at_level(logging.WARNING, logger="detnas_d2.search"):
        memory.use(model, "b")
    assert not memory.nodes and "1 remembered nodes dropped" in caplog.text
    memory.nodes[()] = BNStatistics()
    with torch.no_grad():
        find_supernet(model).stem.conv.weight[0, 0, 0, 0] += 1e-3
    memory.use(model, "b")
    assert not memory.nodes


def test_preprocessing_is_shared_for_one_batch_only() -> None:
    model = detector("backbone only")
    (_, first), (_, second), _ = batches()
    with shared_preprocessing(model):
        once = model.preprocess_image(first)
        assert model.preprocess_image(first) is once
        other = model.preprocess_image(second)
        assert other is not once
    assert torch.equal(model.preprocess_image(second).tensor, other.tensor)


def test_walk_keeps_only_outputs_that_are_continued_from() -> None:
    choices = [(0, 0, 0, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 1, 1), (0, 2, 0, 0, 0), (1, 0, 0, 0, 0)]
    walk = PrefixWalk(TINY.path(c) for c in [*choices, choices[2]])
    assert [path.choices for path in walk.paths] == choices
    kept = [sorted(walk.keep(path)) for path in walk.paths]
    assert kept == [[0, 1, 3], [0, 1, 4], [0, 1], [0], []]


@pytest.mark.parametrize("seed", range(5))
def test_any_population_space_batch_size_and_number_of_ranks(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    depths = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 3)))
    space = SearchSpace(
        name=f"random {seed}",
        stem_channels=4,
        stage_channels=tuple(8 * (stage + 1) for stage in range(len(depths))),
        stage_depths=depths,
        last_channels=8,
        ops=tuple(rng.sample(SHUFFLE_OPS, rng.randint(2, 4)))
        if seed < 4
        else ("3x3", "5x5_e2", "ir_k3_e3_d1", "skip"),
    )
    torch.manual_seed(seed)
    net = Supernet(
        space,
        norm=lambda channels: get_norm("BN", channels),
        shuffle_method=rng.randint(1, 2),
        out_features=[f"stage{len(depths)}"],
    )
    net.fused_ops = "off"
    # Images of several sizes, in batches of several sizes.
    sizes = [(rng.randint(1, 3), rng.randint(17, 40), rng.randint(17, 40)) for _ in range(5)]
    images = [torch.rand(n, 3, h, w) for n, h, w in sizes]
    data = [(i, [{"image": image} for image in batch]) for i, batch in enumerate(images)]
    model = _Model(net)
    paths = [space.random_path(rng) for _ in range(rng.randint(1, 9))]
    expected = {}
    for path in paths:
        with activate(model, path):
            expected[path] = recalibrate(model, data)
    found = recalibrate_population(model, paths, data)
    assert all(found[path].moments.keys() == expected[path].moments.keys() for path in paths)
    for path in paths:
        assert_equal(found[path], expected[path])
    ranks = rng.randint(2, 4)
    shares = [recalibrate_nodes(model, paths, data[rank::ranks]) for rank in range(ranks)]
    monkeypatch.setattr(comm, "get_world_size", lambda: ranks)
    monkeypatch.setattr(comm, "all_gather", lambda value: [s for s in shares if s is not value])
    merged = _merged({})
    for path in paths:
        for depth in range(len(path.choices) + 1):
            node = merged.get(path.choices[:depth], BNStatistics())  # a skipped layer has none
            for name, moments in node.moments.items():
                other = expected[path].moments[name]
                assert moments.count == other.count
                torch.testing.assert_close(moments.mean, other.mean, rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(moments.m2, other.m2, rtol=1e-10, atol=1e-12)


class _Model(nn.Module):
    """A supernet behind what Detectron2's models have."""

    def __init__(self, net: Supernet) -> None:
        super().__init__()
        self.backbone = net

    def preprocess_image(self, batch: list[dict]) -> torch.Tensor:
        return torch.stack([sample["image"] for sample in batch])


def recalibrate_nodes(model: nn.Module, paths: list[Path], data: list) -> dict:
    """What a rank sends to the others."""
    known: dict = {}
    recalibrate_population(model, paths, data, known=known)
    return {node: statistics.moments for node, statistics in known.items()}
