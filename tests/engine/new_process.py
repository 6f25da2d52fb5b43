"""A training that was killed after a checkpoint goes on in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode

from tests.engine.tiny_runs import write_config

PROJECTS = Path(__file__).resolve().parents[2] / "projects"


def resumed(whole: CfgNode, program: str, folder: Path, checkpoint: str) -> dict[str, object]:
    """The final checkpoint of the run of ``whole`` if it had been killed after ``checkpoint``.

    A process may differ in what it has done before: the same functions run a first time again,
    loaders and generators are new. So the run goes on in one that has done nothing.
    """
    folder.mkdir()
    torn = folder / "out"
    torn.mkdir()
    shutil.copy(Path(whole.OUTPUT_DIR, checkpoint), torn)
    (torn / "last_checkpoint").write_text(checkpoint)
    cfg = whole.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(torn)
    file = write_config(cfg, folder / "run.yaml")
    command = [sys.executable, str(PROJECTS / program), "--config-file", file, "--resume"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Starting training from iteration 0" not in run.stdout + run.stderr
    return torch.load(torn / "model_final.pth", weights_only=True)
