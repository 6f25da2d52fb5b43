"""Searches of whole detectors: killed and resumed, and on two processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from detectron2.engine import launch

from detnas_d2.engine.gradient_search import gradient_search
from detnas_d2.engine.launching import call_and_leave
from tests.engine import hit_processes as work
from tests.engine.hit_runs import run, toy_step

ROOT = Path(__file__).parents[2]


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_search_killed_by_sigkill_resumes_to_the_same_result(tmp_path):
    command = [sys.executable, "-m", "tests.engine.hit_processes", str(tmp_path), "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == -signal.SIGKILL, found.stdout + found.stderr
    assert not (tmp_path / "killed" / "model_final.pth").exists()
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_0000001.pth"
    resumed = gradient_search(work.killed_config(tmp_path, "killed"), resume=True)
    whole = gradient_search(work.killed_config(tmp_path, "whole"), resume=False)
    assert resumed == whole
    states = [weights(tmp_path / name) for name in ("whole", "killed")]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
    alphas = [value for name, value in states[0].items() if name.endswith("alpha")]
    assert len(alphas) == 3 and all(alpha.abs().min() > 0 for alpha in alphas)
    texts = [(tmp_path / name / "genotype.yaml").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]


def test_two_processes_search_what_one_does(tmp_path):
    launch(call_and_leave, 2, dist_url="auto", args=(work.two, str(tmp_path)))
    ranks = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    toy = run(toy_step("SyncBN"), range(3))
    for name, value in toy.items():
        torch.testing.assert_close(ranks[0]["toy"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    one = gradient_search(work.joint_config(tmp_path, "one"), resume=False)
    assert ranks[0]["genotype"] == ranks[1]["genotype"] == str(one)
    states = [weights(tmp_path / name) for name in ("one", "two")]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
        assert not name.endswith("alpha") or value.abs().max() > 0.03
