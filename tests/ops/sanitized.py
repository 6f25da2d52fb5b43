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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC, EMULATOR = ROOT / "csrc", ROOT / "tests" / "emulator"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# The headers that take long; compiled once for all sources, into HEADER.
HEADER = "headers.h"
HEADERS = ("torch/library.h", "ATen/Parallel.h", "ATen/ops/empty.h", "ATen/ops/zeros.h")
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-Wno-psabi"]


@dataclass(frozen=True)
class Library:
    """What is compiled into ``build/<name>/_C.so``, besides what all libraries have."""

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    flags: tuple[str, ...]

    def build(self) -> Path:
        """The library, compiled anew if a source is newer."""
        inputs = *COMMON, *self.sources, *self.headers
        return _made(self.name, "_C.so", inputs, self._compile) / "_C.so"

    def _compile(self, folder: Path) -> None:
        common = _made("sanitized_common", HEADER, [*COMMON, *CSRC.glob("*.h")], _compile_common)
        objects = _compiled(self.sources, folder, common / HEADER, self.flags)
        library = Path(torch.__file__).parent / "lib"
        link = [*("g++", "-shared", *SANITIZERS, *objects, *common.glob("*.o")), f"-L{library}"]
        link += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
        subprocess.run([*link, "-o", folder / "_C.so"], check=True)


def _made(name: str, product: str, inputs: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The folder ``build/<name>``, made anew if one of ``inputs`` is newer than its ``product``."""
    target = ROOT / "build" / name
    target.parent.mkdir(exist_ok=True)
    with open(f"{target}.lock", "w") as lock:  # of two test processes one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        made, newest = target / product, max(file.stat().st_mtime for file in inputs)
        if made.exists() and made.stat().st_mtime > newest:
            return target
        folder = Path(f"{target}.{os.getpid()}.tmp")
        folder.mkdir()
        try:
            make(folder)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def _compile_common(folder: Path) -> None:
    """The header that takes long, and the sources that no macro of a library alters."""
    header = folder / HEADER
    header.write_text("".join(f"#include <{name}>\n" for name in HEADERS))
    gxx = [compiler(), *common_flags(), "-x", "c++-header", header, "-o", f"{header}.gch"]
    subprocess.run(gxx, check=True)
    _compiled(COMMON, folder, header)


def _compiled(
    sources: Sequence[Path], folder: Path, header: Path, flags: Sequence[str] = ()
) -> list[Path]:
    """Objects of the sources."""

    def run(source: Path) -> Path:
        kernels = source.name.startswith("simd_")
        extra = (AVX2 if "avx" in source.name else []) if kernels else ["-include", header]
        output = folder / f"{source.stem}.o"
        gxx = [compiler(), *common_flags(), *flags, *extra, "-x", "c++", "-c", source]
        subprocess.run([*gxx, "-o", output], check=True)
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, sources))


COMMON = tuple(CSRC.glob("*.cpp"))
CPU = Library(
    "sanitized",
    tuple((CSRC / "cpu").glob("*.cpp")),
    tuple(CSRC.rglob("*.h")),
    ("-DDETNAS_D2_HAVE_AVX2", "-DDETNAS_D2_HAVE_AVX512", "-DDETNAS_D2_CHECKED"),
)
EMULATED = Library(
    "emulator",
    (*(CSRC / "cuda").glob("*.cpp"), *(CSRC / "cuda").glob("*.cu")),
    (
        *CSRC.glob("*.h"),
        *(CSRC / "cuda").glob("*.h"),
        *(CSRC / "cuda").glob("*.cuh"),
        *EMULATOR.glob("*.h"),
    ),
    ("-DDETNAS_EMULATE", f"-I{EMULATOR}"),
)


def compiler() -> str | None:
    """The compiler, or None on machines for which the sources' variants are not meant."""
    return shutil.which("g++") if os.uname().machine == "x86_64" else None


def common_flags() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    python = sysconfig.get_paths()["include"]
    return [
        *("-std=c++20", "-O0", "-g1", "-fPIC", "-fopenmp", *SANITIZERS, "-Wno-unknown-pragmas"),
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
