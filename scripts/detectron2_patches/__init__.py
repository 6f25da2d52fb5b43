"""Patches with which Detectron2 v0.6 (2021) runs on today's PyTorch, NumPy, Pillow, setuptools.

Each :class:`Patch` rewrites one file of the unpacked source distribution and names the text it
expects there.  A patch whose text is missing, or found another number of times than stated, raises
:class:`PatchError`: a changed source must be looked at, never half patched.

The distribution lacks the C++ sources of ``detectron2._C``; ``_C.py`` next to this file stands in
for it, and ``fast_eval_api.py`` for the COCO evaluation that needed it.  The official main branch
of Detectron2 needs none of this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent


class PatchError(RuntimeError):
    """The source is not the one that the patches were written for."""


@dataclass(frozen=True)
class Patch:
    """A rewrite of one file.

    ``pattern`` is a regular expression (multi-line mode) that must match exactly ``count`` times;
    every match becomes ``replacement`` (a template as of :func:`re.sub`).
    """

    file: str
    reason: str
    pattern: str
    replacement: str
    count: int = 1

    def apply(self, text: str) -> str:
        patched, found = re.subn(self.pattern, self.replacement, text, flags=re.MULTILINE)
        if found != self.count:
            raise PatchError(
                f"{self.file}: expected {self.count} match(es) of {self.pattern!r}, found {found}"
                f" (patch: {self.reason})"
            )
        return patched


@dataclass(frozen=True)
class NewFile:
    """A file of ours put into the source; ``replaces`` must occur in the file it takes over.

    ``replaces`` is None for a file that must not be there yet.
    """

    file: str
    reason: str
    source: Path
    replaces: str | None = None

    def check(self, old_text: str | None) -> None:
        if self.replaces is None:
            if old_text is not None:
                raise PatchError(f"{self.file}: exists already (patch: {self.reason})")
        elif old_text is None or self.replaces not in old_text:
            raise PatchError(f"{self.file}: {self.replaces!r} not found (patch: {self.reason})")


def _literal(file: str, reason: str, old: str, new: str, count: int = 1) -> Patch:
    return Patch(file, reason, re.escape(old), new.replace("\\", r"\\"), count)


def _numpy_aliases(file: str, count: int) -> Patch:
    # \b after the name keeps np.int64, np.bool_ and np.float32 as they are.
    return Patch(
        f"detectron2/{file}",
        "NumPy 1.24 removed the aliases of the builtin types",
        r"\bnp\.(bool|int|float|object)\b",
        r"\1",
        count,
    )


_CONFIGS_WITHOUT_SYMLINK = """\
    package = path.join(path.dirname(path.realpath(__file__)), "detectron2", "model_zoo")
    return [
        path.relpath(name, package)
        for suffix in ("yaml", "py")
        for name in glob.glob(path.join(package, "configs", "**", "*." + suffix), recursive=True)
    ]


# For projects"""

