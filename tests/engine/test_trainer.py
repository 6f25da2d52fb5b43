"""Training: only the active path learns, and an interrupted run continues to the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detnas_d2.data import build_train_loader
from detnas_d2.engine import PathTrainer, Trainer, evaluate, prepare, train
from detnas_d2.engine.architectures import decode_backbones
from detnas_d2.engine.trainers import precise_bn
from detnas_d2.engine.trainers.iteration import iteration_seed, loss_normalizers
from detnas_d2.modeling import WeightsError, find_supernet
from detnas_d2.search_space import SPACES
from detnas_d2.search_space import Path as NetworkPath
from tests.engine.new_process import resumed
from tests.engine.tiny_runs import Configs, arguments, write_config
from tests.helpers import changed, classification_batch, snapshot, training_batch

ROOT = Path(__file__).resolve().parents[2]
TINY = SPACES["detnas_tiny"]
ARGS = arguments()


def disjoint_paths() -> list[NetworkPath]:
    """Paths that share no candidate."""
    layers = range(TINY.num_layers)
    return [TINY.path([(layer + shift) % 4 for layer in layers]) for shift in range(4)]


def endless(kind: str) -> Iterator[list[dict]]:
    number = 0
    while True:
        generator = torch.Generator().manual_seed(number)
        if kind == "classifier":
            yield classification_batch(32, [0, 1, 2, number % 3], seed=number)
        else:
            yield training_batch(sizes=((64, 64),), generator=generator)
        number += 1


def momenta(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}
    found = {name: state.get("momentum_buffer") for name, state in states.items()}
    return {name: value.clone() for name, value in found.items() if value is not None}


def steps(step: PathTrainer, count: int, start: int = 0) -> Iterator[int]:
    """Runs ``count`` iterations; yields the number of each when it is done."""
    with EventStorage(start) as storage:
        for iteration in range(start, start + count):
            step.iter = storage.iter = iteration
            step.run_step()
            yield iteration


@pytest.mark.parametrize("kind", ["classifier", "faster"])
def test_only_the_active_path_learns(kind: str, configs: Configs) -> None:
    cfg = configs(kind, "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", 0.1)
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    first, second = disjoint_paths()[:2]
    sequence = [first, second, first, second]
    step = PathTrainer(model, optimizer, path_sampler=lambda i: (sequence[i],), seed=0)
    step.set_data(endless(kind))
    weights, moving = snapshot(model), momenta(model, optimizer)
    prefix = next(n for n, m in model.named_modules() if m is find_supernet(model))
    for iteration in steps(step, len(sequence)):
        moved = changed(model, weights)
        after = momenta(model, optimizer)
        for name, before in moving.items():
            if not torch.equal(after[name], before):
                moved.add(f"momentum of {name}")
        moved |= {f"momentum of {name}" for name in after.keys() - moving.keys()}
        path = sequence[iteration]
        on_path = {f"{prefix}.blocks.{i}.candidates.{op}." for i, op in enumerate(path.ops)}
        off_path = [n for n in moved if ".candidates." in n and not any(p in n for p in on_path)]
        assert off_path == []
        for place in on_path:
            for tensor in ("norm.weight", "norm.bias", "conv.weight", "norm.running_mean"):
                assert f"{place}main.0.{tensor}" in moved
            assert f"momentum of {place}main.0.norm.weight" in moved
        for name, p in model.named_parameters():
            active = ".candidates." not in name or any(name.startswith(q) for q in on_path)
            assert (p.grad is not None) == active, name
        weights, moving = snapshot(model), after


def test_weight_decay_of_normalisation_and_biases(configs: Configs) -> None:
    keys = ("SOLVER.WEIGHT_DECAY_NORM", 0.25, "SOLVER.WEIGHT_DECAY_BIAS", 0.0)
    cfg = configs("faster", "SOLVER.WEIGHT_DECAY", 0.5, *keys, "SOLVER.BIAS_LR_FACTOR", 2.0)
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p]: g for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == set(names.values())
    for name, group in found.items():
        if name.endswith(".bias"):
            assert (group["weight_decay"], group["lr"]) == (0, 0.02), name
        else:
            decay = 0.25 if "norm" in name else 0.5
            assert (group["weight_decay"], group["lr"]) == (decay, 0.01), name


def test_random_choices_of_an_iteration() -> None:
    seeds = [iteration_seed(s, i, r) for s in (0, 1) for i in range(5) for r in range(2)]
    assert len(set(seeds)) == 20 and all(0 <= seed < 2**63 for seed in seeds)
    assert iteration_seed(3, 7, 1) == iteration_seed(3, 7, 1)


def test_a_sampler_goes_with_a_supernet(configs: Configs) -> None:
    model = build_model(configs("classifier"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="path sampler"):
        PathTrainer(model, optimizer, path_sampler=None, seed=0)


@pytest.mark.parametrize("kind", ["classifier", "faster"])
def test_mixed_precision_on_cpu(kind: str, configs: Configs) -> None:
    cfg = configs(kind, "SOLVER.AMP.ENABLED", True)
    torch.manual_seed(0)
    model = build_model(cfg)
    step = Trainer.build_step(cfg, model, Trainer.build_optimizer(cfg, model))
    step.set_data(endless(kind))
    supernet, dtypes = find_supernet(model), []
    supernet.stem.conv.register_forward_hook(lambda m, x, y: dtypes.append(y.dtype))
    before = snapshot(model)
    assert list(steps(step, 3)) == [0, 1, 2]
    assert dtypes == [torch.bfloat16] * 3
    moved = changed(model, before)
    assert any(name.endswith("stem.conv.weight") for name in moved)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


class Interrupt(HookBase):
    """Stops a training as Ctrl-C does, before an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def test_a_training_interrupted_after_its_last_update_is_not_tested(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does an error of that test take the place of the interruption."""

    class InterruptAtTheEnd(HookBase):
        def after_step(self) -> None:
            if self.trainer.iter + 1 == self.trainer.max_iter:
                raise KeyboardInterrupt

    tested = []
    monkeypatch.setattr(Trainer, "test", lambda *args: tested.append(args) or {})
    cfg = searched(configs("faster"))
    prepare(cfg, ARGS)
    trainer = Trainer(cfg)
    trainer.register_hooks([InterruptAtTheEnd()])
    trainer.resume_or_load(resume=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not tested
    train(cfg, resume=True)
    assert len(tested) == 1


def same(ours: object, theirs: object) -> bool:
    """Equality of nested checkpoints, to the bit."""
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def final(cfg: CfgNode) -> dict[str, object]:
    return torch.load(Path(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)


def searched(cfg: CfgNode) -> CfgNode:
    decode_backbones(cfg)
    cfg.MODEL.DETNAS.PATH = str(disjoint_paths()[0])
    return cfg


@pytest.mark.parametrize("kind", ["classifier", "faster", "retinanet", "searched"])
def test_resumed_training_is_the_uninterrupted_one(
    kind: str, configs: Configs, tmp_path: Path
) -> None:
    whole = configs("faster" if kind == "searched" else kind)
    if kind == "searched":
        whole = searched(whole)
    torn = whole.clone()
    whole.OUTPUT_DIR, torn.OUTPUT_DIR = str(tmp_path / "whole"), str(tmp_path / "torn")
    prepare(whole, ARGS)
    results = train(whole, resume=False)
    prepare(torn, ARGS)
    trainer = Trainer(torn)
    trainer.register_hooks([Interrupt(5)])
    trainer.resume_or_load(resume=True)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert Path(torn.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000003.pth"
    again = train(torn, resume=True)
    assert same(final(torn), final(whole))
    if kind != "searched":
        assert results is None and again is None
        assert train(torn, resume=True) is None
        return
    assert {"AP", "AP50"} <= results["bbox"].keys()
    # Killed between the last checkpoint and the evaluation, a training is evaluated on resuming.
    torn.defrost()
    torn.MODEL.WEIGHTS = str(Path(torn.OUTPUT_DIR, "model_final.pth"))
    for other in (again, train(torn, resume=True), evaluate(torn)):
        assert str(other) == str(results)  # as text: some are NaN


def test_killed_program_resumes_to_the_same_weights(configs: Configs, tmp_path: Path) -> None:
    cfg = configs("retinanet", "SOLVER.MAX_ITER", 12, "SOLVER.STEPS", (8,))
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    program = str(ROOT / "projects" / "DetNAS" / "train_net.py")
    command = [sys.executable, program, "--config-file", write_config(cfg, tmp_path / "train.yaml")]
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        mark = Path(cfg.OUTPUT_DIR, "last_checkpoint")
        while process.poll() is None and not mark.exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert not Path(cfg.OUTPUT_DIR, "model_final.pth").exists()
    run = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Starting training from iteration 0" not in run.stdout + run.stderr
    whole = cfg.clone()
    whole.OUTPUT_DIR = str(tmp_path / "whole")
    prepare(whole, ARGS)
    train(whole, resume=False)
    assert same(final(cfg), final(whole))


class Normalizers(HookBase):
    """Notes the model's loss normaliser after each step, where it stands among the hooks."""

    def __init__(self) -> None:
        self.found = []

    def after_step(self) -> None:
        self.found.append(loss_normalizers(self.trainer.model))


def test_precise_statistics_in_a_new_process(
    configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float, float]] = []
    monkeypatch.setattr(precise_bn, "tell_part", lambda *part: told.append(part))
    keys = ("TEST.EVAL_PERIOD", 2, "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 3)
    cfg = searched(configs("retinanet", *keys))
    cfg.OUTPUT_DIR = str(tmp_path / "whole")
    prepare(cfg, ARGS)
    trainer = Trainer(cfg)
    before, after, batches = Normalizers(), Normalizers(), []
    trainer._hooks = [before, *trainer._hooks, after]
    before.trainer = after.trainer = weakref.proxy(trainer)
    forward = trainer.model.forward

    def noted(data: list[dict]) -> object:
        if trainer.model.training and not torch.is_grad_enabled():
            batches.append([d["image_id"] for d in data])
        return forward(data)

    trainer.model.forward = noted
    trainer.resume_or_load(resume=False)
    trainer.train()
    sampled = iter(build_train_loader(cfg, start_iter=2))
    following = [[d["image_id"] for d in next(sampled)] for _ in range(7)]
    assert batches == [*following[0:3], *following[2:5], *following[4:7]]
    assert told == [("BatchNorm statistics", done, 3) for _ in range(3) for done in range(3)]
    # The hook between them runs the model but leaves what its losses are divided by.
    assert before.found == after.found and len(before.found) == 6
    again = resumed(cfg, "DetNAS/train_net.py", tmp_path / "torn", "model_0000003.pth")
    assert same(again, final(cfg))


def test_what_cannot_be_trained_or_evaluated(configs: Configs) -> None:
    cfg = configs("faster", "SEED", -1)
    with pytest.raises(ValueError, match="SEED -1: expected a number >= 0"):
        Trainer(cfg)
    cfg = configs("faster", "TEST.PRECISE_BN.ENABLED", True)
    with pytest.raises(ValueError, match="PRECISE_BN.ENABLED: a supernet"):
        Trainer(cfg)
    cfg = configs("faster")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        evaluate(cfg)
    cfg.MODEL.WEIGHTS = "any.pth"
    with pytest.raises(ValueError, match="is a supernet and has no path to evaluate"):
        evaluate(cfg)


def test_weights_of_a_part_are_not_evaluated(configs: Configs, tmp_path: Path) -> None:
    cfg = searched(configs("faster"))
    state = build_model(cfg).backbone.state_dict()
    file = str(tmp_path / "backbone.pth")
    torch.save({"model": {f"backbone.{name}": value for name, value in state.items()}}, file)
    cfg.MODEL.WEIGHTS = file
    with pytest.raises(WeightsError, match=r"in part only.*proposal_gen"):
        evaluate(cfg)
