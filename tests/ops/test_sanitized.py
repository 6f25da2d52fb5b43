"""The CPU operators under AddressSanitizer and UBSan, on random odd shapes."""

from __future__ import annotations

import pytest

from tests.ops import sanitized


def test_operators_are_clean() -> None:
    if sanitized.compiler() is None:
        pytest.skip("needs g++ on x86-64")
    library = sanitized.CPU.build()
    result = sanitized.run_checked("tests/ops/fuzz.py", str(library), "20")
    assert result.returncode == 0, result.stdout + result.stderr[-6000:]
    assert "of 7 operators: ok" in result.stdout
