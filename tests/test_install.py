"""Installation of Detectron2, and its patches."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import detectron2_patches
import install_detectron2
import numpy as np
import pytest
import torch
from detectron2_patches import NEW_FILES, PATCHES, NewFile, Patch, PatchError, apply_patches
from packaging.requirements import Requirement

from tests.helpers import load_file

ROOT = Path(__file__).resolve().parents[1]


class TestPatches:
    def test_numpy_aliases_become_builtins_and_nothing_else_changes(self) -> None:
        patch = detectron2_patches._numpy_aliases("x.py", 3)
        text = "np.bool, dtype=np.int) np.float, np.int64 np.bool_ np.float32 xnp.int"
        assert patch.apply(text) == "bool, dtype=int) float, np.int64 np.bool_ np.float32 xnp.int"

    @pytest.mark.parametrize("text", ["", "anchor anchor"])
    def test_wrong_number_of_anchors_is_an_error(self, text: str) -> None:
        with pytest.raises(PatchError, match=r"x\.py: expected 1 match.* found [02].*why"):
            Patch("x.py", "why", "anchor", "new").apply(text)

    def test_literal_takes_no_character_for_a_pattern(self) -> None:
        patch = detectron2_patches._literal("x.py", "why", "f(a.b)\n", "g\\1\n")
        assert patch.apply("f(a.b)\nf(acb)\n") == "g\\1\nf(acb)\n"

    def test_configs_are_found_in_the_package(self, tmp_path: Path) -> None:
        """The replaced function of setup.py, run on a small tree."""
        (patch,) = [patch for patch in PATCHES if "configs" in patch.reason]
        before = (
            "import glob\nfrom os import path\ndef get_model_zoo_configs():\n"
            "    # Use absolute paths while symlinking.\n    os.symlink()\n    return 0\n\n\n"
            "# For projects that are small\n"
        )
        script = tmp_path / "setup_patched.py"
        script.write_text(patch.apply(before))
        configs = tmp_path / "detectron2" / "model_zoo" / "configs" / "COCO"
        configs.mkdir(parents=True)
        for name in ("a.yaml", "b.py", "c.txt"):
            (configs / name).touch()
        found = load_file("setup_patched", script).get_model_zoo_configs()
        assert found == ["configs/COCO/a.yaml", "configs/COCO/b.py"]

    @pytest.mark.parametrize(
        ("replaces", "old_text", "fits"),
        [
            (None, None, True),
            (None, "text", False),
            ("anchor", "the anchor", True),
            ("anchor", "text", False),
            ("anchor", None, False),
        ],
    )
    def test_new_file_checks_what_it_takes_over(self, replaces, old_text, fits) -> None:
        new = NewFile("x.py", "why", Path("unused"), replaces)
        if fits:
            new.check(old_text)
        else:
            with pytest.raises(PatchError, match=r"x\.py.*why"):
                new.check(old_text)

    def test_nothing_is_written_when_a_mend_fails(self, tmp_path: Path, monkeypatch) -> None:
        patches = (Patch("a.py", "fits", "old", "new"), Patch("b.py", "does not", "old", "new"))
        monkeypatch.setattr(detectron2_patches, "PATCHES", patches)
        monkeypatch.setattr(detectron2_patches, "NEW_FILES", ())
        (tmp_path / "a.py").write_text("old")
        (tmp_path / "b.py").write_text("other")
        with pytest.raises(PatchError, match=r"b\.py"):
            apply_patches(tmp_path)
        assert (tmp_path / "a.py").read_text() == "old"
        (tmp_path / "b.py").write_text("old")
        assert apply_patches(tmp_path) == 2
        assert [(tmp_path / name).read_text() for name in ("a.py", "b.py")] == ["new", "new"]

    def test_another_distribution_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PatchError, match=r"setup\.py does not exist"):
            apply_patches(tmp_path)

    def test_new_files_compile(self) -> None:
        for new in NEW_FILES:
            compile(new.source.read_text(encoding="utf-8"), str(new.source), "exec")


class TestStandIn:
    """Our ``detectron2/_C.py``."""

    @pytest.fixture
    def stand_in(self) -> ModuleType:
        return load_file("stand_in", ROOT / "scripts" / "detectron2_patches" / "_C.py")

    def test_environment_report(self, stand_in: ModuleType) -> None:
        assert stand_in.has_cuda() is False
        assert stand_in.get_compiler_version() == "none (pure Python build)"
        assert stand_in.get_cuda_version() == (torch.version.cuda or "none")

    def test_missing_operator_says_how_to_get_it(self, stand_in: ModuleType) -> None:
        with pytest.raises(ImportError, match="deform_conv_forward is not available.*official"):
            stand_in.deform_conv_forward  # noqa: B018
        assert not hasattr(stand_in, "__wrapped__")


class TestInstaller:
    @pytest.fixture
    def registry(self, tmp_path: Path, monkeypatch) -> Path:
        """The only place that pip looks at: a package whose setup.py leaves a trace."""
        source = tmp_path / "in" / "honest-1.0"
        source.mkdir(parents=True)
        (source / "setup.py").write_text(
            f"open({str(tmp_path / 'EXECUTED')!r}, 'w').close()\n"
            "from setuptools import setup\nsetup(name='honest', version='1.0')\n"
        )
        registry = tmp_path / "registry"
        registry.mkdir()
        with tarfile.open(registry / "honest-1.0.tar.gz", "w:gz") as tar:
            tar.add(source, "honest-1.0")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        return registry / "honest-1.0.tar.gz"

    def test_nothing_runs_before_its_hash_is_compared(self, registry: Path, tmp_path: Path) -> None:
        def download(sha256: str) -> Path:
            return install_detectron2.download(f"honest==1.0 --hash=sha256:{sha256}", tmp_path)

        with pytest.raises(subprocess.CalledProcessError):
            download("0" * 64)
        assert not (tmp_path / "EXECUTED").exists()
        archive = download(hashlib.sha256(registry.read_bytes()).hexdigest())
        assert archive.read_bytes() == registry.read_bytes()
        assert (tmp_path / "EXECUTED").exists()  # pip runs it: the trace is one that can be seen

    def test_a_commit_is_checked_out_by_its_hash(self, tmp_path: Path) -> None:
        git, repository = install_detectron2.git, tmp_path / "official"
        git("init", "-q", str(repository))

        def commit(text: str) -> str:
            (repository / "setup.py").write_text(text)
            git("-C", str(repository), "add", "setup.py")
            author = ("-c", "user.name=a", "-c", "user.email=a@b")
            git("-C", str(repository), *author, "commit", "-q", "-m", text)
            return git("-C", str(repository), "rev-parse", "HEAD")

        first, _ = commit("honest"), commit("not honest")
        install_detectron2.check_out(tmp_path / "a", str(repository), first)
        assert (tmp_path / "a" / "setup.py").read_text() == "honest"
        # A branch that bears the name of a commit which the repository does not have.
        git("-C", str(repository), "branch", missing := "0123456789" * 4)
        with pytest.raises(subprocess.CalledProcessError):
            install_detectron2.check_out(tmp_path / "b", str(repository), missing)
        assert not (tmp_path / "b" / "setup.py").exists()

    def test_what_is_installed_is_named_by_its_hash(self) -> None:
        assert re.search(r"==0\.6 --hash=sha256:[0-9a-f]{64}$", install_detectron2.SDIST)
        assert re.fullmatch(r"[0-9a-f]{40}", install_detectron2.COMMIT)

    @pytest.mark.parametrize("name", ["requirements-build", "requirements"])
    def test_every_requirement_has_hashes_and_is_as_asked_for(self, name: str) -> None:
        lock = (ROOT / "scripts" / f"{name}.txt").read_text()
        entries = re.findall(r"^([\w.-]+)==(\S+)(.*\\\n(?: .*\\\n)* .*)$", lock, re.MULTILINE)
        assert len(entries) == len(re.findall(r"^[^\s#]", lock, re.MULTILINE)) > 0
        assert all("--hash=sha256:" in rest for _, _, rest in entries)
        locked: dict[str, list[str]] = {}
        for package, version, _ in entries:
            locked.setdefault(package, []).append(version)
        for line in (ROOT / "scripts" / f"{name}.in").read_text().splitlines():
            if (line := line.partition("#")[0].strip()) and not line.startswith("-c"):
                asked = Requirement(line)
                assert all(version in asked.specifier for version in locked[asked.name]), line

    def test_bootstrap_installs_nothing_without_a_hash(self) -> None:
        script = (ROOT / "scripts" / "bootstrap.sh").read_text()
        installs = [line for line in script.splitlines() if '"${pip[@]}" install' in line]
        assert len(installs) == 2
        assert all("--require-hashes" in line or "--no-deps -e ." in line for line in installs)

    def test_unpack(self, tmp_path: Path) -> None:
        (tmp_path / "in" / "pkg-1").mkdir(parents=True)
        (tmp_path / "in" / "pkg-1" / "setup.py").touch()
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "in" / "pkg-1", "pkg-1")
        source = install_detectron2.unpack(tmp_path / "a.tar.gz", tmp_path / "out")
        assert (source / "setup.py").exists()

    def test_importable_detectron2_is_left_alone(self, monkeypatch) -> None:
        def fail(*arguments: str) -> None:
            raise AssertionError(f"pip {arguments} was called")

        monkeypatch.setattr(install_detectron2, "pip", fail)
        assert install_detectron2.main() == 0


@pytest.mark.parametrize("iou_type", ["bbox", "keypoints"])
def test_fast_coco_evaluation_agrees_with_pycocotools(iou_type: str) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    patch = load_file("fast_eval_api", ROOT / "scripts/detectron2_patches/fast_eval_api.py")
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 60, (40, 2)), rng.uniform(4, 40, (40, 2))], axis=1)
    points = np.concatenate([rng.uniform(0, 99, (40, 17, 2)), np.full((40, 17, 1), 2)], axis=2)
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "width": 100, "height": 100} for i in range(4)],
        "categories": [{"id": i, "name": "abc"[i - 1]} for i in (1, 2, 3)],
        "annotations": [
            {"id": i + 1, "image_id": i % 4, "category_id": 1 + i % 2, "bbox": box.tolist(),
             "area": float(box[2] * box[3]), "iscrowd": int(i % 9 == 0),
             "keypoints": points[i].ravel().tolist(), "num_keypoints": 17}
            for i, box in enumerate(boxes)
        ],
    }  # fmt: skip
    truth.createIndex()
    places = [*range(40), *range(0, 40, 3)]
    key = "bbox" if iou_type == "bbox" else "keypoints"
    found = {"bbox": boxes[places], "keypoints": points[places].reshape(len(places), -1)}[key]
    detections = truth.loadRes([
        {"image_id": i % 4, "category_id": 1 + i % 2, "score": float(rng.uniform()),
         key: (values + rng.normal(0, 2, len(values))).tolist()}
        for i, values in enumerate(found)
    ])  # fmt: skip
    precision = []
    for evaluator in (COCOeval, patch.COCOeval_opt):
        evaluation = evaluator(truth, detections, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        precision.append(np.asarray(evaluation.eval["precision"]))
    assert 0.1 < precision[0][precision[0] > -1].mean() < 0.9
    np.testing.assert_allclose(precision[1].reshape(precision[0].shape), precision[0], atol=1e-12)
