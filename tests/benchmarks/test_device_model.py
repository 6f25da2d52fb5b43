"""The model of device times: by hand, and the table that its command prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def model(benchmark_module):
    return benchmark_module("device_model")


def device(model, **fields: float):
    values = {"bandwidth": 1e12, "flops": 1e14, "vector_flops": 1e13, **fields}
    values |= {"graph_us": 2.0, "launch_us": 5.0}
    return model.Device("made up", source="nobody", **values)


def test_a_kernel_takes_bytes_or_multiply_adds(model) -> None:
    gpu = device(model)
    assert model.kernel_ms(gpu, 1e9, 0) == pytest.approx(1.0)
    assert model.kernel_ms(gpu, 1e9, 49e9) == pytest.approx(1.0)
    assert model.kernel_ms(gpu, 1e9, 100e9) == pytest.approx(2.0)
    assert model.kernel_ms(gpu, 0, 0) == 0
    # Of depthwise convolutions, on other cores at the same time.
    assert model.kernel_ms(gpu, 1e9, 100e9, 9e9) == pytest.approx(2.0)
    assert model.kernel_ms(gpu, 1e9, 100e9, 15e9) == pytest.approx(3.0)


def test_a_forward_is_its_launches_and_their_work(model) -> None:
    gpu = device(model)
    # 10 launches move 1,000 + 50 p elements together, 3 launches multiply.
    kernels = [model.Kernel(10, 1000, 50, 0), model.Kernel(3, 0, 1, 1000)]
    pixels = 10_000
    moved = 2 * (1000 + 50 * pixels) / 1e12 * 1e3
    multiplied = 2 * 1000 * pixels / 1e14 * 1e3
    assert model.device_ms(kernels, gpu, pixels) == pytest.approx(13 * 2e-3 + moved + multiplied)
    assert model.device_ms(kernels, gpu, pixels, 4) == pytest.approx(
        13 * 2e-3 + 2 * moved + multiplied
    )
    assert model.device_ms([], gpu, pixels) == 0
    depthwise = [model.Kernel(1, 0, 1, 0, 1000)]
    assert model.device_ms(depthwise, gpu, pixels) == pytest.approx(2e-3 + 10 * multiplied)
    # From Python the host is later for small images, the device for large ones.
    assert model.call_ms(kernels, gpu, pixels) == pytest.approx(13 * 5e-3)
    large = 10_000 * pixels
    assert model.call_ms(kernels, gpu, large) == model.device_ms(kernels, gpu, large) > 1


def test_an_operator(model) -> None:
    assert model.operator_ms(device(model), 3, 2e9, 0) == pytest.approx(2.006)


def test_devices(model) -> None:
    assert model.published("NVIDIA H100 80GB HBM3").name == "H100"
    assert model.published("NVIDIA H200").bandwidth == 4.8e12
    assert model.published("Quadro") is None
    assert all("datasheet" in gpu.source for gpu in model.DEVICES.values())
    limits = {
        "copy_gb_per_s": 2900.0, "multiply_adds_g_per_s": 2e4,
        "bfloat16_multiply_adds_g_per_s": 3e5, "graph_launch_us": 1.5, "launch_us": 4.0,
    }  # fmt: skip
    gpu = model.measured("some GPU", limits)
    assert (gpu.bandwidth, gpu.flops, gpu.vector_flops) == (2.9e12, 6e14, 4e13)
    assert (gpu.graph_us, gpu.launch_us) == (1.5, 4.0)
    with pytest.raises(KeyError):
        model.measured("a CPU", {"copy_gb_per_s": 20.0})


COUNTS = {
    "ours": {"evaluation": [[100, 0, 10, 0, 0], [5, 1000, 1, 100, 10]]},
    "eager": {"evaluation": [[300, 0, 30, 0, 0], [5, 1000, 1, 100, 10]]},
    "torch.compile": {"evaluation": [[150, 0, 20, 0, 0], [5, 1000, 1, 100, 10]]},
}


def test_table(benchmark_module, model) -> None:
    command = benchmark_module("model")
    records = command.expected(COUNTS, model.DEVICES["H100"])
    assert [(r["size"], r["batch"]) for r in records] == [
        (size, batch) for size in ("320x480", "800x1216") for batch in (1, 2, 16)
    ]
    first, last = records[0], records[-1]
    assert [first[way]["launches"] for way in ("ours", "eager", "torch.compile")] == [105, 305, 155]
    kernels = [model.Kernel(*row) for row in COUNTS["ours"]["evaluation"]]
    assert last["ours"]["graph_ms"] == round(
        model.device_ms(kernels, model.DEVICES["H100"], 16 * 800 * 1216), 3
    )
    assert first["eager"]["calls_ms"] == pytest.approx(305 * 6e-3, abs=1e-3)  # the host's
    text = command.table(records, model.DEVICES["H100"])
    assert "a model and no measurement" in text and text.count("\n| evaluation |") == 6
    ratio = first["eager"]["graph_ms"] / first["ours"]["graph_ms"]
    assert f"| {first['eager']['graph_ms']:.2f} ({ratio:.1f}x) |" in text


def test_command(benchmark_module, monkeypatch, tmp_path: Path, capsys) -> None:
    command = benchmark_module("model")
    counts = tmp_path / "launches.json"
    counts.write_text(json.dumps({"kernels": COUNTS}))
    arguments = ["model.py", "--counts", str(counts)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json", "--device", "A100", "H200"])
    command.main()
    found = json.loads(capsys.readouterr().out)["model"]
    assert found.keys() == {"A100", "H200"} and len(found["A100"]) == 6
    assert found["A100"][5]["ours"]["graph_ms"] > found["H200"][5]["ours"]["graph_ms"]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
    assert capsys.readouterr().out.count("no measurement") == 3
