"""Builds ``detnas_d2._C``, the library of custom operators in ``csrc/``.

``pip install --no-build-isolation -e .`` in an environment that has torch.  Environment variables:

FORCE_CUDA=1           build the CUDA sources though no GPU is visible (nvcc is needed)
FORCE_CUDA=0           leave the CUDA sources out though a GPU is visible
TORCH_CUDA_ARCH_LIST   GPU architectures, such as "8.0;9.0+PTX"; default: those of the visible GPUs,
                       without any those of DEFAULT_ARCHS that nvcc knows
NVCC_FLAGS             further flags for nvcc
DEBUG=1                no optimisation, debug information
MAX_JOBS               compiler processes at a time
CC, CXX                the C++ compiler (both, setuptools links with CC): GCC 11 or newer, or clang
CUDA_HOME              the CUDA toolkit; default: the one that nvcc on PATH belongs to
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
from setuptools import find_packages, setup


def toolkit_behind_nvcc() -> str | None:
    """The CUDA toolkit of the nvcc on PATH, where that is a mere wrapper script outside of it.

    torch takes the folder above the one that nvcc lies in for the toolkit.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None or Path(nvcc).parents[1].joinpath("include", "cuda_runtime.h").exists():
        return None
    done = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True)
    match = re.search(r"^#\$ _HERE_=(.+)$", done.stdout + done.stderr, flags=re.MULTILINE)
    return str(Path(match.group(1)).parent) if match else None


if __name__ == "__main__" and not (os.getenv("CUDA_HOME") or os.getenv("CUDA_PATH")):
    found = toolkit_behind_nvcc()
    if found is not None:
        os.environ["CUDA_HOME"] = found

from torch.utils.cpp_extension import (  # noqa: E402  (reads CUDA_HOME when imported)
    CUDA_HOME,
    BuildExtension,
    CppExtension,
    CUDAExtension,
    get_cxx_compiler,
)

ROOT = Path(__file__).resolve().parent
DEBUG = os.getenv("DEBUG", "0") == "1"

LOWEST_TORCH = (2, 6)  # the first whose torch.load unpickles weights only
# Where no GPU says what is wanted, as in docker build. Code of 8.0 runs on 8.6 and 8.9 too; what is
# newer than the last compiles its PTX when first used.
DEFAULT_ARCHS = ("7.5", "8.0", "9.0")

# Sources named *_<suffix>.cpp are compiled for one instruction set, on x86-64 only; every source
# sees DETNAS_D2_HAVE_<SUFFIX> where that variant is part of the build (csrc/README.md).
ISA_FLAGS: dict[str, list[str]] = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
}
IS_X86_64 = platform.machine().lower() in ("x86_64", "amd64") and os.name == "posix"


def say(message: str) -> None:
    print(f"detnas_d2: {message}", flush=True)


