"""What nvcc makes of the products on tensor cores: registers, and how they read shared memory.

Needs nvcc and cuobjdump (which Triton has too), no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ARCH = "sm_90"
REGISTERS, THREADS = 65536, 512  # of a multiprocessor: all, and threads that it has to take
PRODUCTS = ("kForward", "kGradX", "kGradWeight")
BLOCKS = {(64, 64): 256, (128, 64): 256, (128, 128): 512, (128, 160): 512}  # threads by results
FORMS = [  # product, whether the first operand is ready, rows, columns
    *(("kForward", ready, *block) for ready in (False, True) for block in BLOCKS),
    *(("kGradX", True, *block) for block in BLOCKS),
    ("kGradWeight", True, 64, 64),
]
TYPES = {"c10::BFloat16": 8, "float": 4}  # elements in 16 bytes; float16 is as bfloat16


class Name(NamedTuple):
    dtype: str
    product: str
    ready: bool
    rows: int
    cols: int


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
    shared = "F::kBlocks * (F::kShared + 1024) <= 228 * 1024"  # of a multiprocessor
    lines.append(f"template <typename F> constexpr bool fits = {shared};")
    for dtype, wide in TYPES.items():
        for product, ready, *block in FORMS:
            form = f"{dtype}, {wide}, Product::{product}, {str(ready).lower()}, "
            form += ", ".join(map(str, block))
            lines += [
                f"template __global__ void detnas::cuda::gemm_kernel<{form}>(Gemm<{dtype}>);",
                f"static_assert(fits<Shape<{form}>>);",
            ]
    return "\n".join(lines) + "\n"


def name_of(symbol: str) -> Name:
    """Of a kernel with this mangled name."""
    pattern = r"gemm_kernelI(?:N3c10\d+(\w+?)E|f)Li\d+ELNS0_7ProductE(\d)ELb(\d)ELi(\d+)ELi(\d+)E"
    dtype, product, ready, rows, cols = re.search(pattern, symbol).groups()
    return Name(dtype or "float", PRODUCTS[int(product)], ready == "1", int(rows), int(cols))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[Name, Kernel]:
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
    expected = {Name(d.removeprefix("c10::"), *form) for d in TYPES for form in FORMS}
    assert set(kernels) == expected


def test_registers(kernels) -> None:
    for name, kernel in kernels.items():
        assert kernel.spilled == 0, f"{name} spills registers"
        threads = BLOCKS[name.rows, name.cols]
        blocks = REGISTERS // (threads * (-(-kernel.registers // 8) * 8))
        assert blocks * threads >= THREADS, f"{name}: {kernel.registers} registers, {blocks} blocks"


def test_shared_memory_is_read_as_such(kernels) -> None:
    for name, kernel in kernels.items():
        of = kernel.code
        assert of["HMMA"] >= 8, f"{name} multiplies without tensor cores"
        # By generic addresses: nvcc does not see that memory is shared, and takes longer ways.
        assert of["LD"] == of["ST"] == 0, f"{name}: {of}"
        if name[:2] != ("float", "kGradWeight"):  # 4 bytes that no ldmatrix transposes
            assert of["LDSM"] > 0, f"{name} does not use ldmatrix"
