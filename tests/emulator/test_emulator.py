"""The CUDA kernels on the host emulator, under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.ops.sanitized import SANITIZERS, run_checked

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "emulator"
GROUPS = ("depthwise", "pixelwise", "pointwise")
HEADERS = [*HERE.glob("*.h"), *(ROOT / "csrc" / "cuda").glob("*.cuh")]


def compile_library(target: Path, source: Path) -> None:
    include = Path(torch.__file__).parent / "include"
    command = ["g++", "-std=c++20", "-O1", "-g", "-fPIC", "-shared", *SANITIZERS]
    command += ["-DDETNAS_EMULATE", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    command += [f"-I{HERE}", f"-I{include}", str(source), "-o", str(target)]
    subprocess.run(command, check=True)


def library(group: str) -> Path:
    """The emulated kernels of a group, compiled anew where a source is newer."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    target, source = BUILD / f"lib{group}.so", HERE / f"emulated_{group}.cpp"
    newest = max(s.stat().st_mtime for s in [source, *HEADERS])
    if not target.exists() or newest > target.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        compile_library(partial, source)
        os.replace(partial, target)
    return target


@pytest.mark.parametrize("group", GROUPS)
def test_kernels_equal_their_references(group: str) -> None:
    result = run_checked(f"tests/emulator/checks_{group}.py", str(library(group)))
    assert result.returncode == 0, result.stdout + result.stderr[-6000:]
    checks = len(
        re.findall(r"^def check_", (HERE / f"checks_{group}.py").read_text(), re.MULTILINE)
    )
    assert result.stdout.count(": ok") == 3 * checks


FAULTS = {
    "missing barrier": (
        """
        DETNAS_SHARED(float, shared);
        shared[threadIdx.x] = static_cast<float>(threadIdx.x);
        out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
        """,
        "not a number",
    ),
    "shared memory out of bounds": (
        "DETNAS_SHARED(float, shared); shared[threadIdx.x + 225] = 1.f; out[threadIdx.x] = 0.f;",
        "heap-buffer-overflow",
    ),
    "misaligned vector load": (
        """
        const auto p = *reinterpret_cast<const detnas::cuda::Pack<float, 4>*>(out + 1);
        out[0] = p.lane[0];
        """,
        "misaligned address",
    ),
    "products read before a barrier": (
        """
        namespace wmma = nvcuda::wmma;
        DETNAS_SHARED(float, shared);
        wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums;
        wmma::fill_fragment(sums, static_cast<float>(threadIdx.x + 1));
        wmma::store_matrix_sync(shared, sums, 16, wmma::mem_row_major);
        out[threadIdx.x] = shared[threadIdx.x];
        """,
        "not a number",
    ),
    "matrix at a misaligned address": (
        """
        namespace wmma = nvcuda::wmma;
        DETNAS_SHARED(c10::Half, shared);
        wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> a;
        wmma::load_matrix_sync(a, shared + 8, 16);
        """,
        "misaligned address",
    ),
    "barrier in a branch": ("if (threadIdx.x == 0) __syncthreads(); out[0] = 0.f;", "barrier"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_emulator_finds(fault: str, tmp_path: Path) -> None:
    body, message = FAULTS[fault]
    source, target = tmp_path / "fault.cpp", tmp_path / "fault.so"
    source.write_text(
        '#include "cuda/platform.cuh"\n'
        f"__global__ void kernel(float* out) {{ {body} }}\n"
        'extern "C" void run(float* out) {\n'
        "  auto k = &kernel;\n"
        "  DETNAS_LAUNCH(k, dim3(1), dim3(32), 256 * sizeof(float), 0, out);\n}\n"
    )
    compile_library(target, source)
    script = (
        "import ctypes, math\n"
        f"library = ctypes.CDLL({str(target)!r})\n"
        "out = (ctypes.c_float * 64)()\n"
        "library.run(out)\n"
        "if any(math.isnan(v) for v in out): raise SystemExit('not a number')\n"
    )
    result = run_checked("-c", script)
    assert result.returncode != 0
    assert message in result.stderr, result.stderr[-2000:]
