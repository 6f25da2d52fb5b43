"""Candidates replayed from graphs have the statistics and features of those that are not."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from detnas_d2.evaluation.graphed_supernet import graphed
from detnas_d2.evaluation.graphs import GraphedCalls
from detnas_d2.evaluation.prefix_statistics import recalibrate_population
from detnas_d2.evaluation.recalibration import BNOverride
from detnas_d2.layers.batch_norm_mode import batch_norms
from detnas_d2.modeling import PrefixWalk, activate, find_supernet, walking
from detnas_d2.search_space import Path
from tests.evaluation.graph_tape import Prefers, TapeGraphs
from tests.evaluation.test_calibration_steps import HIGH, WIDE, batches
from tests.evaluation.test_prefix_statistics import assert_equal, detector, population
from tests.helpers import changed, classification_batch, classifier, snapshot

DATA = (WIDE, HIGH, WIDE, WIDE, HIGH, WIDE, HIGH, (WIDE[0],))


def tape(**options: int) -> GraphedCalls:
    return GraphedCalls(TapeGraphs(), Prefers(), **{"after": 1, **options})


@pytest.mark.parametrize("name", ["backbone only", "fused", "neck", "neck and head"])
def test_statistics(name: str) -> None:
    model, paths, graphs = detector(name), population(5, seed=1), tape()
    before = snapshot(model)
    expected = recalibrate_population(model, paths, batches(*DATA), seed=2)
    found = recalibrate_population(model, paths, batches(*DATA), seed=2, graphs=graphs)
    for path in paths:
        assert_equal(found[path], expected[path])
    # Of sizes that came four and three times, all but the first two calls of every path.
    assert (graphs.captures, graphs.replays) == (2 * len(set(paths)), 3 * len(set(paths)))
    assert changed(model, before) == set()
    assert find_supernet(model).around is None


def test_statistics_of_several_batches_together() -> None:
    model, paths, graphs = detector("fused"), population(5, seed=4), tape()
    data = (*[WIDE] * 6, *[HIGH] * 2, *[WIDE] * 2)
    expected = recalibrate_population(model, paths, batches(*data), seed=2)
    found = recalibrate_population(model, paths, batches(*data), seed=2, graphs=graphs, together=2)
    for path in paths:
        assert_equal(found[path], expected[path])
    assert graphs.replays == 2 * len(set(paths))


def test_classifier() -> None:
    model, paths, graphs = classifier(), population(5, seed=3), tape()
    data = list(enumerate(classification_batch(32, [0, 1], seed=s) for s in range(4)))
    expected = recalibrate_population(model, paths, data, seed=2)
    found = recalibrate_population(model, paths, data, seed=2, graphs=graphs)
    for path in paths:
        assert_equal(found[path], expected[path])
    assert graphs.replays == 2 * len(set(paths))


def features(
    model: nn.Module, paths: list[Path], images: list[Tensor], graphs: GraphedCalls | None
) -> list[dict[str, Tensor]]:
    """Of every path, with statistics of its own, for every image."""
    statistics = recalibrate_population(model, paths, batches(WIDE, HIGH), seed=2)
    overrides = {path: BNOverride(batch_norms(model), statistics[path]) for path in paths}
    walk, supernet, found = PrefixWalk(paths), find_supernet(model), []
    model.eval()
    with torch.no_grad(), walking(model, walk), graphed(model, graphs, "evaluation"):
        for x in images:
            walk.clear()
            for path in walk.paths:
                with activate(model, path), overrides[path].applied():
                    found.append(dict(supernet(x)))
    return found


@pytest.mark.parametrize("name", ["backbone only", "fused"])
def test_features(name: str) -> None:
    model, paths, graphs = detector(name), population(6, seed=5), tape()
    torch.manual_seed(1)
    images = [torch.randn(1, 3, *s) for s in ((64, 96), (33, 47), *[(64, 96)] * 3, (33, 47))]
    expected = features(model, paths, images, None)
    found = features(model, paths, images, graphs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert graphs.replays == 2 * len(set(paths))


@torch.no_grad()
def test_weights_that_change_meanwhile_are_seen() -> None:
    model, graphs = detector("fused"), tape()
    path, supernet, x = population(1, seed=6)[0], find_supernet(model), torch.randn(1, 3, 64, 64)
    model.eval()
    with activate(model, path), graphed(model, graphs, "evaluation"):
        for step in range(3):
            for _ in range(4):
                found = supernet(x)
            around, supernet.around = supernet.around, None
            for name, feature in supernet(x).items():
                assert torch.equal(found[name], feature)
            supernet.around = around
            conv = supernet.layer_block(2).main[0].conv
            if step == 0:
                conv.weight.mul_(1.5)
            else:
                conv.weight = nn.Parameter(conv.weight * 0.5)
    assert (graphs.captures, graphs.replays) == (3, 6)


def test_modules_with_hooks_are_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, paths, graphs, seen = detector("fused"), population(3, seed=7), tape(), []
    find_supernet(model).stem.register_forward_hook(lambda *_: seen.append(1))
    recalibrate_population(model, paths, batches(*[WIDE] * 5), seed=2, graphs=graphs)
    assert len(seen) == 5 and graphs.captures == 0
    assert "hooks of modules would not run" in caplog.text


def test_a_path_that_fails_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    model, paths, graphs = detector("fused"), PrefixWalk(population(5, seed=8)).paths, tape()
    expected = recalibrate_population(model, paths, batches(*DATA), seed=2)
    supernet = find_supernet(model)
    run, bad, calls = supernet._run, paths[1], []

    def failing(*args: object) -> Tensor | None:
        found = run(*args)
        if supernet.active_path == bad and len(calls) == 3:
            raise RuntimeError("CUDA error")
        calls.extend([1] * (supernet.active_path == bad))
        return found

    monkeypatch.setattr(supernet, "_run", failing)
    found = recalibrate_population(model, paths, batches(*DATA), seed=2, graphs=graphs)
    assert str(found[bad]) == "RuntimeError: CUDA error"
    for path in paths[:1] + paths[2:]:
        assert_equal(found[path], expected[path])
    assert graphs.replays > 3
