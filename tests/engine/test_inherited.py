"""What a search finds, with the supernet's weights: the winner's fitness, without training."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model

from detnas_d2.config.reading import read_yaml
from detnas_d2.config.tools import load_config
from detnas_d2.engine import inherited as MODULE
from detnas_d2.engine import prepare, search, train_main
from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.engine.inference import Predictor, load_trained
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.layers.batch_norm_mode import batch_norms
from detnas_d2.pipeline.tested_images import saved_matches
from detnas_d2.search import History
from tests.engine.hit_runs import scene_config
from tests.engine.test_declared_space import OPTS
from tests.engine.tiny_runs import Configs, arguments, write_config

FILES = ("best_inherited.pth", "best_inherited.yaml")


def run(cfg: CfgNode, *, resume: bool = False, config_dir: str = "") -> CandidateRecord:
    prepare(cfg, arguments())
    return search(cfg, resume=resume, config_dir=config_dir)


def evaluated(config_file: str, *opts: str) -> dict[str, float]:
    """Results of train_net.py --eval-only."""
    args = arguments(config_file, *opts)
    args.eval_only = True
    return dict(flatten_results_dict(train_main(args)))


def random_supernet(cfg: CfgNode, file: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, file)


def detector(configs: Configs, root: Path, kind: str) -> CfgNode:
    return configs.search("SEARCH.GENERATIONS", 1, "SEARCH.POPULATION", 2, kind=kind)


def classifier(configs: Configs, root: Path, kind: str) -> CfgNode:
    cfg = configs(kind, "SEARCH.VAL", "colors@search_val", "SEARCH.POPULATION", 3)
    cfg.SEARCH.GENERATIONS = 1
    cfg.SEARCH.CALIBRATION.IMAGES, cfg.SEARCH.CALIBRATION.BATCH_SIZE = 4, 2
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = str(root / "search"), str(root / "supernet.pth")
    random_supernet(cfg, root / "supernet.pth")
    return cfg


def elastic(configs: Configs, root: Path, kind: str) -> CfgNode:
    """Over a declared space with blocks of several kinds, skipped ones among them."""
    cfg = configs.search("SEARCH.GENERATIONS", 1, "SEARCH.POPULATION", 2, *OPTS)
    cfg.MODEL.WEIGHTS = str(root / "supernet.pth")
    random_supernet(cfg, root / "supernet.pth")
    return cfg


def hit_detector(configs: Configs, root: Path, kind: str) -> CfgNode:
    options = ("MODEL.HIT.STRATEGY", "sampling", "HIT_SEARCH.ARCH_START_ITER", -1)
    limits = ("SEARCH.MAX_MACS_INPUT", [64, 64], "SEARCH.POPULATION", 3, "SEARCH.GENERATIONS", 1)
    images = ("SEARCH.CALIBRATION.IMAGES", 4, "SEARCH.CALIBRATION.BATCH_SIZE", 2)
    scores = ("SEARCH.VAL", "digits_scenes_train@search_val", "SEARCH.SCORING_WORKERS", 0)
    weights = ("MODEL.WEIGHTS", str(root / "supernet.pth"))
    everything = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    cfg = scene_config(
        *(root, "search.yaml", "search", *options, *limits, *images, *scores, *weights, *everything)
    )
    random_supernet(cfg, root / "supernet.pth")
    return cfg


@pytest.mark.parametrize(
    ("kind", "searching"),
    [
        ("faster", detector),
        ("retinanet", detector),
        ("classifier", classifier),
        ("elastic", elastic),
        ("hit", hit_detector),
    ],
)
def test_evaluated_as_it_stands_it_has_the_fitness_of_the_winner(
    kind: str, searching: object, configs: Configs, tmp_path: Path
) -> None:
    cfg = searching(configs, tmp_path, kind)
    best = run(cfg)
    file = os.path.join(cfg.OUTPUT_DIR, "best_inherited.yaml")
    found = evaluated(file)
    metric = next(key for key in ("bbox/AP", "classification/top1") if key in found)
    assert found[metric] == pytest.approx(best.fitness, abs=1e-6)
    assert best.fitness > 0 or kind == "hit"
    for key, value in best.metrics.items():
        assert value is None or found[key] == pytest.approx(value, abs=1e-6), key
    # Every BatchNorm, of neck and heads too, has statistics of images instead of 0 and 1.
    norms = batch_norms(load_trained(load_config(file, ["MODEL.DEVICE", "cpu"])))
    assert norms and all(norm.running_mean.abs().sum() > 0 for norm in norms.values())


def test_nothing_but_the_network_is_in_the_file(configs: Configs) -> None:
    cfg = detector(configs, configs.root, "faster")
    best = run(cfg)
    checkpoint = torch.load(os.path.join(cfg.OUTPUT_DIR, FILES[0]), weights_only=True)
    assert checkpoint["inherited"]["path"] == best.path
    network = load_config(os.path.join(cfg.OUTPUT_DIR, FILES[1]), ["MODEL.DEVICE", "cpu"])
    expected = build_model(network).state_dict()
    assert list(checkpoint["model"]) == list(expected)
    for key, value in checkpoint["model"].items():
        assert value.shape == expected[key].shape and value.device.type == "cpu"
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), key
    predictor = Predictor(network)
    assert "instances" in predictor(torch.zeros(48, 64, 3, dtype=torch.uint8).numpy())


def test_it_starts_networks_of_another_config(configs: Configs, tmp_path: Path) -> None:
    """best.yaml is RETRAIN_CONFIG: other data, SyncBN, other classes when it is fine-tuned."""
    retrain = configs("faster", "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone")
    retrain.MODEL.FPN.NORM = retrain.MODEL.ROI_BOX_HEAD.NORM = "SyncBN"
    retrain.DATASETS.TEST = ("shapes",)
    write_config(retrain, tmp_path / "retrain.yaml")
    cfg = configs.search("SEARCH.GENERATIONS", 1, "SEARCH.RETRAIN_CONFIG", "retrain.yaml")
    run(cfg, config_dir=str(tmp_path))
    best, weights = (os.path.join(cfg.OUTPUT_DIR, name) for name in ("best.yaml", FILES[0]))
    found = evaluated(best, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "tested"))
    assert "bbox/AP" in found
    # The same network, tested on the same images, by both configs.
    opts = ("DATASETS.TEST", "('shapes',)", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05")
    assert str(found) == str(evaluated(os.path.join(cfg.OUTPUT_DIR, FILES[1]), *opts))


def test_a_finished_search_keeps_its_file(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = detector(configs, configs.root, "faster")
    run(cfg)
    file = Path(cfg.OUTPUT_DIR, FILES[0])
    first, content = file.stat(), read_checkpoint(str(file))

    def again() -> dict[str, torch.Tensor]:
        run(cfg.clone(), resume=True)
        return read_checkpoint(str(file))["model"]

    saved = []
    write = MODULE.write_checkpoint
    monkeypatch.setattr(MODULE, "write_checkpoint", lambda *a: (saved.append(a), write(*a)))
    again()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert not saved
    # Cut off, or of another path: it is written again, with the same statistics.
    file.write_bytes(file.read_bytes()[:-100])
    state = again()
    assert all(torch.equal(state[key], value) for key, value in content["model"].items())
    torch.save({**content, "inherited": {**content["inherited"], "path": "another"}}, file)
    again()
    assert len(saved) == 2
    assert read_checkpoint(str(file))["inherited"] == content["inherited"]
    assert len(History.read(cfg.OUTPUT_DIR)) == 2


class TestFront:
    OBJECTIVES = ("SEARCH.OBJECTIVES", ["fitness", "macs"], "SEARCH.GENERATIONS", 2)

    def searched(
        self, configs: Configs, *opts: object, resume: bool = False
    ) -> tuple[CfgNode, list[dict[str, object]]]:
        cfg = configs.search("SEARCH.POPULATION", 6, *self.OBJECTIVES, *opts)
        run(cfg, resume=resume)
        return cfg, read_yaml(os.path.join(cfg.OUTPUT_DIR, "front.yaml")).data["members"]

    def test_members_evaluated_as_they_stand_have_their_fitness(self, configs: Configs) -> None:
        cfg, members = self.searched(configs)
        assert len(members) > 1
        for number, member in enumerate(members, start=1):
            file = os.path.join(cfg.OUTPUT_DIR, "front", f"{number}.yaml")
            assert member["number"] == number
            assert member["path"] == load_config(file).MODEL.DETNAS.PATH
            found = evaluated(file)
            assert found["bbox/AP"] == pytest.approx(member["fitness"], abs=1e-6)
            folder = os.path.join(cfg.OUTPUT_DIR, "front", str(number))
            matches = saved_matches(load_config(file), folder, found["bbox/AP"])
            assert member["interval"] == pytest.approx(matches.interval, abs=1e-6)

    def test_what_is_there_is_kept(self, configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
        """In small chunks too, and other members than those of this front go."""
        cfg, members = self.searched(configs)
        folder = Path(cfg.OUTPUT_DIR, "front")
        states = {n: read_checkpoint(str(folder / f"{n}.pth")) for n in range(1, len(members) + 1)}
        (folder / "1.pth").unlink()
        (folder / "2.pth").write_bytes(b"cut off")
        for name in ("99.pth", "99.yaml", "notes.yaml"):
            (folder / name).write_text("left behind")
        saved = []
        write = MODULE.write_checkpoint
        monkeypatch.setattr(MODULE, "write_checkpoint", lambda *a: (saved.append(a[0]), write(*a)))
        assert self.searched(configs, "SEARCH.CHUNK", 1, resume=True)[1] == members
        assert [os.path.basename(file) for file in saved] == ["1.pth", "2.pth"]
        assert not (folder / "99.pth").exists() and not (folder / "99.yaml").exists()
        assert (folder / "notes.yaml").exists()
        for number, state in states.items():
            again = read_checkpoint(str(folder / f"{number}.pth"))
            assert again["inherited"] == state["inherited"]
            for key, value in state["model"].items():
                assert torch.equal(again["model"][key], value), key
