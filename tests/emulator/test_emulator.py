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
    assert "of 12 operators: ok" in result.stdout


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
    "products of what another warp has not written": (
        """
        DETNAS_SHARED(c10::Half, shared);
        for (int i = 0; i < 4; ++i) shared[4 * threadIdx.x + i] = 1;
        uint32_t a[4];
        float sums[4] = {};
        detnas::cuda::load_fragments<c10::Half, true, 16>(a, shared, 0, 0);
        detnas::cuda::mma<c10::Half>(sums, a, a[0], a[2]);
        out[threadIdx.x] = sums[0] + sums[2];
        """,
        "not a number",
    ),
    "matrix at a misaligned address": (
        """
        DETNAS_SHARED(c10::Half, shared);
        uint32_t a[4];
        detnas::cuda::load_fragments<c10::Half, true, 16>(a, shared + 4, 0, 0);
        """,
        "misaligned address",
    ),
    "copies that nobody waits for": (
        """
        DETNAS_SHARED(float, shared);
        detnas::cuda::copy_async(shared + 4 * threadIdx.x, out, true);
        out[threadIdx.x] = 0.f;
        """,
        "ended without its copies",
    ),
    "copies that others wait for": (
        """
        DETNAS_SHARED(float, shared);
        detnas::cuda::copy_async(shared + 4 * threadIdx.x, out, false);
        detnas::cuda::wait_copies();
        out[threadIdx.x] = shared[4 * ((threadIdx.x + 1) % blockDim.x)];
        """,
        "not a number",
    ),
    "copy to a misaligned address": (
        """
        DETNAS_SHARED(float, shared);
        detnas::cuda::copy_async(shared + 4 * threadIdx.x + 1, out, true);
        detnas::cuda::wait_copies();
        """,
        "copy at a misaligned address",
    ),
    "lanes at different instructions": (
        "if (threadIdx.x % 2) __syncwarp(); else __shfl_xor_sync(~0u, 1.f, 2); out[0] = 0.f;",
        "lanes of a warp at different instructions",
    ),
    "part of a warp": ("if (threadIdx.x != 3) __syncwarp(); out[0] = 0.f;", "31 for their warp"),
    "barrier in a branch": ("if (threadIdx.x == 0) __syncthreads(); out[0] = 0.f;", "barrier"),
    "too large a block": ("out[threadIdx.x % 64] = 0.f;", "no GPU launches"),
}
THREADS = {"too large a block": 1025, "products of what another warp has not written": 64}


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
    headers = [f'#include "cuda/{name}.cuh"' for name in ("async_copy", "tensor_core")]
    source.write_text("\n".join([*headers, *kernels]))
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
