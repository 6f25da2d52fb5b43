"""What nvcc makes of kernels: registers, spills and instructions. Needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ARCH = "sm_90"
REGISTERS = 65536  # of a multiprocessor


@dataclass
class Kernel:
    """A compiled kernel.

    Attributes:
        registers: of a thread.
        spilled: bytes stored and loaded.
        code: instructions, without what follows a dot.
    """

    registers: int
    spilled: int
    code: Counter = field(default_factory=Counter)

    def blocks(self, threads: int) -> int:
        """Blocks of so many threads that a multiprocessor has registers for."""
        return REGISTERS // (threads * (-(-self.registers // 8) * 8))


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


def compiled(source: str, folder: Path) -> dict[str, Kernel]:
    """The kernels of a CUDA source by their mangled names; skips the test where there is no nvcc.

    Args:
        source: includes what lies in csrc.
        folder: for files.
    """
    nvcc, cuobjdump = program("nvcc"), program("cuobjdump")
    (folder / "kernels.cu").write_text(source)
    include = Path(torch.__file__).parent / "include"
    command = [nvcc, "-std=c++20", f"-arch={ARCH}", "-O3", "--expt-relaxed-constexpr", "-cubin"]
    command += ["-Xptxas", "-v", f"-I{ROOT / 'csrc'}", f"-I{include}", "kernels.cu"]
    done = subprocess.run(
        [*command, "-o", "kernels.cubin"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for part in done.stderr.split("Compiling entry function '")[1:]:
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[part.split("'")[0]] = Kernel(registers, spilled)
    command = [cuobjdump, "-sass", "kernels.cubin"]
    listing = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    for part in listing.stdout.split("Function : ")[1:]:
        code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", part)
        found[part.split()[0]].code = Counter(code)
    return found
