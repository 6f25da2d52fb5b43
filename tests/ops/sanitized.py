"""The operators under AddressSanitizer and UBSan, on random odd shapes.

    python -m tests.ops.sanitized cpu|emulated [cases [seed]]

Compiles csrc/ once more into a library that takes the place of detnas_d2._C, with both sanitizers,
and runs ``fuzz.py`` on it. "cpu": the CPU's operators, with workspaces that are exactly as large as
asked for and full of NaN, and AVX-512's vectors made of two of AVX2 each. "emulated": those of
CUDA, entry points and all, for tensors on the CPU, the kernels on the emulator of tests/emulator.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC, EMULATOR = ROOT / "csrc", ROOT / "tests" / "emulator"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# The headers that take long; compiled once for all sources.
HEADERS = ("torch/library.h", "ATen/Parallel.h", "ATen/ops/empty.h", "ATen/ops/zeros.h")
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-Wno-psabi"]


@dataclass(frozen=True)
class Library:
    """What is compiled into ``build/<name>/_C.so``."""

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    flags: tuple[str, ...]

    def build(self) -> Path:
        """The library, compiled anew if a source is newer."""
        build = ROOT / "build" / self.name
        build.mkdir(parents=True, exist_ok=True)
        with open(build / "lock", "w") as lock:  # of two test processes one compiles
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._build(build)

    def _build(self, build: Path) -> Path:
        target = build / "_C.so"
        newest = max(file.stat().st_mtime for file in [*self.sources, *self.headers])
        if target.exists() and target.stat().st_mtime > newest:
            return target
        folder = build / f"{os.getpid()}.tmp"
        folder.mkdir()
        try:
            self._compile(folder)
            os.replace(folder / "_C.so", target)
        finally:
            shutil.rmtree(folder)
        return target

    def _compile(self, folder: Path) -> None:
        header = folder / "headers.h"
        header.write_text("".join(f"#include <{name}>\n" for name in HEADERS))
        gxx = [compiler(), *common_flags(), *self.flags]
        subprocess.run([*gxx, "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)

        def run(source: Path) -> Path:
            kernels = source.name.startswith("simd_")
            extra = (AVX2 if "avx" in source.name else []) if kernels else ["-include", header]
            output = folder / f"{source.stem}.o"
            subprocess.run([*gxx, *extra, "-x", "c++", "-c", source, "-o", output], check=True)
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(run, self.sources))
        library = Path(torch.__file__).parent / "lib"
        link = [*("g++", "-shared", *SANITIZERS, *objects), f"-L{library}", "-lc10", "-ltorch_cpu"]
        subprocess.run([*link, "-ltorch", "-ltorch_python", "-o", folder / "_C.so"], check=True)


CPU = Library(
    "sanitized",
    (*CSRC.glob("*.cpp"), *(CSRC / "cpu").glob("*.cpp")),
    tuple(CSRC.rglob("*.h")),
    ("-O0", "-DDETNAS_D2_HAVE_AVX2", "-DDETNAS_D2_HAVE_AVX512", "-DDETNAS_D2_CHECKED"),
)
EMULATED = Library(
    "emulator",
    (*CSRC.glob("*.cpp"), *(CSRC / "cuda").glob("*.cu")),
    (*CSRC.glob("*.h"), *(CSRC / "cuda").glob("*.cuh"), *EMULATOR.glob("*.h")),
    ("-O0", "-DDETNAS_EMULATE", f"-I{EMULATOR}"),
)


def compiler() -> str | None:
    """The compiler, or None on machines for which the sources' variants are not meant."""
    return shutil.which("g++") if os.uname().machine == "x86_64" else None


def common_flags() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    python = sysconfig.get_paths()["include"]
    return [
        *("-std=c++20", "-g1", "-fPIC", "-fopenmp", *SANITIZERS, "-Wno-unknown-pragmas"),
        *(f"-I{CSRC}", f"-I{include}", f"-I{python}", '-DDETNAS_D2_VERSION="sanitized"'),
    ]


def _path_of(library: str) -> str:
    command = ["g++", f"-print-file-name={library}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run_checked(*command: str) -> subprocess.CompletedProcess:
    """Runs Python with the sanitizer's library loaded before everything else."""
    # The C++ library too, or an exception that is thrown would not find its way.
    libraries = [_path_of("libasan.so"), _path_of("libstdc++.so")]
    env = {
        **os.environ,
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True
    )


if __name__ == "__main__":
    library = {"cpu": CPU, "emulated": EMULATED}[sys.argv[1]].build()
    done = run_checked("tests/ops/fuzz.py", str(library), *sys.argv[2:])
    print(done.stdout + done.stderr)
    raise SystemExit(done.returncode)
