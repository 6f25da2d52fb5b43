"""Searches of whole detectors in processes of their own, for ``test_hit_processes.py``.

As a program, ``hit_processes.py FOLDER ITERATION``: a search that kills itself (SIGKILL) there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from detnas_d2.engine.gradient_search import gradient_search
from detnas_d2.engine.trainers.bilevel_step import BilevelStep
from tests.engine.hit_runs import run, scene_config, toy_step

ITERATIONS = 6
# Every anchor and every proposal is used, none is added: no random choice that would depend on
# which rank an image is on, and as many regions of each image.
ALL_SAMPLES = (
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 2000, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 10),
    *("MODEL.RPN.NMS_THRESH", 1.0, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
    *("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.1], "MODEL.HIT.NORM", "SyncBN"),
)


def killed_config(folder: Path, output: str) -> CfgNode:
    return scene_config(folder, "search.yaml", output, "SOLVER.MAX_ITER", ITERATIONS)


def joint_config(folder: Path, output: str) -> CfgNode:
    options = (*ALL_SAMPLES, "SOLVER.BASE_LR", 0.01, "SOLVER.CHECKPOINT_PERIOD", 100)
    return scene_config(folder, "search.yaml", output, *options)


def two(folder: str) -> None:
    """What each of two processes does: steps of the toy, then a search of a detector."""
    torch.set_num_threads(1)
    rank = comm.get_rank()
    state = run(toy_step("SyncBN", rank=rank, world=2), range(3))
    genotype = gradient_search(joint_config(Path(folder), "two"), resume=False)
    torch.save({"toy": state, "genotype": str(genotype)}, f"{folder}/{rank}.pth")


def killed(folder: Path, iteration: int) -> None:
    """Searches until ``iteration``, and no cleaning up."""
    run_step = BilevelStep.run_step

    def dies(self: BilevelStep) -> None:
        if self.iter == iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        run_step(self)

    BilevelStep.run_step = dies
    gradient_search(killed_config(folder, "killed"), resume=False)


if __name__ == "__main__":
    killed(Path(sys.argv[1]), int(sys.argv[2]))
