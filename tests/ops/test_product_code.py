"""What nvcc makes of the products on tensor cores: registers, and how they read shared memory.

Needs nvcc and cuobjdump (which Triton has too), no GPU.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.ops.device_code import Kernel, compiled

THREADS = 512  # that a multiprocessor has to take
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
    found = compiled(source(), tmp_path_factory.mktemp("products"))
    return {name_of(symbol): kernel for symbol, kernel in found.items()}


def test_every_form_is_compiled(kernels) -> None:
    expected = {Name(d.removeprefix("c10::"), *form) for d in TYPES for form in FORMS}
    assert set(kernels) == expected


def test_registers(kernels) -> None:
    for name, kernel in kernels.items():
        assert kernel.spilled == 0, f"{name} spills registers"
        threads = BLOCKS[name.rows, name.cols]
        blocks = kernel.blocks(threads)
        assert blocks * threads >= THREADS, f"{name}: {kernel.registers} registers, {blocks} blocks"


def test_shared_memory_is_read_as_such(kernels) -> None:
    for name, kernel in kernels.items():
        of = kernel.code
        assert of["HMMA"] >= 8, f"{name} multiplies without tensor cores"
        # By generic addresses: nvcc does not see that memory is shared, and takes longer ways.
        assert of["LD"] == of["ST"] == 0, f"{name}: {of}"
        if name[:2] != ("float", "kGradWeight"):  # 4 bytes that no ldmatrix transposes
            assert of["LDSM"] > 0, f"{name} does not use ldmatrix"
