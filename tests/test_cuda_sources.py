"""What a source of the CUDA operators makes nvcc read and compile: what a build waits for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
CUDA = CSRC / "cuda"
DTYPES = {"float": "float", "half": "c10::Half", "bfloat16": "c10::BFloat16"}
OF_A_DTYPE = sorted(p for p in CUDA.glob("*.cu") if p.stem.rpartition("_")[2] in DTYPES)
KERNELS_OF = re.compile(
    r"^DETNAS_\w+_KERNELS\((\w*), ?([\w:]+)\)$|^DETNAS_\w+_KERNELS\(([\w:]+)\)$"
)


def read(source: Path) -> tuple[set[Path], set[str]]:
    """The files of csrc/ that a source reads, itself among them, and headers from elsewhere."""
    found, outside, left = set(), set(), [source.resolve()]
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        text = file.read_text(encoding="utf-8")
        outside.update(re.findall(r"^#include <(.+)>", text, flags=re.MULTILINE))
        for name in re.findall(r'^#include "(.+)"', text, flags=re.MULTILINE):
            candidates = [(folder / name).resolve() for folder in (file.parent, CSRC)]
            left += [c for c in candidates if c.exists()][:1]  # none: the emulator's
    return found, outside


def compiled(source: Path) -> dict[str, str]:
    """The dtypes whose kernels a source compiles by name: "", or leaves to others: "extern"."""
    matches = map(KERNELS_OF.match, source.read_text(encoding="utf-8").splitlines())
    return {m[2] or m[3]: m[1] or "" for m in matches if m}


def test_a_group_has_a_source_for_each_dtype() -> None:
    groups = {source.stem.rpartition("_")[0] for source in OF_A_DTYPE}
    assert {"depthwise", "pointwise"} <= groups
    assert len(OF_A_DTYPE) == len(groups) * len(DTYPES)


@pytest.mark.parametrize("source", OF_A_DTYPE, ids=lambda source: source.stem)
def test_kernels_of_a_dtype_are_compiled_without_torch(source: Path) -> None:
    assert compiled(source) == {DTYPES[source.stem.rpartition("_")[2]]: ""}
    _, outside = read(source)
    torchs = {name for name in outside if name.startswith(("ATen/", "c10/", "torch/"))}
    assert torchs <= {"c10/util/BFloat16.h", "c10/util/Half.h"}


def test_a_kernel_of_a_dtype_is_compiled_once() -> None:
    """Where another source of nvcc's sees the launchers, it leaves their kernels to those."""
    launchers = set().union(*(read(source)[0] for source in OF_A_DTYPE))
    launchers = {file for file in launchers if file.name.endswith("_kernels.cuh")}
    assert launchers
    for source in set(CUDA.glob("*.cu")) - set(OF_A_DTYPE):
        if launchers & read(source)[0]:
            assert compiled(source) == dict.fromkeys(DTYPES.values(), "extern"), source.name


@pytest.mark.parametrize("source", sorted(CUDA.glob("*.cpp")), ids=lambda source: source.stem)
def test_sources_for_the_host_see_no_kernels(source: Path) -> None:
    for file in read(source)[0]:
        assert "__global__" not in file.read_text(encoding="utf-8"), file.name