def version() -> str:
    text = (ROOT / "detnas_d2" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('detnas_d2/__init__.py: no line __version__ = "..."')
    return match.group(1)


def built_for() -> str:
    """What the library is bound to; detnas_d2/ops/extension.py loads it into nothing else."""
    python = sysconfig.get_python_version()
    return f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, Python {python}"


def sources(pattern: str) -> list[str]:
    """The files that match ``pattern``, sorted, relative to the repository (setuptools' wish)."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def isa_of(source: str) -> str | None:
    """The instruction set that a source's name asks for, None for a portable source."""
    return next((isa for isa in ISA_FLAGS if source.endswith(f"_{isa}.cpp")), None)


def with_cuda() -> bool:
    """Whether to build the CUDA sources; says why."""
    forced = os.getenv("FORCE_CUDA")
    if forced not in (None, "", "0", "1"):
        raise RuntimeError(f"FORCE_CUDA={forced}: expected 0 or 1")
    if torch.version.cuda is None or forced == "0":
        reason = "FORCE_CUDA=0" if forced == "0" else "torch was built without CUDA"
    elif forced == "1":
        if CUDA_HOME is None:
            raise RuntimeError("FORCE_CUDA=1, but no CUDA toolkit was found; set CUDA_HOME")
        say(f"CPU and CUDA (FORCE_CUDA=1, toolkit {CUDA_HOME})")
        return True
    elif not torch.cuda.is_available():
        reason = "no GPU is visible; FORCE_CUDA=1 builds the CUDA sources nevertheless"
    elif CUDA_HOME is None:
        reason = "no CUDA toolkit was found; set CUDA_HOME"
    else:
        say(f"CPU and CUDA (a GPU is visible, toolkit {CUDA_HOME})")
        return True
    say(f"CPU only ({reason})")
    return False


def cuda_include_dirs() -> list[str]:
    """Folders of the CUDA library headers where the toolkit lacks them.

    torch includes cuBLAS, cuSPARSE and cuSOLVER headers; a minimal toolkit comes without them,
    torch's own dependencies on the package registry (``nvidia/cu*/include``) with them.
    """
    if CUDA_HOME is None or Path(CUDA_HOME, "include", "cublas_v2.h").exists():
        return []
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    major = str(torch.version.cuda).split(".")[0]
    found = [Path(folder, f"cu{major}", "include") for folder in folders]
    return [str(folder) for folder in found if (folder / "cublas_v2.h").exists()]


def default_archs() -> str:
    """TORCH_CUDA_ARCH_LIST for a machine without a GPU.

    Raises:
        RuntimeError: nvcc knows none of DEFAULT_ARCHS.
    """
    nvcc = Path(str(CUDA_HOME), "bin", "nvcc")
    done = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = set(done.stdout.split())
    archs = [arch for arch in DEFAULT_ARCHS if f"compute_{arch.replace('.', '')}" in known]
    if not archs:
        raise RuntimeError(
            f"{nvcc} knows none of the GPU architectures {' '.join(DEFAULT_ARCHS)};"
            " set TORCH_CUDA_ARCH_LIST to what nvcc --list-gpu-arch names"
        )
    return ";".join(archs) + "+PTX"


def choose_archs() -> str:
    """The GPU architectures to build for, in TORCH_CUDA_ARCH_LIST unless torch asks the GPUs."""
    archs = os.getenv("TORCH_CUDA_ARCH_LIST", "")
    if archs:
        say(f"architectures: {archs} (TORCH_CUDA_ARCH_LIST)")
    elif torch.cuda.is_available():
        say("architectures: those of the visible GPUs")
    else:
        archs = os.environ["TORCH_CUDA_ARCH_LIST"] = default_archs()
        say(f"architectures: {archs} (no GPU is visible; TORCH_CUDA_ARCH_LIST chooses others)")
    return archs


def nvcc_threads(archs: str, sources: int) -> list[str]:
    """nvcc's flags to compile for several architectures at a time, where processors are left."""
    jobs = int(os.getenv("MAX_JOBS") or os.cpu_count() or 1)
    threads = min(len(archs.replace(" ", ";").split(";")), jobs // max(sources, 1))
    return ["--threads", str(threads)] if threads > 1 else []


OPENMP_PROBE = """
#include <omp.h>
namespace at { int get_num_threads(); }
extern "C" int detnas_d2_threads() {
  int threads = 0;
#pragma omp parallel reduction(+ : threads)
  threads += omp_get_num_threads() > 0;
  return at::get_num_threads() > 0 ? threads : 0;
}
"""


def openmp_flags() -> list[str]:
    """The flag for OpenMP, if what it compiles to runs in the process of torch; says which.

    at::parallel_for uses it. It is not linked: the symbols come from the runtime that torch has
    loaded, a second one would have threads of its own. clang calls another runtime than GCC, whose
    symbols torch's builds for Linux lack. Without the flag at::parallel_for is a plain loop.
    """
    compiler = shlex.split(get_cxx_compiler())
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "openmp.cpp"), Path(folder, "openmp.so")
        source.write_text(OPENMP_PROBE)
        compile_it = [*compiler, "-fopenmp", "-fPIC", "-c", str(source), "-o", f"{source}.o"]
        torch_lib = f"-L{Path(torch.__file__).parent / 'lib'}"
        link = [*compiler, "-shared", f"{source}.o", torch_lib, "-ltorch_cpu", "-o", str(library)]
        try:
            for command in (compile_it, link):
                subprocess.run(command, check=True, capture_output=True, text=True)
            ran = ctypes.CDLL(str(library)).detnas_d2_threads() > 0
            reason = "" if ran else "no thread ran"
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip() or str(error)).splitlines()[0]
        except OSError as error:  # no such compiler, or symbols that torch's runtime lacks
            reason = str(error)
    if reason:
        say(f"OpenMP: no, operators on the CPU use one thread ({reason.replace(folder, '...')})")
        return []
    say("OpenMP: yes, -fopenmp")
    return ["-fopenmp"]


