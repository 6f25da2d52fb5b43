"""The vector helpers of csrc/cpu/simd/vec.h as GCC 11 and as later compilers see them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCE = """
#include <cstdint>
#define DETNAS_VEC_BYTES BYTES
#include "cpu/simd/vec.h"
template <typename T>
void split(const T* in, T* out) {
  constexpr int64_t size = Vec<T>::size;
  store(out, every_second<T, false>(load(in), load(in + size)));
  store(out + size, every_second<T, true>(load(in), load(in + size)));
}
extern "C" void split_float(const float* in, float* out) { split(in, out); }
extern "C" void split_double(const double* in, double* out) { split(in, out); }
"""
# GCC 11 has no __builtin_shufflevector; its name is made one that nobody knows.
GCC_11 = ("-U__GNUC__", "-D__GNUC__=11", "-D__builtin_shufflevector=missing")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("flags", [(), GCC_11], ids=["gcc", "gcc 11"])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_every_second_lane(tmp_path: Path, size: int, flags: tuple[str, ...]) -> None:
    source, library = tmp_path / "split.cpp", tmp_path / "split.so"
    source.write_text(SOURCE)
    command = ["g++", "-std=c++17", "-O1", "-w", f"-DBYTES={size}", f"-I{CSRC}", *flags]
    subprocess.run([*command, "-shared", "-fPIC", source, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    kinds = ((loaded.split_float, ctypes.c_float), (loaded.split_double, ctypes.c_double))
    for split, number in kinds:
        lanes = 2 * size // ctypes.sizeof(number)
        values, found = (number * lanes)(*range(lanes)), (number * lanes)()
        split(values, found)
        assert list(found) == [*range(0, lanes, 2), *range(1, lanes, 2)]
