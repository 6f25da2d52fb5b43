"""What the model expects, beside the rows of the benchmarks, on a device that is made up."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

OURS = [[100, 0, 10, 0, 0], [5, 1000, 1, 100, 10]]
EAGER = [[300, 0, 30, 0, 0], [5, 1000, 1, 100, 10]]
COUNTS = {
    "kernels": {
        way: {"evaluation": rows, "recalibration": rows}
        for way, rows in (("ours", OURS), ("eager", EAGER), ("torch.compile", EAGER))
    },
    "ops": {"shuffle_concat": 1, "bn_stats": 1},
}


@pytest.fixture
def measure(benchmark_module):
    return benchmark_module("measure")


def report(measure, benchmark_module, tmp_path: Path):
    args = measure.parser("").parse_args(["--output", str(tmp_path / "rows.json")])
    args.graph = False
    made = measure.Report("made up", args)
    model = benchmark_module("device_model")
    made.device, made.counts = model.Device("made up", 1e12, 1e14, 1e13, 2.0, 5.0, "nobody"), COUNTS
    return made


def test_rows_of_operators(measure, benchmark_module, tmp_path: Path) -> None:
    ops, made = benchmark_module("ops"), report(measure, benchmark_module, tmp_path)
    shape = (2, 8, 6, 10)
    maps = 2 * 8 * 6 * 10
    with torch.no_grad():
        cases = {case[0]: case for case in ops.forward_cases(shape, "cpu", torch.float32)}
        found = ops.expected(made, cases["shuffle_concat"], torch.float32)
        # Ours: a launch of four maps. Eager: a product, a sum, ReLU, two maps joined, two copies.
        assert found["ours"] == pytest.approx(2e-3 + 4 * 4 * maps / 1e9)
        moved = 4 * ((2 + 2 + 2 + 4 + 4) * maps + 2 * 8) / 1e9
        assert found["eager channels_last"] == pytest.approx(6 * 2e-3 + moved)
        assert found["torch.compile channels_last"] < found["eager channels_last"]
        other = ops.expected(made, cases["bn_stats"], torch.float32)
        assert other.keys() >= {"eager NCHW", "eager channels_last", "torch.compile channels_last"}
        made.device = None
        assert ops.expected(made, cases["shuffle_concat"], torch.float32) == {}


def test_rows_of_the_backbone(measure, benchmark_module, tmp_path: Path) -> None:
    backbone, made = benchmark_module("backbone"), report(measure, benchmark_module, tmp_path)
    model, x = benchmark_module("device_model"), torch.empty(2, 3, 64, 96)
    names = ["eager NCHW", "folded BN channels_last", "torch.compile folded BN"]
    found = backbone.expected(made, "evaluation", x, [*names, "torch.compile eager"])
    assert found.keys() == {"ours", "eager NCHW", "torch.compile eager"}
    kernels = [model.Kernel(*row) for row in OURS]
    assert found["ours"] == model.device_ms(kernels, made.device, 2 * 64 * 96)
    made.counts = None
    assert backbone.expected(made, "evaluation", x, names) == {}


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ("", [(1, 320, 480), (1, 800, 1216), (2, 800, 1216)]),
        ("--quick", [(1, 320, 480)]),
        ("--quick --sizes 800x1216", [(1, 800, 1216), (2, 800, 1216)]),
        ("--sizes 800x1216 320x480 --batches 3", [(3, 800, 1216), (3, 320, 480)]),
    ],
)
def test_sizes_of_the_backbone(
    benchmark_module, monkeypatch, tmp_path: Path, options: str, shapes: list[tuple[int, ...]]
) -> None:
    backbone = benchmark_module("backbone")
    seen = []

    def compare_all(report, x, size, threads, args) -> None:
        assert size == f"{x.shape[2]}x{x.shape[3]}"
        seen.append((x.shape[0], *x.shape[2:], threads))

    monkeypatch.setattr(backbone, "compare_all", compare_all)
    monkeypatch.setattr(backbone.measure.Report, "roofline", lambda report, threads: {})
    monkeypatch.setattr(backbone.torch, "set_num_threads", lambda threads: None)
    always = ["--page-faults", "--output", str(tmp_path / "rows.json")]
    monkeypatch.setattr(
        "sys.argv", ["backbone.py", *always, *options.split(), "--threads", "1", "2"]
    )
    backbone.main()
    assert seen == [(*shape, threads) for threads in (1, 2) for shape in shapes]


def test_rows_have_what_is_expected(measure, benchmark_module, tmp_path: Path) -> None:
    made = report(measure, benchmark_module, tmp_path)
    ways = {"eager": lambda: None, "other": lambda: None}
    made.compare("a case", 1, lambda: None, ways, 3, {"ours": 0.25, "eager": 0.5})
    made.failed("another", RuntimeError("no\nmore"))
    records = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    first, second = records[1:3]
    assert (first["ours_model_ms"], first["baseline_model_ms"]) == (0.25, 0.5)
    assert second["ours_model_ms"] == 0.25 and "baseline_model_ms" not in second
    assert records[-1] == {"bench": "made up", "case": "another", "failed": "no"}
    (tmp_path / "rows.json").unlink()
    made.compare("a case", 1, lambda: None, ways, 3)
    assert "ours_model_ms" not in (tmp_path / "rows.json").read_text()


def test_processor_time_leaves_out_what_others_had(measure) -> None:
    for clock, least, most in ((time.perf_counter, 50, 1000), (time.process_time, 0, 40)):
        (found,), _ = measure.interleaved([lambda: time.sleep(0.05)], 4, "cpu", clock)
        assert least <= found < most
