"""Two CPU processes against one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import launch

from detnas_d2.data import register_datasets
from detnas_d2.engine import UniformPathSampler, prepare, search
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.launching import call_and_leave
from detnas_d2.engine.supernet_check.plan import plan_of
from detnas_d2.engine.supernet_check.scores import score_paths
from detnas_d2.search import History
from tests.engine import two_processes as work
from tests.engine.tiny_runs import Configs, write_config

ROOT = Path(__file__).resolve().parents[2]
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Configs:
    """Configs of this module's tests, which read the same files."""
    return Configs(tmp_path_factory.mktemp("two"))


def checked(shared: Configs) -> CfgNode:
    """A supernet's training with its check."""
    cfg = shared("faster", "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", (), "SUPERNET.CHECK.PERIOD", 1)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.SUPERNET.CHECK.PATHS, cfg.SUPERNET.CHECK.CALIBRATION_IMAGES = 3, 4
    cfg.SEARCH.CALIBRATION.BATCH_SIZE = 2
    cfg.SUPERNET.CHECK.REQUIRED = False
    return cfg


@pytest.fixture(scope="module")
def ranks(shared: Configs) -> Results:
    """What each of two processes found."""
    supernet, searched = shared("faster", "SOLVER.MAX_ITER", 3), shared("faster")
    searched.SOLVER.MAX_ITER = 3
    searched.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    searched.MODEL.FPN.NORM = "SyncBN"
    searched.MODEL.DETNAS.PATH = str(work.PATH)
    cfgs = {"supernet": supernet, "searched": searched}
    cfgs["retinanet"] = shared("retinanet", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    cfgs |= {"classifier": shared("classifier"), "search": shared.search()}
    cfgs["checked"] = checked(shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        launch(call_and_leave, 2, dist_url="auto", args=(work.work, cfgs, str(shared.root)))
    files = [shared.root / f"{rank}.pth" for rank in range(2)]
    return [torch.load(file, weights_only=True) for file in files]


def test_sync_bn_is_bn_over_the_joint_batch(ranks: Results) -> None:
    norm = work.affine_norm("BN")
    for step, counts in enumerate(work.COUNTS):
        found = [rank["sync_bn"][step] for rank in ranks]
        parts = work.shares(counts)
        x = torch.cat([x for x, _ in parts]).requires_grad_(True)
        norm.zero_grad()
        y = norm(x)
        (y * torch.cat([d for _, d in parts])).sum().backward()
        assert [len(f["y"]) for f in found] == list(counts)
        torch.testing.assert_close(torch.cat([f["y"] for f in found]), y.detach())
        torch.testing.assert_close(torch.cat([f["x"] for f in found]), x.grad)
        for name in ("weight", "bias"):
            total = sum(f[name] for f in found)
            torch.testing.assert_close(total, getattr(norm, name).grad, rtol=1e-4, atol=1e-4)
        for f in found:
            for name, buffer in norm.named_buffers():
                torch.testing.assert_close(f[name], buffer)


@pytest.mark.parametrize("norm", ["GN", "SyncBN"])
def test_averaged_gradients_are_those_of_the_joint_batch(
    norm: str, ranks: Results, shared: Configs
) -> None:
    expected = work.gradients(work.classifier(shared("classifier"), norm), work.joint_batch())
    for found in (rank[norm] for rank in ranks):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[name] is None) == (gradient is None), name
            if gradient is not None:
                torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    off_path = [name for name, gradient in expected.items() if gradient is None]
    assert off_path and all(".candidates." in name for name in off_path)
    for name in ranks[0][norm]:
        first, second = (rank[norm][name] for rank in ranks)
        assert (first is None and second is None) or torch.equal(first, second)


@pytest.mark.parametrize("name", work.UPDATES)
def test_an_update_of_several_paths_is_that_of_the_joint_batch(
    name: str, ranks: Results, shared: Configs
) -> None:
    start = dict(work.classifier(shared("classifier"), "GN").named_parameters())
    expected = work.update(shared("classifier"), work.joint_batch(), work.UPDATES[name])
    moved = {key for key, weight in expected.items() if not torch.equal(weight, start[key])}
    assert any(".candidates." in key for key in expected.keys() - moved)
    for found in (rank[f"update, {name}"] for rank in ranks):
        for key, weight in expected.items():
            torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-6, msg=key)
            assert torch.equal(found[key], start[key]) == (key not in moved), key


def test_gradients_present_on_some_ranks(ranks: Results) -> None:
    for rank in ranks:
        assert rank["partial"] == [[1.5, 3.0], [2.0, 3.0], None]
        # The mean of both paths, 1 and (3 + 0) / 2.
        assert rank["partial paths"] == [1.25, 2.5]


def test_state_of_rank_0_is_broadcast(ranks: Results) -> None:
    assert torch.equal(ranks[0]["broadcast"], ranks[1]["broadcast"])
    assert ranks[0]["broadcast"].abs().sum() > 0


@pytest.mark.parametrize("kind", ["supernet", "searched"])
def test_ranks_train_the_same_weights(kind: str, ranks: Results) -> None:
    first, second = (rank[kind] for rank in ranks)
    expected = [str(path) for i in range(3) for path in UniformPathSampler(work.TINY, 0)(i)]
    assert first["paths"] == second["paths"] == (expected if kind == "supernet" else [])
    moved = 0
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
        moved += not torch.equal(weight, first["start"][name])
    assert moved > 50
    results = [rank[kind]["results"] for rank in ranks]
    assert ("AP50" in results[0]) == (kind == "searched")


