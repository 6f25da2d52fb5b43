"""What is captured, replayed, dropped and left alone, on a backend that records operators."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detnas_d2.evaluation.graph_buffers import Buffers, Results, same_bits
from detnas_d2.evaluation.graphs import Call, GraphedCalls, Result
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.utils.cuda_graphs import CudaGraphs
from tests.evaluation.graph_tape import Prefers, TapeGraphs


class Layer:
    """A function of (N, C, ...) with weights, statistics of its input and a number of its calls."""

    def __init__(self, key: str = "a", channels: int = 3) -> None:
        self.key, self.calls = key, 0
        self.weight = torch.randn(channels)

    def run(self, x: Tensor) -> Result:
        self.calls += 1
        y = x * self.weight.view(1, -1, *[1] * (x.dim() - 2))
        mean, count = x.transpose(0, 1).flatten(1).mean(1), torch.tensor(float(x.numel()))
        return [y, mean, mean.double(), count, x], (self.key,)

    def call(self) -> Call:
        return Call(self.key, "work", self.run, lambda: [self.weight], lambda: None)


def graphs(backend: TapeGraphs | None = None, **options: int) -> GraphedCalls:
    return GraphedCalls(backend or TapeGraphs(), Prefers(), **options)


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def assert_same(found: Result, expected: Result) -> None:
    assert found[1] == expected[1]
    assert len(found[0]) == len(expected[0])
    assert all(map(same_bits, found[0], expected[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 1, 1), (0, 3, 4, 4)])
def test_replays_have_the_bits_of_calls(shape: tuple, dtype: torch.dtype) -> None:
    layer, backend = Layer(), TapeGraphs()
    calls = graphs(backend)
    layer.weight = layer.weight.to(dtype)
    for i in range(6):
        x = torch.randn(shape).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        if i == 4:
            x[:, :, :1] = float("nan")
        assert_same(calls.run(layer.call(), x), layer.run(x))
    # Two calls as they are, the third captured; three replays, and those that were compared.
    assert (calls.captures, calls.replays, backend.captures) == (1, 3, 1)
    # Six of the test; three calls, warm-up and capture, and one of the trial.
    assert layer.calls == 6 + 3 + 2 + 1


def test_results_are_the_callers_own() -> None:
    layer, calls = Layer(), graphs()
    xs = [torch.randn(2, 3, 4, 4) for _ in range(6)]
    kept = [calls.run(layer.call(), x) for x in xs]
    for x, found in zip(xs, kept, strict=True):
        assert_same(found, layer.run(x))
        for t in found[0]:
            t.zero_()
    assert_same(calls.run(layer.call(), xs[0]), layer.run(xs[0]))
    assert calls.replays == 4


def test_layouts_have_graphs_of_their_own() -> None:
    layer, calls = Layer(), graphs(after=1)
    x = torch.randn(2, 3, 6, 6)
    inputs = [x, x.contiguous(memory_format=torch.channels_last), x[:, :, :4], x.double(), x[:1]]
    for _ in range(3):
        for x in inputs:
            assert_same(calls.run(layer.call(), x), layer.run(x))
    assert (calls.captures, calls.replays) == (5, 5)


def test_paths_have_graphs_of_their_own() -> None:
    layers, calls = [Layer("a"), Layer("b")], graphs(after=1)
    for _ in range(4):
        x = torch.randn(1, 3, 2, 2)
        for layer in layers:
            assert_same(calls.run(layer.call(), x), layer.run(x))
    assert (calls.captures, calls.replays) == (2, 4)


def test_weights_that_are_written_or_replaced_drop_a_graph() -> None:
    layer, calls = Layer(), graphs(after=1)

    def several() -> None:
        for _ in range(3):
            x = torch.randn(1, 3, 2, 2)
            assert_same(calls.run(layer.call(), x), layer.run(x))

    several()
    layer.weight.mul_(2)
    several()
    layer.weight = torch.randn(3)
    several()
    assert (calls.captures, calls.replays) == (3, 3)


def test_the_last_replayed_stay() -> None:
    layers, calls = [Layer(key) for key in "abc"], graphs(after=1, most=2)
    x = torch.randn(1, 3, 2, 2)

    def run(keys: str) -> int:
        before = calls.replays
        for key in keys:
            layer = layers["abc".index(key)]
            assert_same(calls.run(layer.call(), x), layer.run(x))
        return calls.replays - before

    assert run("aabb") == 0 and run("ba") == 2
    assert run("cc") == 0  # in the place of b
    assert run("ac") == 2
    assert run("b") == 0 and calls.captures == 4


def test_inputs_that_vary_too_much_are_not_captured_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    layer, calls = Layer(), graphs(after=1, most=2)
    for _ in range(5):
        for size in range(1, 5):
            x = torch.randn(1, 3, size, size)
            assert_same(calls.run(layer.call(), x), layer.run(x))
    assert calls.captures == 4 and calls.replays == 6  # the last two sizes, three times each
    assert "4 captures were replayed 0 times, as inputs vary too much" in caplog.text
    calls.clear()
    for _ in range(3):
        calls.run(layer.call(), torch.randn(1, 3, 2, 2))
    assert (calls.captures, calls.replays) == (5, 7)


@pytest.mark.parametrize(
    ("backend", "context", "why"),
    [
        (TapeGraphs(refused="no device"), torch.no_grad(), "no device"),
        (TapeGraphs(), torch.enable_grad(), "gradients are recorded"),
        (TapeGraphs(), torch.autocast("cpu", torch.bfloat16), "autocast keeps casts"),
    ],
)
def test_calls_run_as_they_are(
    backend: TapeGraphs, context: object, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    layer, calls = Layer(), graphs(backend, after=1)
    for _ in range(4):
        x = torch.randn(1, 3, 2, 2)
        with context:
            assert_same(calls.run(layer.call(), x), layer.run(x))
    assert backend.captures == calls.captures == 0
    assert [why in message for message in caplog.messages] == [True]


def test_weights_of_inference_mode() -> None:
    with torch.inference_mode():
        layer = Layer()
    calls = graphs(after=1)
    for _ in range(4):
        x = torch.randn(1, 3, 2, 2)
        assert_same(calls.run(layer.call(), x), layer.run(x))
    assert calls.captures == 0


def test_a_wrong_replay_ends_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    layers, calls = [Layer("a"), Layer("b")], graphs(TapeGraphs(corrupt=1), after=1)
    for _ in range(4):
        x = torch.randn(1, 3, 2, 2)
        for layer in layers:
            assert_same(calls.run(layer.call(), x), layer.run(x))
    assert (calls.captures, calls.replays) == (1, 0)
    assert "a replay has other bits than the call in result" in caplog.text


def test_a_failing_capture_ends_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    layers, backend = [Layer("a"), Layer("b")], TapeGraphs()
    calls = graphs(backend, after=1)
    for i in range(4):
        backend.error = RuntimeError("operation not permitted\nat ...") if i else None
        x = torch.randn(1, 3, 2, 2)
        for layer in layers[: i + 1]:
            assert_same(calls.run(layer.call(), x), layer.run(x))
        if i == 0:
            calls.run(layers[0].call(), x)  # while it still can be
    assert calls.captures == 1
    assert "a capture failed: operation not permitted" in caplog.text


def test_short_memory_drops_all_graphs() -> None:
    layer, other, calls = Layer("a"), Layer("b"), graphs(after=1)
    x = torch.randn(1, 3, 2, 2)
    for _ in range(3):
        calls.run(layer.call(), x)

    def run(x: Tensor) -> Result:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        calls.run(Call("b", "work", run, list, lambda: None), x)
    for _ in range(3):
        assert_same(calls.run(other.call(), x), other.run(x))
        assert_same(calls.run(layer.call(), x), layer.run(x))
    assert (calls.captures, calls.replays) == (1, 1)


def test_slower_graphs_are_tried_once() -> None:
    autotune, backend = Prefers(graphs=False), TapeGraphs()
    layers, calls = [Layer("a"), Layer("b")], GraphedCalls(backend, autotune, after=1)
    for _ in range(5):
        for layer in layers:
            x = torch.randn(1, 3, 2, 2)
            assert_same(calls.run(layer.call(), x), layer.run(x))
    assert calls.replays == 0 and backend.captures == 1  # both are one class of work
    assert len(autotune.asked) == 1


def test_choices_are_kept_with_those_of_operators(tmp_path: Path) -> None:
    path = tmp_path / "fused_ops.json"
    layer, calls = Layer(), GraphedCalls(TapeGraphs(), AutotuneCache(path), after=1)
    for _ in range(2):
        calls.run(layer.call(), torch.randn(1, 3, 2, 2))
    ((key, entry),) = json.loads(path.read_text()).items()
    assert key.startswith("graph of work, 4 pixels, torch.float32, ")
    assert entry.keys() == {"use", "graph_ms", "calls_ms"}
    for use in ("graph", "calls"):
        path.write_text(json.dumps({key: {"use": use}}))
        calls = GraphedCalls(TapeGraphs(), AutotuneCache(path), after=1)
        for _ in range(3):
            calls.run(layer.call(), torch.randn(1, 3, 2, 2))
        assert (calls.captures, calls.replays) == ((1, 1) if use == "graph" else (0, 0))
    path.write_text(json.dumps({key: {"use": "ops"}}))
    with pytest.raises(ValueError, match='use: expected "graph" or "calls", got \'ops\''):
        AutotuneCache(path)


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (TapeGraphs(corrupt=0), "replayed graphs are wrong: relative error inf of result"),
        (TapeGraphs(error=RuntimeError("no\nmore")), "replayed graphs failed: no"),
        (
            TapeGraphs(error=torch.cuda.OutOfMemoryError("out")),
            "not enough memory to try replayed graphs",
        ),
    ],
)
def test_graphs_that_are_wrong_or_fail_are_not_used(
    backend: TapeGraphs, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    autotune, layer = AutotuneCache(), Layer()
    calls = GraphedCalls(backend, autotune, after=1)
    for _ in range(4):
        x = torch.randn(1, 3, 2, 2)
        assert_same(calls.run(layer.call(), x), layer.run(x))
    (entry,) = autotune.entries.values()
    assert entry["use"] == "calls" and entry["why"].startswith(why)
    assert calls.captures == calls.replays == 0
    told = [m.startswith("SEARCH.CUDA_GRAPHS: graph of work") for m in caplog.messages]
    assert told == [True] * ("memory" not in why)


def test_bounds_are_positive() -> None:
    for options in ({"most": 0}, {"after": 0}):
        with pytest.raises(ValueError, match="most and after must be positive"):
            graphs(**options)


def test_bits() -> None:
    x = torch.tensor([0.0, float("nan")])
    assert same_bits(x, x.clone()) and not same_bits(x, torch.tensor([-0.0, float("nan")]))
    assert not same_bits(x, x.double()) and not same_bits(x[:1], x)
    y = torch.randn(2, 3, 4, 5)
    assert not same_bits(y, y.contiguous(memory_format=torch.channels_last))


def test_vectors_are_joined() -> None:
    like = [torch.randn(4), torch.randn(()), torch.randn(2, 2), torch.randn(3).double()]
    buffers = Buffers()
    results, others = (Results(like, buffers) for _ in range(2))
    results.write(like)
    found = results.read()
    assert all(map(same_bits, found, like))
    assert found[0].untyped_storage().data_ptr() == found[1].untyped_storage().data_ptr()
    others.write([t + 1 for t in like])
    assert all(map(same_bits, found, like))  # copies
    assert all(map(same_bits, results.read(), [t + 1 for t in like]))  # of shared memory


def test_cpu_tensors_are_not_captured() -> None:
    assert CudaGraphs().refuses(torch.randn(1)) == "the model is not on a GPU"
