"""Depthwise convolutions by tiles of 16 bits have the bits of those by tiles of floats: the same
sums in the same order, whatever is pending, statistics included."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.test_emulator import HERE, compile_library
from tests.ops.sanitized import compiler, run_checked

CASES = 40
SCRIPT = """
import ctypes, sys
found = ctypes.CDLL(sys.argv[1]).first_that_differs(0, int(sys.argv[2]))
raise SystemExit(f"case {found} differs" if found >= 0 else None)
"""


def test_pairs_of_channels_give_the_bits_of_floats(tmp_path: Path) -> None:
    if compiler() is None:
        pytest.skip("needs g++ on x86-64")
    library = tmp_path / "depthwise_pairs.so"
    compile_library(library, HERE / "depthwise_pairs.cpp")
    result = run_checked("-c", SCRIPT, str(library), str(CASES))
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
