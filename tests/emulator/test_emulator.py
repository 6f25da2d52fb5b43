"""The operators for CUDA on the host emulator, under AddressSanitizer and UBSan."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from tests.ops.sanitized import EMULATED, SANITIZERS, compiler, run_checked

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent


def compile_library(target: Path, source: Path) -> None:
    include = Path(torch.__file__).parent / "include"
    command = ["g++", "-std=c++20", "-O1", "-g", "-fPIC", "-shared", *SANITIZERS]
    command += ["-DDETNAS_EMULATE", "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}"]
    command += [f"-I{HERE}", f"-I{include}", str(source), "-o", str(target)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def library() -> str:
    """The operators for CUDA, their kernels emulated, in the place of detnas_d2._C."""
    if compiler() is None:
        pytest.skip("needs g++ on x86-64")
    return str(EMULATED.build())


def test_random_cases_equal_their_references(library: str) -> None:
    result = run_checked("tests/ops/fuzz.py", library, "12")
    assert result.returncode == 0, result.stdout + result.stderr[-6000:]
    assert "of 11 operators: ok" in result.stdout


def test_checks_for_a_gpu_pass(library: str) -> None:
    result = run_checked("tests/emulator/run_checks.py", library)
    assert result.returncode == 0, result.stdout + result.stderr[-6000:]


def test_wrong_arguments_are_refused(library: str) -> None:
    result = run_checked("-m", "tests.ops.bad_arguments", library)
    assert result.returncode == 0, result.stdout + result.stderr[-6000:]
    assert "refused: ok" in result.stdout


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
    "too large a block": ("out[threadIdx.x % 64] = 0.f;", "no GPU launches"),
}
THREADS = {"too large a block": 1025}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel for each fault, in a library that is compiled once."""
    if compiler() is None:
        pytest.skip("needs g++ on x86-64")
    folder = tmp_path_factory.mktemp("faults")
    kernels = [
        f"__global__ void kernel_{number}(float* out) {{ {body} }}\n"
        f'extern "C" void run_{number}(float* out) {{\n'
        f"  auto k = &kernel_{number};\n"
        f"  const dim3 block({THREADS.get(fault, 32)});\n"
        "  DETNAS_LAUNCH(k, dim3(1), block, 256 * sizeof(float), 0, out);\n}\n"
        for number, (fault, (body, _)) in enumerate(FAULTS.items())
    ]
    source, target = folder / "faults.cpp", folder / "faults.so"
    source.write_text("\n".join(['#include "cuda/platform.cuh"', *kernels]))
    compile_library(target, source)
    return target


@pytest.mark.parametrize("fault", FAULTS)
def test_emulator_finds(fault: str, faults: Path) -> None:
    script = (
        "import ctypes, math\n"
        f"library = ctypes.CDLL({str(faults)!r})\n"
        "out = (ctypes.c_float * 64)()\n"
        f"library.run_{list(FAULTS).index(fault)}(out)\n"
        "if any(math.isnan(v) for v in out): raise SystemExit('not a number')\n"
    )
    result = run_checked("-c", script)
    assert result.returncode != 0
    assert FAULTS[fault][1] in result.stderr, result.stderr[-2000:]
