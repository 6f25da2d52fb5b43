"""The DetNAS configs say what the paper does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from detnas_d2.config.tools import load_config
from detnas_d2.engine import Trainer
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.search.constraints import Constraint, Limits
from detnas_d2.search_space import build_cost_table, get_space
from tests.helpers import changed, snapshot, training_batch

CONFIGS = Path(__file__).parents[2] / "configs" / "DetNAS"
FILES = sorted(CONFIGS.rglob("*.yaml"))
PIPELINES = [file for file in FILES if "STAGES" in yaml.safe_load(file.read_text())]


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def load(name: str) -> CfgNode:
    return load_config(str(CONFIGS / name))


@pytest.mark.parametrize("depth", [50, 101])
def test_resnet_trains_one_step(depth: int) -> None:
    cfg = load(f"resnet{depth}_fpn_coco.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.FPN.NORM = "BN"  # Detectron2's own SyncBN does not run on CPUs
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    torch.manual_seed(0)
    model = build_model(cfg)
    step = Trainer.build_step(cfg, model, Trainer.build_optimizer(cfg, model))
    step.set_data([training_batch(sizes=((64, 64), (64, 64)))])
    before = snapshot(model)
    with EventStorage():
        step.iter = 0
        step.run_step()
    moved = changed(model, before)
    # Detectron2's ResNets keep stem and first stage.
    assert any(".res5." in name for name in moved) and not any(".res2." in name for name in moved)


@pytest.mark.parametrize(
    ("names", "iterations", "steps"),
    [
        ("*_300M_*_coco.yaml *_1.3G_*_coco.yaml *_3.8G_*_coco.yaml", 90_000, (60_000, 80_000)),
        ("*_300M_*_coco_scratch.yaml", 180_000, (120_000, 160_000)),
        ("*_300M_*_voc.yaml", 22_500, (15_000, 20_000)),
        ("*_300M_*_voc_scratch.yaml", 45_000, (30_000, 40_000)),
    ],
)
def test_iterations(names: str, iterations: int, steps: tuple[int, ...]) -> None:
    files = [f for pattern in names.split() for f in CONFIGS.glob(pattern) if f not in PIPELINES]
    assert len(files) >= 4
    for file in files:
        solver = load_config(str(file)).SOLVER
        rate = 0.01 if "retinanet" in file.name else 0.02
        assert (iterations, steps, rate) == (solver.MAX_ITER, solver.STEPS, solver.BASE_LR)
        assert solver.IMS_PER_BATCH == 16


def test_released_two_stage_detector() -> None:
    files = [f for f in CONFIGS.glob("*_fpn_*.yaml") if f not in PIPELINES]
    assert len(files) > 20
    for file in files:
        model = load_config(str(file)).MODEL
        beta, boundary = model.RPN.SMOOTH_L1_BETA, model.RPN.BOUNDARY_THRESH
        assert beta == pytest.approx(1 / 9) and boundary == 0
        head = model.ROI_BOX_HEAD
        assert (head.SMOOTH_L1_BETA, head.POOLER_TYPE) == (1.0, "ROIAlign")


def test_released_retinanet() -> None:
    files = [f for f in CONFIGS.glob("*_retinanet_*.yaml") if f not in PIPELINES]
    assert len(files) > 10
    for file in files:
        node = load_config(str(file)).MODEL.RETINANET
        assert (node.SMOOTH_L1_LOSS_BETA, node.NMS_THRESH_TEST) == (0.11, 0.4)
        assert (node.FOCAL_LOSS_ALPHA, node.FOCAL_LOSS_GAMMA, node.SCORE_THRESH_TEST) == (
            0.25,
            2.0,
            0.05,
        )


@pytest.mark.parametrize("head", ["fpn", "retinanet"])
def test_voc(head: str) -> None:
    for kind in ("supernet", "search", "retrain"):
        for end in ("",) if kind == "retrain" else ("", "_scratch"):
            cfg = load(f"{kind}_300M_{head}_voc{end}.yaml")
            node = "ROI_HEADS" if head == "fpn" else "RETINANET"
            assert cfg.MODEL[node].NUM_CLASSES == 20
            if kind == "retrain":
                assert cfg.DATASETS.TRAIN == ("voc_2007_trainval", "voc_2012_trainval")
                assert cfg.DATASETS.TEST == ("voc_2007_test",)
            else:
                both = "voc_2007_trainval+voc_2012_trainval"
                assert (f"{both}@search_train",) == cfg.DATASETS.TRAIN
                assert (f"{both}@search_val",) == cfg.DATASETS.TEST
                assert cfg.DATASETS.SEARCH_SPLIT.SIZE == 5000


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("search_*.yaml")), ids=name_of)
def test_search(file: Path) -> None:
    cfg = load_config(str(file))
    # Scored on images that the supernet has not seen, which are no test set.
    assert cfg.SEARCH.VAL.endswith("@search_val")
    train = [name.partition("@") for name in cfg.DATASETS.TRAIN]
    parent = cfg.SEARCH.VAL.partition("@")[0]
    assert [half for name, _, half in train if name == parent] == ["search_train"]
    assert (300_000_000 if "300M" in file.name else 1_300_000_000) == cfg.SEARCH.MAX_MACS
    kind = file.name.removeprefix("search_")
    if kind == "300M_imagenet.yaml":
        kind = "300M_imagenet_search.yaml"
    supernet = load(f"supernet_{kind}")
    assert f"{supernet.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
    assert cfg.MODEL.BACKBONE.NAME == supernet.MODEL.BACKBONE.NAME
    retrain = load(cfg.SEARCH.RETRAIN_CONFIG)
    assert retrain.MODEL.DETNAS.SPACE == cfg.MODEL.DETNAS.SPACE
    assert not any("@" in name for name in retrain.DATASETS.TRAIN)


def test_from_scratch_starts_from_nothing() -> None:
    files = sorted(CONFIGS.glob("supernet_*_scratch.yaml"))
    assert len(files) == 4
    for file in files:
        cfg = load_config(str(file))
        assert (cfg.MODEL.WEIGHTS, cfg.MODEL.DETNAS.INIT) == ("", "default")
    own = load("own_data/supernet.yaml")
    assert (own.MODEL.WEIGHTS, own.MODEL.DETNAS.INIT) == ("", "default")


def test_own_data_templates_are_small() -> None:
    methods = {"DetNAS": ("supernet", "retrain"), "HitDetector": ("search", "train")}
    for method, names in methods.items():
        for name in names:
            cfg = load_config(str(CONFIGS.parent / method / "own_data" / f"{name}.yaml"))
            assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80  # the default, which is filled in
            assert cfg.SOLVER.IMS_PER_BATCH <= 8 and cfg.INPUT.MAX_SIZE_TRAIN <= 900
            # Detectron2's rule: the rate grows with the batch, from 0.02 for 16 images.
            rate = cfg.SOLVER.BASE_LR / cfg.SOLVER.IMS_PER_BATCH
            assert rate == pytest.approx(0.02 / 16)
            assert max(cfg.SOLVER.STEPS) < cfg.SOLVER.MAX_ITER <= 5000
    search = load("own_data/search.yaml")
    costs = build_cost_table(get_space(search.MODEL.DETNAS.SPACE))
    macs = Constraint(Limits(), costs).tables["macs"]
    assert macs.cheapest() < search.SEARCH.MAX_MACS < macs.dearest()  # it limits something


@pytest.mark.parametrize("space", ["300M", "1.3G"])
def test_imagenet_recipe(space: str) -> None:
    for kind in ("supernet", "retrain"):
        solver = load(f"{kind}_{space}_imagenet.yaml").SOLVER
        assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (1024, 0.5, 300_000)
        assert solver.WEIGHT_DECAY == 4e-5 and solver.WEIGHT_DECAY_NORM == 0
    assert load(f"supernet_{space}_imagenet.yaml").SUPERNET.PATH_SAMPLING == "uniform"
    released = load("supernet_300M_imagenet_released.yaml").SUPERNET
    assert released.PATH_SAMPLING == "flops_bins"


def test_hand_made_network_is_scaled_to_the_released_one() -> None:
    def macs(name: str) -> int:
        node = load(name).MODEL.DETNAS
        space = get_space(node.SPACE)
        return build_cost_table(space).cost(space.path(node.PATH)).macs

    released = macs("detnasnet_1.3G_fpn_coco.yaml")
    for name in ("imagenet", "fpn_coco", "retinanet_coco"):
        assert 0.99 * released < macs(f"shufflenetv2_40_{name}.yaml") <= released


@pytest.mark.parametrize("file", PIPELINES, ids=name_of)
def test_pipeline(file: Path) -> None:
    pipeline = read_pipeline(str(file))
    names: list[str] = []
    for stage in pipeline.stages:
        cfg = load_config(str(file.parent / stage.config))
        # What is not named before is a file or one of the words of a path.
        assert not stage.weights or stage.weights in names
        assert stage.path in ("", *names) or stage.path.startswith(("uniform ", "random "))
        assert stage.kind != "search" or stage.weights
        if stage.path:
            assert "_supernet_" not in cfg.MODEL.BACKBONE.NAME
            space = get_space(cfg.MODEL.DETNAS.SPACE)
            if stage.path in names:
                source = load_config(str(file.parent / pipeline.stage(stage.path).config))
                assert get_space(source.MODEL.DETNAS.SPACE).stage_depths == space.stage_depths
            else:
                assert pipeline.path_of(stage, cfg).space == space
        names.append(stage.name)


@pytest.mark.parametrize("file", PIPELINES, ids=name_of)
def test_from_scratch_concerns_the_supernet_alone(file: Path) -> None:
    """Section 4.3(b): DetNAS-S is trained again as DetNAS-P is, ImageNet first."""
    pipeline = read_pipeline(str(file))
    scratch, pretrained = pipeline.stage("searched_scratch"), pipeline.stage("searched")
    if scratch is None:
        return
    assert scratch.config == pretrained.config and scratch.path == "search_scratch"
    first, other = pipeline.stage(scratch.weights), pipeline.stage(pretrained.weights)
    assert first.config == other.config and first.path == "search_scratch"
    assert not pipeline.stage("supernet_scratch").weights


def paper_of(table: str) -> dict[str, list]:
    rows = yaml.safe_load((CONFIGS / "tables" / f"{table}.yaml").read_text())["ROWS"]
    return {row["NAME"]: row["PAPER"] for row in rows if "PAPER" in row}


def test_numbers_called_the_papers_are_the_papers() -> None:
    """Tables 1, 3 and 4 of arXiv 1903.10979 v1."""
    detnas = {"DetNAS-S": "81.1 35.9 79.9 32.8", "DetNAS-P": "81.5 36.4 80.1 33.3"}
    others = {"ShuffleNetV2-20": "80.6 34.8 79.4 32.1", "ClsNASNet": "78.5 35.1 76.5 31.2"}
    top1 = {
        "DetNAS-S": "73.8 74.3 74.2 74.2",
        "DetNAS-P": "74.0 74.0 74.1 73.9",
        "ShuffleNetV2-20": "73.1 73.1 73.1 73.1",
        "ClsNASNet": "74.3 74.3 74.3 74.3",
    }
    paper = paper_of("table4")
    for name, scores in {**detnas, **others}.items():
        assert paper[name][::2] == scores.split() and paper[name][1::2] == top1[name].split()
    assert [text.split()[0] for text in paper["Random (5 networks)"][::2]] == [
        "80.9", "35.9", "79.0", "32.5",
    ]  # fmt: skip
    assert [text.split()[-1] for text in paper["Random (5 networks)"]] == [
        "0.2", "0.2", "0.3", "0.2", "0.7", "0.2", "0.4", "0.2",
    ]  # fmt: skip
    paper = paper_of("table3")
    assert paper["ResNet-50"][1:3] == ["76.15", "36.7"]
    assert paper["ResNet-101"][1:3] == ["77.37", "39.4"]
    assert paper["DetNet-59"][1:] == ["76.50", "37.9", "60.1", "41.2", "22.7", "41.2", "48.3"]
    assert paper["ShuffleNetV2-40"][1:] == ["77.18", "39.2", "60.8", "42.4", "23.6", "42.3", "52.2"]
    assert paper["DetNASNet"][1:] == ["77.20", "40.0", "61.5", "43.6", "23.3", "42.5", "53.8"]
    assert not any("3.8G" in name for name in paper)
    days = [cells[2] for cells in paper_of("table1").values()]
    assert days == [1.5, 1.5, 1, 1.5, 1.5, 3, 1, 1.5, 1.5]


def test_pipelines_from_scratch() -> None:
    files = [file for file in PIPELINES if "searched_scratch" in file.read_text()]
    assert len(files) == 6


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("pipeline_[0-9]*.yaml")), ids=name_of)
def test_pipeline_has_five_random_networks_like_the_searched_one(file: Path) -> None:
    pipeline = read_pipeline(str(file))
    searched = pipeline.stage("searched")
    random = [stage for stage in pipeline.stages if stage.row == "random"]
    assert len({stage.path for stage in random}) == 5
    for stage in random:
        assert stage.config == searched.config
        assert pipeline.stage(stage.weights).config == pipeline.stage(searched.weights).config
        assert pipeline.stage(stage.weights).path == stage.path
