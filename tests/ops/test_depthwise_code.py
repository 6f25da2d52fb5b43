"""What nvcc makes of forward depthwise convolutions of 16-bit maps: registers, asynchronous copies.

Needs nvcc and cuobjdump (which Triton has too), no GPU.
"""

from __future__ import annotations

import re

import pytest

from tests.ops.device_code import Kernel, compiled

THREADS, BLOCKS = 128, 4  # of a block; blocks that a multiprocessor has to take
SIZES = (3, 5, 7)
# Shared memory that as many blocks can have, 1 KB each besides it; k 7 has 3 blocks on an A100.
A100, H100 = (size * 1024 // BLOCKS - 1024 for size in (164, 228))


def source() -> str:
    lines = [
        "#include <c10/util/BFloat16.h>",
        '#include "cuda/depthwise_conv.cuh"',
        "using namespace detnas::cuda;",
        "template <class T, class P = PairTile<T>>",
        "constexpr int two = 2 * (P::kWeights + 2 * P::kSize);",
        f"static_assert(two<LargeTile<5>> <= {A100} && two<LargeTile<7>> <= {H100});",
    ]
    for size in SIZES:
        kernel = f"depthwise_kernel<c10::BFloat16, {size}, false>"
        argument = "const __grid_constant__ Depthwise<c10::BFloat16>"
        lines.append(f"template __global__ void detnas::cuda::{kernel}({argument});")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[int, Kernel]:
    found = compiled(source(), tmp_path_factory.mktemp("depthwise"))
    return {int(re.search(r"ELi(\d)E", symbol)[1]): kernel for symbol, kernel in found.items()}


def test_registers(kernels) -> None:
    assert set(kernels) == set(SIZES)
    for size, kernel in kernels.items():
        assert kernel.spilled == 0, f"k {size} spills registers"
        assert kernel.blocks(THREADS) >= BLOCKS, f"k {size}: {kernel.registers} registers"


def test_tiles_are_copied_while_others_are_multiplied(kernels) -> None:
    for size, kernel in kernels.items():
        of = kernel.code
        assert of["LDGSTS"] > 0, f"k {size} has no asynchronous copies"
        # By generic addresses: nvcc does not see that memory is shared, and takes longer ways.
        assert of["LD"] == of["ST"] == 0, f"k {size}: {of}"
