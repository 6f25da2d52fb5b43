"""Statistics merged by the last block of a launch are those of separate launches, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.emulator.test_emulator import HERE, compile_library
from tests.ops.sanitized import compiler, run_checked

# Blocks of kernels as they are: lanes, rows of threads, channels of a slab.
BLOCKS = [(32, 8, 32), (256, 1, 64), (64, 2, 512), (3, 42, 12), (1, 64, 1), (5, 25, 40)]
ROWS = (1, 3, 5, 40)

SCRIPT = """
import ctypes, json, random, sys
library = ctypes.CDLL(sys.argv[1])

def array(kind, values):
    return (kind * len(values))(*values)

r = random.Random(0)
f, d, u = ctypes.c_float, ctypes.c_double, ctypes.c_uint
blocks, rows_of = map(json.loads, sys.argv[2:])
cases = 0
for lanes, rows_of_threads, slab in blocks:
    for rows in rows_of:
        channels = r.choice((1, slab, slab + 1, 2 * slab + 7))
        counts = [r.choice((1, 2, 7, 128))] + [r.choice((0, 1, 5, 128)) for _ in range(rows - 1)]
        mean = [r.gauss(3, 1) for _ in range(rows * channels)]
        if r.random() < 0.3:
            mean[r.randrange(len(mean))] = r.choice((float("inf"), float("nan")))
        m2 = array(f, [r.random() * 9 for _ in mean])
        mean, count = array(f, mean), array(f, counts)
        affine = [array(f, [r.gauss(0, 1) for _ in range(channels)]) for _ in range(2)]
        if r.random() < 0.3:
            affine = [None, None]
        expected = array(f, [0.0] * 4 * channels)
        n = d(sum(counts))
        library.separate(mean, m2, count, rows, channels, expected, n, *affine, d(1e-3))
        slabs = -(-channels // slab)
        tickets = array(u, [0] * slabs)
        for _ in range(2):  # blocks and threads come in another order each time
            out, total = array(f, [0.0] * 4 * channels), d(-1)
            scratch = array(f, [0.0] * 2 * rows * channels)
            library.in_last_block(
                mean, m2, count, rows, channels, slab, lanes, rows_of_threads, scratch, tickets,
                out, ctypes.byref(total), *affine, d(1e-3),
            )
            assert not any(tickets), "tickets are not zero again"
            assert total.value == sum(counts), (total.value, sum(counts))
            same = [a == e or (a != a and e != e) for a, e in zip(out, expected)]
            assert all(same), (lanes, rows_of_threads, slab, rows, channels, same.index(False))
            cases += 1
print(cases, "cases: ok")
"""


def test_the_last_block_gives_the_results_of_separate_launches(tmp_path: Path) -> None:
    if compiler() is None:
        pytest.skip("needs g++ on x86-64")
    library = tmp_path / "last_block.so"
    compile_library(library, HERE / "last_block.cpp")
    result = run_checked("-c", SCRIPT, str(library), json.dumps(BLOCKS), json.dumps(ROWS))
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert f"{2 * len(BLOCKS) * len(ROWS)} cases: ok" in result.stdout