def check_torch() -> None:
    """Raises RuntimeError for a torch that is too old."""
    found = torch.__version__
    if tuple(int(part) for part in found.split(".")[:2]) < LOWEST_TORCH:
        lowest = ".".join(map(str, LOWEST_TORCH))
        raise RuntimeError(f"torch {found} is installed, detnas_d2 needs torch >= {lowest}")


def extension():
    cxx = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    cxx += ["-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    # Another torch has other headers: since this is a flag of all sources, all are compiled again.
    macros = [("DETNAS_D2_VERSION", f'"{version()}"'), ("DETNAS_D2_BUILT_FOR", f'"{built_for()}"')]
    headers = sources("csrc/**/*.h") + sources("csrc/**/*.cuh")
    chosen = sources("csrc/*.cpp") + sources("csrc/cpu/*.cpp")
    if not IS_X86_64:
        chosen = [source for source in chosen if isa_of(source) is None]
    isas = sorted({isa for isa in map(isa_of, chosen) if isa})
    macros += [(f"DETNAS_D2_HAVE_{isa.upper()}", None) for isa in isas]
    say(f"CPU flags: {' '.join(cxx)}; instruction set variants: {' '.join(isas) or 'none'}")

    cls, include_dirs, args = CppExtension, [str(ROOT / "csrc")], {"cxx": cxx}
    if with_cuda():
        cls = CUDAExtension
        chosen += sources("csrc/cuda/*.cpp") + sources("csrc/cuda/*.cu")
        macros.append(("WITH_CUDA", None))
        extra = cuda_include_dirs()
        include_dirs += extra
        args["nvcc"] = ["-O0", "-g", "-G"] if DEBUG else ["-O3"]
        args["nvcc"] += ["--expt-relaxed-constexpr", "-Xfatbin", "-compress-all"]
        args["nvcc"] += nvcc_threads(choose_archs(), len(sources("csrc/cuda/*.cu")))
        args["nvcc"] += shlex.split(os.getenv("NVCC_FLAGS", ""))
        say(f"nvcc flags: {' '.join(args['nvcc'])}")
        say(f"CUDA library headers: {' '.join(extra) or 'in the toolkit'}")
    return cls(
        "detnas_d2._C",
        chosen,
        depends=headers,
        include_dirs=include_dirs,
        define_macros=macros,
        extra_compile_args=args,
    )


class Build(BuildExtension):
    """torch's build with ninja, plus flags per instruction set and object files that are kept."""

    def finalize_options(self) -> None:
        if self.build_temp is None:
            # An editable install would compile into a temporary folder, anew every time.
            tag = f"{sysconfig.get_platform()}-{sysconfig.get_python_version()}"
            self.build_temp = str(ROOT / "build" / f"temp.{tag}")
        super().finalize_options()

    def build_extensions(self) -> None:
        start = time.perf_counter()
        openmp = openmp_flags()
        for ext in self.extensions:
            ext.extra_compile_args["cxx"] += openmp
        super().build_extensions()
        say(f"built in {time.perf_counter() - start:.0f} s")

    def build_extension(self, ext) -> None:
        # torch has put its own compile() in place by now: one ninja run for all the sources it is
        # given, with the same flags. So it is called once per instruction set, each time with a
        # build folder of its own.
        torch_compile = self.compiler.compile

        def compile_by_isa(sources, output_dir=None, *args, extra_postargs=None, **kwargs):
            objects = []
            for isa in (None, *ISA_FLAGS):
                group = [source for source in sources if isa_of(source) == isa]
                if not group:
                    continue
                flags = {key: list(value) for key, value in extra_postargs.items()}
                folder = output_dir
                if isa is not None:
                    flags["cxx"] += ISA_FLAGS[isa]
                    folder = os.path.join(output_dir, isa)
                objects += torch_compile(group, folder, *args, extra_postargs=flags, **kwargs)
            return objects

        self.compiler.compile = compile_by_isa
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = torch_compile


if __name__ == "__main__":  # tests import the functions above
    check_torch()
    setup(
        version=version(),
        license="Apache-2.0",
        packages=find_packages(include=["detnas_d2", "detnas_d2.*"]),
        ext_modules=[extension()],
        cmdclass={"build_ext": Build},
    )
