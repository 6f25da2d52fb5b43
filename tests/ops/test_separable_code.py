"""What nvcc makes of depthwise convolutions with the product behind them.

Needs nvcc and cuobjdump (which Triton has too), no GPU.
"""

from __future__ import annotations

import re

import pytest

from tests.ops.device_code import Kernel, compiled

THREADS = 512  # that a multiprocessor has to take
FORMS = [  # kernel size, stride, pixels and columns of a block, which has four threads for a pixel
    (kernel, *form)
    for kernel in (3, 5, 7)
    for form in ((1, 64, 64), (1, 128, 64), (1, 128, 160), (2, 64, 64), (2, 64, 160))
]
TYPES = ("c10::BFloat16", "float")  # float16 is as bfloat16


def source() -> str:
    lines = ['#include "cuda/separable_conv.cuh"', "using namespace detnas::cuda;"]
    most = "F::kBlocks * (F::kShared.all + 1024) <= 228 * 1024"  # of a multiprocessor
    lines.append(
        f"template <typename F> constexpr bool fits = {most} && F::kShared.all <= 99 * 1024;"
    )
    for dtype in TYPES:
        for form in FORMS:
            name, arguments = ", ".join(map(str, (dtype, *form))), f"Separable<{dtype}>"
            lines += [
                f"template __global__ void detnas::cuda::separable_kernel<{name}>",
                f"(const __grid_constant__ {arguments});",
                f"static_assert(fits<SeparableForm<{name}>>);",
            ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[tuple, Kernel]:
    found = {}
    pattern = r"separable_kernelI(?:N3c10\d+(\w+?)E|f)Li(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E"
    for symbol, kernel in compiled(source(), tmp_path_factory.mktemp("separable")).items():
        dtype, *form = re.search(pattern, symbol).groups()
        found[(dtype or "float", *map(int, form))] = kernel
    return found


def test_every_form_is_compiled(kernels) -> None:
    assert set(kernels) == {(d.removeprefix("c10::"), *form) for d in TYPES for form in FORMS}


def test_registers(kernels) -> None:
    for name, kernel in kernels.items():
        assert kernel.spilled == 0, f"{name} spills registers"
        threads = 4 * name[3]
        blocks = kernel.blocks(threads)
        assert blocks * threads >= THREADS, f"{name}: {kernel.registers} registers, {blocks} blocks"


def test_shared_memory_is_read_as_such(kernels) -> None:
    for name, kernel in kernels.items():
        of = kernel.code
        assert of["HMMA"] >= 8 and of["LDSM"] > 0, f"{name} multiplies without tensor cores: {of}"
        assert of["LDGSTS"] > 0, f"{name} copies through registers: {of}"
        assert of["LD"] == of["ST"] == 0, f"{name}, by generic addresses: {of}"
