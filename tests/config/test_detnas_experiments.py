"""The DetNAS experiments say what the paper does."""

from __future__ import annotations

import os

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from detnas_d2.config.tools import load_config
from detnas_d2.engine import Trainer
from detnas_d2.modeling.detnas.build import DECODED_BACKBONES
from detnas_d2.pipeline.definition import Stage
from detnas_d2.search.constraints import Constraint, Limits
from detnas_d2.search_space import build_cost_table, get_space, space_of
from tests.experiments import EXPERIMENTS, PIPELINES, content, frozen, load, pipeline
from tests.helpers import changed, snapshot, training_batch

KINDS = [f"{head}_{data}" for head in ("fpn", "retinanet") for data in ("coco", "voc")]
OURS = [name for name in PIPELINES if name.startswith("DetNAS/")]
TABLE_4 = [f"DetNAS/{kind}/pipeline.yaml" for kind in KINDS]
LARGE = [f"DetNAS/{kind}/pipeline_large.yaml" for kind in ("fpn_coco", "retinanet_coco")]
BY_HAND = "DetNAS/baselines/pipeline.yaml"
FULL_SIZE = [*TABLE_4, *LARGE, BY_HAND]


def config_of(file: str, stage: Stage) -> CfgNode:
    """A stage's config, without what stages before it find."""
    return frozen(f"{file}:{stage.name}")


@pytest.mark.parametrize("depth", [50, 101])
def test_resnet_trains_one_step(depth: int) -> None:
    cfg = load(f"{BY_HAND}:resnet{depth}")
    assert depth == cfg.MODEL.RESNETS.DEPTH
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