def test_ranks_evaluate_the_statistics_of_the_checkpoint(ranks: Results, shared: Configs) -> None:
    saved = torch.load(shared.root / "searched" / "model_final.pth", weights_only=True)["model"]
    found = [rank["searched"]["buffers"] for rank in ranks]
    means = [name for name in found[0] if name.endswith("running_mean")]
    assert means
    for name in means:  # each rank had its own images
        assert torch.equal(found[0][name], found[1][name]), name
        assert torch.equal(found[0][name], saved[name]), name


def test_ranks_share_what_divides_their_losses(ranks: Results) -> None:
    """Their images have different numbers of positive anchors."""
    first, second = (rank["retinanet"]["normalizers"] for rank in ranks)
    assert first == second
    ((name, value),) = first.items()
    assert name == "" and value != 100  # where it starts


def test_recalibration_and_fitness_do_not_depend_on_the_number_of_ranks(
    ranks: Results, shared: Configs
) -> None:
    # Two ranks evaluate a population, one process evaluates path by path.
    alone = work.evaluation(shared.search(), "sequential")
    for evaluations in (rank["evaluation"] for rank in ranks):
        assert evaluations.keys() == alone.keys()
        for path, expected in alone.items():
            _same_evaluation(evaluations[path], expected)


def _same_evaluation(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["statistics"].keys() == expected["statistics"].keys()
    for name, (count, mean, variance) in expected["statistics"].items():
        assert found["statistics"][name][0] == count
        torch.testing.assert_close(found["statistics"][name][1], mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found["statistics"][name][2], variance, rtol=1e-6, atol=1e-6)
    assert found["fitness"] == expected["fitness"]
    assert str(found["metrics"]) == str(expected["metrics"])
    assert found["stages"] == ["inference", "recalibration", "scoring"]


def test_failure_on_one_rank_is_heard_on_all(ranks: Results) -> None:
    assert ranks[0]["failure"] == "RuntimeError: rank 1: FloatingPointError: not finite"
    assert ranks[1]["failure"].startswith("FloatingPointError: not finite")


def test_search_whose_rank_was_killed_resumes_to_what_one_process_finds(shared: Configs) -> None:
    cfg = shared.search("SEARCH.CHUNK", 2, "SEARCH.OBJECTIVES", ["fitness", "macs"])
    cfg.OUTPUT_DIR = str(shared.root / "two")
    file = write_config(cfg, shared.root / "search.yaml")
    program = str(ROOT / "projects" / "DetNAS" / "search_net.py")
    command = [sys.executable, program, "--config-file", file, "--num-gpus", "2"]
    command += ["--dist-url", "auto"]
    log = shared.root / "killed.txt"
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        lines = shared.root / "two" / "history.jsonl"
        while process.poll() is None and not (lines.exists() and lines.stat().st_size):
            time.sleep(0.01)
        os.kill(_last_rank(process.pid), signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    assert "terminated with signal SIGKILL" in log.read_text()
    assert 0 < len(History.read(shared.root / "two")) < 12
    run = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    cfg.OUTPUT_DIR = str(shared.root / "one")
    prepare(cfg, work.ARGS)
    best = search(cfg, resume=False)
    histories = [History.read(shared.root / name) for name in ("one", "two")]
    assert histories[0].identity() == histories[1].identity()
    assert len(histories[0]) == 12 and not histories[0].failed
    assert best.fitness is not None and len({record.fitness for record in histories[0]}) > 4
    for file in ("best.yaml", "best_inherited.yaml", "front.yaml", "front/1.yaml"):
        texts = [(shared.root / name / file).read_text() for name in ("one", "two")]
        assert texts[0].replace("/one/", "/two/") == texts[1]
    assert "interval" in (shared.root / "two" / "front.yaml").read_text()
    for file in ("best_inherited.pth", "front/1.pth"):
        weights = [torch.load(shared.root / name / file) for name in ("one", "two")]
        torch.testing.assert_close(weights[0]["model"], weights[1]["model"])


def _last_rank(launcher: int) -> int:
    """Process id of the last process that ``launch`` has spawned."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(ranks) == 2
    return int(ranks[-1])


def test_a_check_on_two_processes(ranks: Results, shared: Configs) -> None:
    """Both ranks know the scores, which are those of one process with the same weights."""
    cfg, folder = checked(shared), shared.root / "checked"
    register_datasets(cfg)
    record = json.loads((folder / "supernet.json").read_text())
    assert ranks[0]["checked"] == ranks[1]["checked"]
    assert ranks[0]["checked"]["score_mean"] == record["mean"]
    assert record["standalone"]["updates"] == 1
    cfg.MODEL.WEIGHTS, plan = str(folder / "model_final.pth"), plan_of(cfg, work.TINY)
    alone = score_paths(plan.whole, load_supernet(cfg), plan.paths)
    assert [found.score for found in alone] == pytest.approx(
        [path["score"] for path in record["paths"]], abs=1e-6
    )
    assert any(found.score > 0 for found in alone)
