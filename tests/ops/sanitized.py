"""The CPU operators under AddressSanitizer and UBSan, on random odd shapes.

    python -m tests.ops.sanitized [cases]

Compiles csrc/ for the CPU once more, with both sanitizers and with workspaces that are exactly as
large as asked for and full of NaN, into build/sanitized/; then runs ``fuzz.py`` on that library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitized"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# The headers that take long; compiled once for all sources.
HEADERS = ("torch/library.h", "ATen/Parallel.h", "ATen/ops/empty.h", "ATen/ops/zeros.h")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]


def compiler() -> str | None:
    """The compiler, or None on machines for which the sources' variants are not meant."""
    return shutil.which("g++") if os.uname().machine == "x86_64" else None


def flags() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    python = sysconfig.get_paths()["include"]
    return [
        *("-std=c++20", "-O0", "-g1", "-fPIC", "-fopenmp", *SANITIZERS),
        *(f"-I{ROOT / 'csrc'}", f"-I{include}", f"-I{python}"),
        *('-DDETNAS_D2_VERSION="sanitized"', "-DDETNAS_D2_HAVE_AVX2", "-DDETNAS_D2_CHECKED"),
    ]


def build() -> Path:
    """The sanitized library, compiled anew if a source is newer."""
    target = BUILD / "_C.so"
    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp")]
    sources = [source for source in sources if not source.name.endswith("avx512.cpp")]
    newest = max(f.stat().st_mtime for f in [*sources, *(ROOT / "csrc").rglob("*.h")])
    if target.exists() and target.stat().st_mtime > newest:
        return target
    folder = BUILD / f"{os.getpid()}.tmp"
    folder.mkdir(parents=True)
    try:
        _compile(sources, folder)
        os.replace(folder / "_C.so", target)
    finally:
        shutil.rmtree(folder)
    return target


def _compile(sources: list[Path], folder: Path) -> None:
    header = folder / "headers.h"
    header.write_text("".join(f"#include <{name}>\n" for name in HEADERS))
    gxx = [compiler(), *flags()]
    subprocess.run([*gxx, "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)

    def run(source: Path) -> Path:
        kernels = source.name.startswith("simd_")
        extra = (AVX2 if "avx2" in source.name else []) if kernels else ["-include", header]
        subprocess.run([*gxx, *extra, "-c", source, "-o", folder / f"{source.stem}.o"], check=True)
        return folder / f"{source.stem}.o"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(run, sources))
    library = Path(torch.__file__).parent / "lib"
    link = [*("g++", "-shared", *SANITIZERS, *objects), f"-L{library}", "-lc10", "-ltorch_cpu"]
    subprocess.run([*link, "-ltorch", "-ltorch_python", "-o", folder / "_C.so"], check=True)


def run_checked(*command: str) -> subprocess.CompletedProcess:
    """Runs Python with the sanitizer's library loaded before everything else."""
    asan = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    env = {
        **os.environ,
        "LD_PRELOAD": asan,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True
    )


if __name__ == "__main__":
    done = run_checked("tests/ops/fuzz.py", str(build()), *sys.argv[1:])
    print(done.stdout + done.stderr)
    raise SystemExit(done.returncode)