@pytest.mark.parametrize("file", FULL_SIZE)
def test_schedules(file: str) -> None:
    """Section 4.1; from scratch twice as long (section 4.3). VOC's steps are in proportion."""
    detectors = 0
    for stage in pipeline(file).stages:
        cfg = config_of(file, stage)
        if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
            continue
        part = 4 if cfg.DATASETS.TRAIN[0].startswith("voc") else 1
        twice = 2 if stage.name in ("supernet_scratch", "search_scratch") else 1
        expected = tuple(n * twice // part for n in (90_000, 60_000, 80_000))
        solver = cfg.SOLVER
        assert (solver.MAX_ITER, *solver.STEPS) == expected
        rate = 0.01 if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else 0.02
        assert (rate, 16) == (solver.BASE_LR, solver.IMS_PER_BATCH)
        detectors += 1
    assert detectors >= 3


@pytest.mark.parametrize("file", FULL_SIZE)
def test_released_detectors(file: str) -> None:
    for stage in pipeline(file).stages:
        model = config_of(file, stage).MODEL
        if model.META_ARCHITECTURE == "RetinaNet":
            node = model.RETINANET
            assert (node.SMOOTH_L1_LOSS_BETA, node.NMS_THRESH_TEST) == (0.11, 0.4)
            focal = node.FOCAL_LOSS_ALPHA, node.FOCAL_LOSS_GAMMA, node.SCORE_THRESH_TEST
            assert focal == (0.25, 2.0, 0.05)
        elif model.META_ARCHITECTURE == "GeneralizedRCNN":
            beta, boundary = model.RPN.SMOOTH_L1_BETA, model.RPN.BOUNDARY_THRESH
            assert beta == pytest.approx(1 / 9) and boundary == 0
            head = model.ROI_BOX_HEAD
            assert (head.SMOOTH_L1_BETA, head.POOLER_TYPE) == (1.0, "ROIAlign")


@pytest.mark.parametrize("head", ["fpn", "retinanet"])
def test_voc(head: str) -> None:
    file = f"DetNAS/{head}_voc/pipeline.yaml"
    node = "ROI_HEADS" if head == "fpn" else "RETINANET"
    for name in ("supernet", "search", "supernet_scratch", "search_scratch", "searched"):
        cfg = frozen(f"{file}:{name}")
        assert cfg.MODEL[node].NUM_CLASSES == 20
        if name == "searched":
            assert cfg.DATASETS.TRAIN == ("voc_2007_trainval", "voc_2012_trainval")
            assert cfg.DATASETS.TEST == ("voc_2007_test",)
        else:
            both = "voc_2007_trainval+voc_2012_trainval"
            assert (f"{both}@search_train",) == cfg.DATASETS.TRAIN
            assert (f"{both}@search_val",) == cfg.DATASETS.TEST
            assert cfg.DATASETS.SEARCH_SPLIT.SIZE == 5000


@pytest.mark.parametrize("file", [*TABLE_4, *LARGE])
def test_searches(file: str) -> None:
    searches = [stage for stage in pipeline(file).stages if stage.kind == "search"]
    assert len(searches) == (1 if file in LARGE else 3)
    for stage in searches:
        cfg, supernet = config_of(file, stage), config_of(file, pipeline(file).stage(stage.weights))
        # Scored on images that the supernet has not seen, which are no test set.
        assert cfg.SEARCH.VAL.endswith("@search_val")
        train = [name.partition("@") for name in supernet.DATASETS.TRAIN]
        parent = cfg.SEARCH.VAL.partition("@")[0]
        assert [half for name, _, half in train if name == parent] == ["search_train"]
        assert (1_300_000_000 if file in LARGE else 300_000_000) == cfg.SEARCH.MAX_MACS
        for key in ("MODEL.BACKBONE.NAME", "MODEL.DETNAS", "DATASETS", "INPUT"):
            node, other = cfg, supernet
            for part in key.split("."):
                node, other = node[part], other[part]
            assert node == other
        folder = os.path.dirname(pipeline(file).file_of(stage))
        retrain = load_config(os.path.join(folder, cfg.SEARCH.RETRAIN_CONFIG))
        assert retrain.MODEL.DETNAS.SPACE == cfg.MODEL.DETNAS.SPACE
        assert not any("@" in name for name in retrain.DATASETS.TRAIN)


@pytest.mark.parametrize("kind", [*KINDS, "imagenet"])
def test_commands_without_pipeline_find_the_weights(kind: str) -> None:
    """Of a supernet's training in its own OUTPUT_DIR, with the same data as the search's."""
    search, supernet = frozen(f"DetNAS/{kind}/search.yaml"), frozen(f"DetNAS/{kind}/supernet.yaml")
    out = supernet.OUTPUT_DIR if kind != "imagenet" else f"{supernet.OUTPUT_DIR}_search"
    assert f"{out}/model_final.pth" == search.MODEL.WEIGHTS
    assert search.MODEL.BACKBONE.NAME == supernet.MODEL.BACKBONE.NAME
    assert search.SEARCH.RETRAIN_CONFIG == "retrain.yaml"


def test_from_scratch_starts_from_nothing() -> None:
    names = [f"{file}:supernet_scratch" for file in TABLE_4]
    for name in (*names, "DetNAS/own_data/supernet.yaml"):
        cfg = frozen(name)
        assert (cfg.MODEL.WEIGHTS, cfg.MODEL.DETNAS.INIT) == ("", "default")


def test_released_initial_weights_are_for_the_released_classification() -> None:
    """Depthwise kernels of N(0, 1) need its rate and length; every other run has torch's."""
    found = {"imagenet": 0, "default": 0}
    for name in EXPERIMENTS:
        model, data = frozen(name).MODEL, frozen(name).DATASETS.TRAIN
        if "detnas" in model.BACKBONE.NAME and "DETNAS" in model:
            expected = "imagenet" if data[0].startswith("imagenet_train") else "default"
            assert expected == model.DETNAS.INIT, name
            found[model.DETNAS.INIT] += 1
    assert found["imagenet"] >= 5 and found["default"] >= 20


def test_own_data_templates_are_small() -> None:
    for name in ("DetNAS/own_data/supernet", "DetNAS/own_data/dataset"):
        _check_small(frozen(f"{name}.yaml"))
    for name in ("HitDetector/own_data/search", "HitDetector/own_data/dataset"):
        _check_small(frozen(f"{name}.yaml"))
    search = frozen("DetNAS/own_data/search.yaml")
    costs = build_cost_table(get_space(search.MODEL.DETNAS.SPACE))
    macs = Constraint(Limits(), costs).tables["macs"]
    assert macs.cheapest() < search.SEARCH.MAX_MACS < macs.most_expensive()  # it limits something


def _check_small(cfg: CfgNode) -> None:
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80  # the default, which is filled in
    assert cfg.SOLVER.IMS_PER_BATCH <= 8 and cfg.INPUT.MAX_SIZE_TRAIN <= 900
    # Detectron2's rule: the rate grows with the batch, from 0.02 for 16 images.
    assert pytest.approx(0.02 / 16) == cfg.SOLVER.BASE_LR / cfg.SOLVER.IMS_PER_BATCH
    assert max(cfg.SOLVER.STEPS) < cfg.SOLVER.MAX_ITER <= 5000


@pytest.mark.parametrize("file", [*TABLE_4, *LARGE])
def test_imagenet_recipe(file: str) -> None:
    spaces = set()
    for stage in pipeline(file).stages:
        cfg = config_of(file, stage)
        if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
            solver = cfg.SOLVER
            assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (1024, 0.5, 300_000)
            assert solver.WEIGHT_DECAY == 4e-5 and solver.WEIGHT_DECAY_NORM == 0
            assert cfg.SUPERNET.PATH_SAMPLING == "uniform"
            spaces.add(cfg.MODEL.DETNAS.SPACE)
    assert ("detnas_large" if file in LARGE else "detnas_small") in spaces


def test_hand_made_network_is_scaled_to_the_released_one() -> None:
    def macs(name: str, path: str = "") -> int:
        node = frozen(name).MODEL.DETNAS
        space = get_space(node.SPACE)
        found = space.uniform_path(path) if path else space.path(node.PATH)
        return build_cost_table(space).cost(found).macs

    released = macs("DetNAS/released/detnasnet_1.3G_fpn_coco.yaml")
    for file in LARGE:
        for name in ("shufflenetv2_imagenet", "shufflenetv2"):
            assert pipeline(file).stage(name).path == "uniform 3x3"
            assert 0.99 * released < macs(f"{file}:{name}", "3x3") <= released


@pytest.mark.parametrize("file", OURS)
def test_pipeline(file: str) -> None:
    names: list[str] = []
    for stage in pipeline(file).stages:
        cfg = config_of(file, stage)
        # What is not named before is a file or one of the words of a path.
        assert not stage.weights or stage.weights in names
        assert stage.path in ("", *names) or stage.path.startswith(
            ("uniform ", "random ", "front ")
        )
        assert stage.kind != "search" or stage.weights
        if stage.path:
            assert cfg.MODEL.BACKBONE.NAME in DECODED_BACKBONES.values()
            space = space_of(cfg)
            if stage.path in names:
                source = config_of(file, pipeline(file).stage(stage.path))
                assert space_of(source).stage_depths == space.stage_depths
            elif stage.like:  # drawn when that search has ended
                assert stage.path.startswith("random ") and stage.like in names
            else:
                assert pipeline(file).path_of(stage, cfg).space == space
        names.append(stage.name)


@pytest.mark.parametrize("file", [n for n in OURS if pipeline(n).stage("searched_scratch")])
def test_from_scratch_concerns_the_supernet_alone(file: str) -> None:
    """Section 4.3(b): DetNAS-S is trained again as DetNAS-P is, ImageNet first."""
    stages = pipeline(file)
    scratch, pretrained = stages.stage("searched_scratch"), stages.stage("searched")
    assert scratch.config == pretrained.config and scratch.path == "search_scratch"
    if pretrained.weights:  # not in the small ones, whose networks all start from scratch
        first, other = stages.stage(scratch.weights), stages.stage(pretrained.weights)
        assert first.config == other.config and first.path == "search_scratch"
    assert not stages.stage("supernet_scratch").weights


def test_table_4_has_every_kind_of_network() -> None:
    small = ["DetNAS/tables/small/bccd.yaml", "DetNAS/tables/small/scenes.yaml"]
    for file in (*TABLE_4, *small):
        rows = ("searched", "searched_scratch", "clsnasnet", "random", "shufflenetv2")
        assert pipeline(file).table == rows


@pytest.mark.parametrize("file", [*TABLE_4, *LARGE])
def test_five_random_networks_like_the_searched_one(file: str) -> None:
    stages = pipeline(file)
    searched = stages.stage("searched")
    random = stages.stages_of("random")
    assert len({stage.path for stage in random}) == len(random) == 5
    for stage in random:
        assert stage.config == searched.config and stage.number == 0
        first = stages.stage(stage.weights)
        assert first.config == stages.stage(searched.weights).config
        assert first.path == stage.path and first.name.rsplit("_", 1)[1] == stage.name[-1]


def paper_of(file: str) -> dict[str, list]:
    (table,) = content(file)["TABLES"]
    return {row["NAME"]: row["PAPER"] for row in table["ROWS"] if "PAPER" in row}


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
    paper = paper_of("DetNAS/tables/table4.yaml")
    for name, scores in {**detnas, **others}.items():
        assert paper[name][::2] == scores.split() and paper[name][1::2] == top1[name].split()
    assert [text.split()[0] for text in paper["Random (5 networks)"][::2]] == [
        "80.9", "35.9", "79.0", "32.5",
    ]  # fmt: skip
    assert [text.split()[-1] for text in paper["Random (5 networks)"]] == [
        "0.2", "0.2", "0.3", "0.2", "0.7", "0.2", "0.4", "0.2",
    ]  # fmt: skip
    paper = paper_of("DetNAS/tables/table3.yaml")
    assert paper["ResNet-50"][1:3] == ["76.15", "36.7"]
    assert paper["ResNet-101"][1:3] == ["77.37", "39.4"]
    assert paper["DetNet-59"][1:] == ["76.50", "37.9", "60.1", "41.2", "22.7", "41.2", "48.3"]
    assert paper["ShuffleNetV2-40"][1:] == ["77.18", "39.2", "60.8", "42.4", "23.6", "42.3", "52.2"]
    assert paper["DetNASNet"][1:] == ["77.20", "40.0", "61.5", "43.6", "23.3", "42.5", "53.8"]
    assert not any("3.8G" in name for name in paper)
    days = [cells[2] for cells in paper_of("DetNAS/fpn_coco/pipeline.yaml").values()]
    assert days == [1.5, 1.5, 1, 1.5, 1.5, 3, 1, 1.5, 1.5]
