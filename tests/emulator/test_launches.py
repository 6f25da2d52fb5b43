"""What the operators for CUDA launch, counted on the emulator by ``benchmarks/launches.py``.

A figure that grows is a regression of time on a GPU; one that shrinks is to be written here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.sanitized import compiler

ROOT = Path(__file__).resolve().parents[2]
GRADIENT = "{}, its gradient"

FORWARDS = {
    "recalibration": 109,
    "recalibration of 10 batches": 119,  # ten convolutions of images, and their maps as one
    "training": 115,
    "evaluation": 53,
}
MIB = {"recalibration": 162, "training": 162, "evaluation": 104}  # of maps in float32
# Multiply-adds of depthwise convolutions: in evaluation those of the last stage are made twice.
DEPTHWISE = {"recalibration": 0.108e9, "training": 0.108e9, "evaluation": 0.115e9}
OPS = {
    "bn_stats": 1,
    "bn_stats of 8 maps": 1,
    "bn_stats_fold": 1,
    "bn_fold": 1,
    "pointwise_conv with statistics": 1,
    "pointwise_conv_bn": 1,
    "pointwise_conv with bias and ReLU": 1,
    "depthwise_conv with statistics": 1,
    "depthwise_conv_bn": 1,
    "depthwise_conv with bias": 1,
    "mixed_depthwise of 8 with statistics": 1,
    "shuffle_concat": 1,
    "mixed_sum of 8": 1,
    "shuffle_block, 5x5, stride 1": 3,
    "shuffle_block, 5x5, stride 2": 3,
    "shuffle_block of a chain, 5x5, stride 1": 2,
    "shuffle_block of a chain, 5x5, stride 2": 3,
    "shuffle_block of a chain, xception, stride 1": 3,
    "shuffle_block of a chain, xception, stride 2": 4,
}


def counted(*arguments: str) -> dict:
    command = [sys.executable, "benchmarks/launches.py", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found() -> dict:
    if compiler() is None:
        pytest.skip("needs g++ on x86-64")
    return counted()


def test_forwards_of_the_300m_backbone(found: dict) -> None:
    assert {name: found[name] for name in FORWARDS} == FORWARDS


def test_calls(found: dict) -> None:
    assert {name: found["ops"][name] for name in OPS} == OPS


def test_kernels_of_the_model(found: dict) -> None:
    """What ``benchmarks/device_model.py`` is given: the same launches, and what the backbone moves
    and multiplies (benchmarks/results/operators.md)."""
    pixels = 320 * 480
    for name in ("recalibration", "training", "evaluation"):
        kernels = found["kernels"]["ours"][name]
        columns = (sum(column) for column in zip(*kernels, strict=True))
        launches, fixed, elements, products, depthwise = columns
        assert launches == FORWARDS[name]
        assert (products + depthwise) * pixels == pytest.approx(0.885e9, rel=0.01)
        assert depthwise * pixels == pytest.approx(DEPTHWISE[name], rel=0.01)
        assert elements * pixels * 4 == pytest.approx(MIB[name] * 2**20, rel=0.01)
        assert 1e6 < fixed < 1e7  # weights
