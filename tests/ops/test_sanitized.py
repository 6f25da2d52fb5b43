"""The CPU operators under AddressSanitizer and UBSan, on random odd shapes."""

from __future__ import annotations

import pytest

from tests.ops import sanitized


@pytest.fixture(scope="module")
def library() -> str:
    if sanitized.compiler() is None:
        pytest.skip("needs g++ on x86-64")
    return str(sanitized.CPU.build())


def test_wrong_arguments_are_refused(library: str) -> None:
    result = sanitized.run_checked("-m", "tests.ops.bad_arguments", library)
    assert result.returncode == 0, result.stdout + result.stderr[-6000:]
    assert "refused: ok" in result.stdout


def test_operators_are_clean(library: str) -> None:
    result = sanitized.run_checked("tests/ops/fuzz.py", library, "20")
    assert result.returncode == 0, result.stdout + result.stderr[-6000:]
    assert "of 14 operators: ok" in result.stdout
