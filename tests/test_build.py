"""Decisions of setup.py: instruction sets, CUDA, architectures, OpenMP."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from setuptools import Distribution

from detnas_d2.ops.extension import environment
from tests.helpers import load_file

ROOT = Path(__file__).resolve().parents[1]


class TestBuild:
    @pytest.fixture
    def setup_py(self) -> ModuleType:
        return load_file("detnas_d2_setup", ROOT / "setup.py")

    @pytest.mark.parametrize(
        ("source", "isa"),
        [
            ("csrc/cpu/bn_stats_kernel.cpp", None),
            ("csrc/cpu/bn_stats_avx2.cpp", "avx2"),
            ("csrc/cpu/bn_stats_avx512.cpp", "avx512"),
            ("csrc/cpu/avx2_dispatch.cpp", None),
        ],
    )
    def test_instruction_set_of_a_source(self, setup_py, source: str, isa: str | None) -> None:
        assert setup_py.isa_of(source) == isa

    @pytest.mark.parametrize(
        ("force", "gpu", "toolkit", "expected", "reason"),
        [
            (None, False, "/cuda", False, "no GPU is visible"),
            (None, True, "/cuda", True, "a GPU is visible, toolkit /cuda"),
            (None, True, None, False, "no CUDA toolkit was found"),
            ("1", False, "/cuda", True, "FORCE_CUDA=1, toolkit /cuda"),
            ("0", True, "/cuda", False, "FORCE_CUDA=0"),
        ],
    )
    def test_cuda_decision(
        self, setup_py, monkeypatch, capsys, force, gpu, toolkit, expected, reason
    ) -> None:
        self._pretend(setup_py, monkeypatch, force, gpu, toolkit)
        assert setup_py.with_cuda() is expected
        assert reason in capsys.readouterr().out

    def test_forced_cuda_without_a_toolkit_is_an_error(self, setup_py, monkeypatch) -> None:
        self._pretend(setup_py, monkeypatch, "1", False, None)
        with pytest.raises(RuntimeError, match="set CUDA_HOME"):
            setup_py.with_cuda()

    def test_unknown_value_is_an_error(self, setup_py, monkeypatch) -> None:
        self._pretend(setup_py, monkeypatch, "yes", True, "/cuda")
        with pytest.raises(RuntimeError, match="FORCE_CUDA=yes: expected 0 or 1"):
            setup_py.with_cuda()

    @pytest.mark.parametrize(
        ("asked", "gpu", "known", "expected", "printed"),
        [
            ("8.6", False, "", "8.6", "architectures: 8.6 (TORCH_CUDA_ARCH_LIST)"),
            ("", True, "", "", "architectures: those of the visible GPUs"),
            ("", False, "50 75 80 90 100", "7.5;8.0;9.0+PTX", "7.5;8.0;9.0+PTX (no GPU is"),
            ("", False, "50 70 75 80 86", "7.5;8.0+PTX", "7.5;8.0+PTX (no GPU is"),
        ],
    )
    def test_architectures(
        self, setup_py, monkeypatch, capsys, tmp_path, asked, gpu, known, expected, printed
    ) -> None:
        self._pretend(setup_py, monkeypatch, "1", gpu, str(tmp_path))
        self._nvcc(tmp_path, *(f"compute_{arch}" for arch in known.split()))
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
        assert setup_py.choose_archs() == expected
        assert os.environ["TORCH_CUDA_ARCH_LIST"] == expected  # where torch looks
        assert printed in capsys.readouterr().out

    def test_nvcc_that_knows_no_default_architecture(self, setup_py, monkeypatch, tmp_path) -> None:
        monkeypatch.setattr(setup_py, "CUDA_HOME", str(tmp_path))
        self._nvcc(tmp_path, "compute_120")
        with pytest.raises(RuntimeError, match="nvcc knows none of .* set TORCH_CUDA_ARCH_LIST"):
            setup_py.default_archs()

    @pytest.mark.parametrize(
        ("archs", "jobs", "expected"),
        [
            ("7.5;8.0;9.0+PTX", "16", ["--threads", "2"]),
            ("7.5 8.0 9.0", "64", ["--threads", "3"]),
            ("7.5;8.0;9.0+PTX", "2", []),
            ("9.0", "64", []),
            ("", "64", []),
        ],
    )
    def test_threads_of_nvcc(self, setup_py, monkeypatch, archs, jobs, expected) -> None:
        monkeypatch.setenv("MAX_JOBS", jobs)
        assert setup_py.nvcc_threads(archs, 6) == expected

    def test_openmp_is_used_where_it_runs_beside_torch(self, setup_py, monkeypatch, capsys) -> None:
        if (compiler := shutil.which("g++")) is None:
            pytest.skip("no g++")
        monkeypatch.setenv("CXX", compiler)
        assert setup_py.openmp_flags() == ["-fopenmp"]
        assert "OpenMP: yes" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("probe", "reason"),
        [
            ("#error no OpenMP", "no OpenMP"),  # as -fopenmp and omp.h of a compiler without
            # As clang's, whose runtime torch has not loaded; the linker cannot know.
            ('int kmp(); extern "C" int detnas_d2_threads() { return kmp(); }', "kmp"),
            ('extern "C" int detnas_d2_threads() { return 0; }', "no thread ran"),
        ],
    )
    def test_openmp_that_does_not_work_is_left_out(
        self, setup_py, monkeypatch, capsys, probe, reason
    ) -> None:
        monkeypatch.setattr(setup_py, "OPENMP_PROBE", probe)
        assert setup_py.openmp_flags() == []
        (line,) = capsys.readouterr().out.splitlines()
        assert "OpenMP: no, operators on the CPU use one thread (" in line and reason in line

    def test_the_library_is_bound_to_this_environment(self, setup_py) -> None:
        assert setup_py.built_for() == environment()

    def test_an_old_torch_is_refused(self, setup_py, monkeypatch) -> None:
        setup_py.check_torch()
        for version, fits in (("2.5.1+cu124", False), ("1.13.1", False), ("2.6.0a0+git", True)):
            monkeypatch.setattr(torch, "__version__", version)
            if fits:
                setup_py.check_torch()
            else:
                with pytest.raises(RuntimeError, match=rf"torch {re.escape(version)} .*>= 2\.6"):
                    setup_py.check_torch()

    @pytest.mark.parametrize("given", [None, "/elsewhere"])
    def test_folder_of_object_files(self, setup_py, given: str | None) -> None:
        command = setup_py.Build(Distribution())
        command.build_temp = given
        command.finalize_options()
        assert Path(command.build_temp).parent == (Path("/") if given else ROOT / "build")

    def test_toolkit_behind_a_wrapper_of_nvcc(self, setup_py, monkeypatch, tmp_path) -> None:
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text("#!/bin/sh\necho '#$ _HERE_=/opt/cuda/bin' >&2\n")
        nvcc.chmod(0o755)
        monkeypatch.setenv("PATH", str(nvcc.parent), prepend=os.pathsep)
        assert setup_py.toolkit_behind_nvcc() == "/opt/cuda"
        # A toolkit of its own, which torch finds by itself.
        (tmp_path / "include").mkdir()
        (tmp_path / "include" / "cuda_runtime.h").touch()
        assert setup_py.toolkit_behind_nvcc() is None

    @staticmethod
    def _nvcc(toolkit: Path, *archs: str) -> None:
        nvcc = toolkit / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text("#!/bin/sh\necho '" + "\n".join(archs) + "'\n")
        nvcc.chmod(0o755)

    @staticmethod
    def _pretend(setup_py, monkeypatch, force, gpu, toolkit) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(setup_py, "CUDA_HOME", toolkit)
        if force is None:
            monkeypatch.delenv("FORCE_CUDA", raising=False)
        else:
            monkeypatch.setenv("FORCE_CUDA", force)
