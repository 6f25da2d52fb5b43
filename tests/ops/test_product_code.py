"""What nvcc makes of the products on tensor cores: registers, and how they read shared memory.

Needs nvcc and cuobjdump (which Triton has too), no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ARCH = "sm_90"
REGISTERS, THREADS, BLOCKS = 65536, 256, 2  # of a multiprocessor, of a block, blocks wanted
PRODUCTS = ("kForward", "kGradX", "kGradWeight")
ROWS = {"kForward": (64, 128), "kGradX": (64, 128), "kGradWeight": (64,)}
TYPES = {"c10::BFloat16": 8, "c10::Half": 8, "float": 4}  # elements in 16 bytes

pytestmark = pytest.mark.xdist_group("nvcc")


@dataclass
class Kernel:
    registers: int
    spilled: int  # bytes stored and loaded
    code: Counter = field(default_factory=Counter)  # instructions, without what follows a dot


def toolkits() -> list[Path]:
    """Folders in which programs of a CUDA toolkit may lie, besides those on PATH."""
    homes = [os.getenv("CUDA_HOME"), os.getenv("CUDA_PATH"), "/usr/local/cuda"]
    found = [Path(home) / "bin" for home in homes if home]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    return found


def program(name: str) -> str:
    candidates = [shutil.which(name), *(str(folder / name) for folder in toolkits())]
    found = next((c for c in candidates if c and os.access(c, os.X_OK)), None)
    if found is None:
        pytest.skip(f"no {name} on PATH, in CUDA_HOME or in Triton")
    return found


def source() -> str:
    lines = ['#include "cuda/pointwise_conv.cuh"', "using namespace detnas::cuda;"]
    for dtype, wide in TYPES.items():
        for product in PRODUCTS:
            for rows in ROWS[product]:
                form = f"{dtype}, {wide}, Product::{product}, {rows}"
                lines += [
                    f"template __global__ void detnas::cuda::gemm_kernel<{form}>(Gemm<{dtype}>);",
                    f"static_assert({BLOCKS} * (Shape<{form}>::kShared + 1024) <= 228 * 1024);",
                ]
    return "\n".join(lines) + "\n"


def name_of(symbol: str) -> tuple[str, str, int] | None:
    """Dtype, product and rows of a kernel with this mangled name."""
    match = re.search(r"gemm_kernelI(N3c10\d+(\w+?)E|f)Li\d+ELNS0_7ProductE(\d)ELi(\d+)E", symbol)
    if match is None:
        return None
    return match[2] or "float", PRODUCTS[int(match[3])], int(match[4])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[tuple[str, str, int], Kernel]:
    """Of every dtype, product and number of rows of a block."""
    nvcc, cuobjdump = program("nvcc"), program("cuobjdump")
    folder = tmp_path_factory.mktemp("products")
    (folder / "products.cu").write_text(source())
    include = Path(torch.__file__).parent / "include"
    command = [nvcc, "-std=c++20", f"-arch={ARCH}", "-O3", "--expt-relaxed-constexpr", "-cubin"]
    command += ["-Xptxas", "-v", f"-I{ROOT / 'csrc'}", f"-I{include}", "products.cu"]
    done = subprocess.run(
        [*command, "-o", "products.cubin"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for part in done.stderr.split("Compiling entry function '")[1:]:
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[name_of(part.split("'")[0])] = Kernel(registers, spilled)
    command = [cuobjdump, "-sass", "products.cubin"]
    listing = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    for part in listing.stdout.split("Function : ")[1:]:
        code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", part)
        found[name_of(part.split()[0])].code = Counter(code)
    return found


def test_every_form_is_compiled(kernels) -> None:
    forms: defaultdict[str, set] = defaultdict(set)
    for dtype, product, rows in kernels:
        forms[dtype].add((product, rows))
    expected = {(product, rows) for product in PRODUCTS for rows in ROWS[product]}
    assert forms == {"BFloat16": expected, "Half": expected, "float": expected}


def test_registers(kernels) -> None:
    for name, kernel in kernels.items():
        assert kernel.spilled == 0, f"{name} spills registers"
        most = REGISTERS // (THREADS * (-(-kernel.registers // 8) * 8))
        assert most >= BLOCKS, f"{name}: {kernel.registers} registers, {most} blocks"


def test_shared_memory_is_read_as_such(kernels) -> None:
    for name, kernel in kernels.items():
        of = kernel.code
        assert of["HMMA"] >= 8, f"{name} multiplies without tensor cores"
        # By generic addresses: nvcc does not see that memory is shared, and takes longer ways.
        assert of["LD"] == of["ST"] == 0, f"{name}: {of}"
        if name[:2] != ("float", "kGradWeight"):  # 4 bytes that no ldmatrix transposes
            assert of["LDSM"] > 0, f"{name} does not use ldmatrix"