PATCHES: tuple[Patch, ...] = (
    # A pure Python wheel that carries the model-zoo configs.
    _literal("setup.py", "no C++ sources to build", "    ext_modules=get_extensions(),\n", ""),
    _literal(
        "setup.py",
        "no C++ sources to build",
        '    cmdclass={"build_ext": torch.utils.cpp_extension.BuildExtension},\n',
        "",
    ),
    Patch(
        "setup.py",
        "ship the configs that lie inside the package",
        r"    # Use absolute paths while symlinking\.\n(?:.*\n)*?# For projects",
        _CONFIGS_WITHOUT_SYMLINK,
    ),
    # The pins of 2021 conflict with today's versions; scripts/requirements.txt lists what is
    # needed, so that an installed detectron2 passes `pip check`.
    Patch("setup.py", "outdated pin", r'"black==21\.4b2",', '"black",'),
    Patch("setup.py", "was for caffe2", r'^ *"future", .*\n', ""),
    _numpy_aliases("data/build.py", 2),
    _numpy_aliases("evaluation/pascal_voc_evaluation.py", 2),
    _numpy_aliases("evaluation/sem_seg_evaluation.py", 7),
    _numpy_aliases("structures/masks.py", 3),
    _numpy_aliases("utils/video_visualizer.py", 1),
    _numpy_aliases("utils/visualizer.py", 3),
    _literal(
        "detectron2/data/transforms/transform.py",
        "Pillow 10 removed Image.LINEAR",
        "interp=Image.LINEAR",
        "interp=Image.BILINEAR",
    ),
    _literal(
        "detectron2/model_zoo/model_zoo.py",
        "setuptools 82 removed pkg_resources",
        "import pkg_resources\n",
        "from importlib import resources\n",
    ),
    _literal(
        "detectron2/model_zoo/model_zoo.py",
        "setuptools 82 removed pkg_resources",
        'pkg_resources.resource_filename(\n        "detectron2.model_zoo", '
        'os.path.join("configs", config_path)\n    )',
        'str(resources.files("detectron2.model_zoo").joinpath("configs", config_path))',
    ),
    # Without this the state of a plain torch scheduler is silently not saved.
    _literal(
        "detectron2/engine/hooks.py",
        "torch 2 schedulers derive from LRScheduler",
        "torch.optim.lr_scheduler._LRScheduler",
        "torch.optim.lr_scheduler.LRScheduler",
        count=2,
    ),
    # detectron2.utils.analysis imports this package.
    _literal(
        "detectron2/export/__init__.py",
        "torch 2 has no caffe2",
        "from .api import *\n",
        "try:\n    from .api import *  # needs caffe2\nexcept ImportError:\n    pass\n",
    ),
    # Several CPU processes, as on the official main branch.
    _literal(
        "detectron2/engine/launch.py",
        "launch without a GPU",
        '    assert torch.cuda.is_available(), "cuda is not available. '
        'Please check your installation."\n',
        "    has_gpu = torch.cuda.is_available()\n",
    ),
    _literal(
        "detectron2/engine/launch.py",
        "launch without a GPU",
        'backend="NCCL",',
        'backend="NCCL" if has_gpu else "GLOO",',
    ),
    _literal(
        "detectron2/engine/launch.py",
        "launch without a GPU",
        "    assert num_gpus_per_machine <= torch.cuda.device_count()\n"
        "    torch.cuda.set_device(local_rank)\n",
        "    if has_gpu:\n"
        "        assert num_gpus_per_machine <= torch.cuda.device_count()\n"
        "        torch.cuda.set_device(local_rank)\n",
    ),
)

NEW_FILES: tuple[NewFile, ...] = (
    NewFile("detectron2/_C.py", "stand-in for the compiled module", _HERE / "_C.py"),
    NewFile(
        "detectron2/evaluation/fast_eval_api.py",
        "COCOeval_opt without detectron2._C",
        _HERE / "fast_eval_api.py",
        replaces="_C.COCOevalEvaluateImages(",
    ),
)


def apply_patches(source: Path) -> int:
    """Patch the unpacked source distribution in ``source``, in place; how many were applied.

    Every patch is checked before the first file is written.

    Raises:
        PatchError: a text that a patch expects is not there.
    """
    texts: dict[str, str] = {}
    for patch in PATCHES:
        if patch.file not in texts:
            texts[patch.file] = _read(source / patch.file, patch.reason)
        texts[patch.file] = patch.apply(texts[patch.file])
    for new in NEW_FILES:
        target = source / new.file
        new.check(target.read_text(encoding="utf-8") if target.exists() else None)
        texts[new.file] = new.source.read_text(encoding="utf-8")
    for file, text in texts.items():
        (source / file).write_text(text, encoding="utf-8")
    return len(PATCHES) + len(NEW_FILES)


def _read(path: Path, reason: str) -> str:
    if not path.is_file():
        raise PatchError(f"{path} does not exist (patch: {reason})")
    return path.read_text(encoding="utf-8")
