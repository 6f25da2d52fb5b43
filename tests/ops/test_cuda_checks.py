"""The checks for a GPU check the CPU's operators as well: that they run, and that they can fail."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from detnas_d2 import ops
from tests.ops import cuda_checks, cuda_contexts


@pytest.fixture
def quick(monkeypatch) -> None:
    """One small shape in float32 and bfloat16."""
    monkeypatch.setattr(cuda_checks, "SMALL", [(1, 6, 7, 9)])
    monkeypatch.setattr(cuda_checks, "TOLERANCE", {torch.float32: 5e-5, torch.bfloat16: 3e-2})
    monkeypatch.setattr(sys, "argv", ["cuda_checks.py", "--small", "--device", "cpu"])


def test_operators_pass(quick: None, capsys) -> None:
    cuda_checks.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(cuda_checks.CHECKS) + 7
    assert all(line.endswith(": ok") for line in lines)


def test_a_wrong_operator_is_found(quick: None, capsys, monkeypatch) -> None:
    mixed_sum = ops.mixed_sum

    def wrong(*args: object) -> Tensor:
        return mixed_sum(*args) * 1.1

    monkeypatch.setattr(ops, "mixed_sum", wrong)
    monkeypatch.setattr(cuda_checks, "CHECKS", (cuda_checks.check_mixed_sums,))
    monkeypatch.setattr(cuda_contexts, "run", lambda device, small: 0)
    with pytest.raises(SystemExit, match="2 checks failed"):
        cuda_checks.main()
    assert "mixed_sum, Setup(device='cpu'" in capsys.readouterr().out
