"""The page about a GPU, from records of its benchmarks that are made up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def row(case: str, baseline: str, ratio: float, **extra: object) -> dict:
    return {
        "bench": "backbone", "case": case, "threads": 1, "baseline": baseline, "ratio": 1.5,
        "ours_ms": 2.0, "baseline_ms": 3.0, "device_ratio": ratio, "ours_device_ms": 0.5,
        "baseline_device_ms": 0.5 * ratio, **extra,
    }  # fmt: skip


RECORDS = [
    {"machine": {"gpu": "NVIDIA H100", "torch": "2.14.1"}, "command": "benchmarks/backbone.py"},
    {"threads": 1, "copy_gb_per_s": 2900.0},
    row("evaluation forward", "eager NCHW", 2.0, ours_model_ms=0.4, baseline_model_ms=0.9),
    row("evaluation forward", "torch.compile eager", 0.8),
    row("evaluation forward", "best (torch.compile eager)", 0.8),
    row("evaluation forward, graphs", "eager NCHW", 1.02),
    {"bench": "backbone", "case": "recalibration, graphs, ours", "failed": "not permitted"},
    {"step": "racecheck", "failed": "exit status 1"},
    {"bench": "backbone", "case": "memory kept", "baseline": "eager", "ratio": 0.6, "ours_mib": 1},
    {"bench": "self_check", "case": "evaluation 5x5", "use": "ops", "ops_ms": 0.1, "modules_ms": 1},
    {
        "bench": "self_check",
        "case": "training 7x7",
        "use": "modules",
        "why": "failed",
    },
]


@pytest.fixture
def verdict(benchmark_module):
    return benchmark_module("verdict")


def test_words(verdict) -> None:
    assert [verdict.verdict(r) for r in (2.0, 1.02, 0.98, 0.5)] == [
        "faster, 2.00x", "even", "even", "slower, 0.50x",
    ]  # fmt: skip


def test_page(verdict) -> None:
    text = verdict.page(RECORDS, "h100.json")
    lines = text.splitlines()
    assert lines[0] == "# Operators on NVIDIA H100"
    assert "3 comparisons: 1 faster, 1 even, 1 slower; 2 failed." in lines
    assert "- recalibration, graphs, ours: not permitted" in lines
    assert "- racecheck: exit status 1" in lines
    assert (
        "| evaluation forward | eager NCHW | faster, 2.00x | 0.500 | 0.400 | 1.000 | 0.900 "
        "| faster, 1.50x |"
    ) in lines
    assert (
        "| evaluation forward | torch.compile eager | slower, 0.80x | 0.500 |  | 0.400 |  "
        "| faster, 1.50x |"
    ) in lines
    assert sum("| even |" in line for line in lines) == 1
    assert "| evaluation 5x5 | ops | ops 0.100, modules 1.000 |  |" in lines
    assert "| training 7x7 | modules |  | failed |" in lines
    assert "memory kept" not in text and "best (" not in text


def test_page_of_a_run_that_ended_early(verdict) -> None:
    text = verdict.page([{"step": "operators", "failed": "exit status 1"}], "x.json")
    assert "0 comparisons: 0 faster, 0 even, 0 slower; 1 failed." in text
    assert "0 comparisons" in verdict.page([], "x.json")


def test_command(verdict, tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "h100.json"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    monkeypatch.setattr(sys, "argv", ["verdict.py", str(path)])
    verdict.main()
    assert (tmp_path / "h100.md").read_text() == verdict.page(RECORDS, "h100.json")
    assert "# Operators on NVIDIA H100" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["{", "[1]", ""])
def test_other_lines_are_refused(verdict, line: str) -> None:
    with pytest.raises(ValueError, match="line 2: expected a JSON object"):
        verdict.read(['{"a": 1}', line])


def test_script_is_bash() -> None:
    subprocess.run(["bash", "-n", ROOT / "benchmarks" / "gpu.sh"], check=True)


def test_script_writes_what_the_page_reads(verdict) -> None:
    """The record of a step that failed, by the script's own function."""
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    (note,) = [line for line in script.splitlines() if line.startswith("note()")]
    command = f'out=/dev/stdout\n{note}\nnote "kernels, at 2 sizes" "exit status 3"'
    done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True)
    (record,) = verdict.read(done.stdout.splitlines())
    assert record == {"step": "kernels, at 2 sizes", "failed": "exit status 3"}
