"""Calls into a library of emulated CUDA launchers, and what the checks of all groups share."""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from tests.ops.compare import TOLERANCE, channels_last

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SHAPES = [(1, 1, 1, 1), (2, 5, 7, 9), (1, 40, 9, 6), (1, 64, 5, 11)]


class Library:
    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)

    def __call__(self, name: str, *args: object) -> None:
        getattr(self.library, f"emu_{name}")(*map(_argument, args))


def _argument(value: object) -> object:
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, list):
        return (ctypes.c_void_p * len(value))(*[None if v is None else v.data_ptr() for v in value])
    if isinstance(value, torch.dtype):
        return DTYPES[value]
    return ctypes.c_int64(value) if isinstance(value, Long) else int(value)


class Long(int):
    """Marks an int64_t argument."""


def tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE[dtype]


def maps(shape: tuple, dtype: torch.dtype, n: int = 1) -> list[Tensor]:
    return [channels_last(torch.randn(shape)).to(dtype) for _ in range(n)]


def vectors(c: int, n: int) -> list[Tensor]:
    return [torch.randn(c) for _ in range(n)]


def pixels(x: Tensor) -> Long:
    return Long(x.shape[0] * x.shape[2] * x.shape[3])


def run(*checks: Callable[[Library, torch.dtype, tuple], None]) -> None:
    """Runs the checks of a group on the library named on the command line."""
    lib = Library(sys.argv[1])
    torch.set_num_threads(1)
    for seed, (check, dtype) in enumerate(itertools.product(checks, DTYPES)):
        shapes = SHAPES if dtype == torch.float32 else SHAPES[2:3]
        for shape in shapes:
            torch.manual_seed(seed)
            lib("seed", seed)
            check(lib, dtype, shape)
        print(f"{check.__name__} {dtype}: ok", flush=True)
