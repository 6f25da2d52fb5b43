"""What is trained for a truth set, by pipeline and by search."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from detnas_d2.engine.outlook import work_of
from detnas_d2.pipeline.truth_source import read_source
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, write_config
from tests.experiments import CONFIGS

FPN = str(CONFIGS / "DetNAS" / "fpn_coco" / "pipeline.yaml")


def test_network_is_trained_as_the_pipeline_does() -> None:
    source = read_source(FPN, ("SOLVER.CHECKPOINT_PERIOD", "7"))
    assert source.name == "searched"
    assert [cfg.MODEL.META_ARCHITECTURE for cfg in source.trainings] == [
        "ImageClassifier",
        "GeneralizedRCNN",
    ]
    assert [cfg.MODEL.WEIGHTS for cfg in source.trainings] == ["", ""]
    assert source.trainings[0].SOLVER.CHECKPOINT_PERIOD == 7
    first, second = source.supernets
    assert (first.DATASETS.TRAIN, second.SOLVER.MAX_ITER) == (("imagenet_train",), 90000)
    trained = sum(work_of(cfg, "train") for cfg in source.trainings)
    supernet = sum(work_of(cfg, "train") for cfg in source.supernets)
    assert source.supernet_cost() == pytest.approx(supernet / trained)
    assert source.search_cost() == pytest.approx(work_of(source.search, "search") / trained)


def test_stage_is_named() -> None:
    source = read_source(FPN, (), "shufflenetv2_imagenet")
    (cfg,) = source.trainings
    assert cfg.MODEL.META_ARCHITECTURE == "ImageClassifier"
    for name in ("supernet", "search", "gone"):
        with pytest.raises(InputError, match=f"--truth-stage '{name}': .*one of .*searched"):
            read_source(FPN, (), name)


def write_pipeline(tmp_path: Path, stages: list[dict[str, str]]) -> str:
    supernet = {"NAME": "supernet", "KIND": "train", "CONFIG": "supernet.yaml"}
    search = {"NAME": "search", "KIND": "search", "CONFIG": "supernet.yaml", "WEIGHTS": "supernet"}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"OUTPUT_DIR": "out", "STAGES": [supernet, search, *stages]}))
    return str(file)


def trained(name: str, weights: str = "", kind: str = "train") -> dict[str, str]:
    stage = {"NAME": name, "KIND": kind, "CONFIG": "retrain.yaml", "PATH": "search"}
    return {**stage, "WEIGHTS": weights} if weights else stage


@pytest.fixture
def files(configs: Configs, tmp_path: Path) -> None:
    write_config(configs(), tmp_path / "supernet.yaml")
    retrain = configs("faster", "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone")
    write_config(retrain, tmp_path / "retrain.yaml")


@pytest.mark.usefixtures("files")
def test_networks_that_start_from_the_supernet_are_no_truth(tmp_path: Path) -> None:
    inherited = [
        trained("tuned", "supernet"),
        trained("found", "search"),
        trained("longer", "tuned"),
        trained("tested", "search", "evaluate"),
    ]
    file = write_pipeline(tmp_path, inherited)
    with pytest.raises(InputError, match="PATH search: tuned, found, longer, from a supernet's"):
        read_source(file)
    with pytest.raises(InputError, match="'longer' starts from the weights of 'supernet'"):
        read_source(file, (), "longer")
    alone = read_source(write_pipeline(tmp_path, [*inherited, trained("alone"), trained("more")]))
    assert alone.name == "alone" and alone.search.MODEL.WEIGHTS == "out/supernet/model_final.pth"


@pytest.mark.usefixtures("files")
def test_updates_of_several_paths_cost_as_much(tmp_path: Path) -> None:
    file = str(tmp_path / "supernet.yaml")
    one = read_source(file).supernet_cost()
    fair = read_source(file, ("SUPERNET.PATH_SAMPLING", "fair"))
    assert (one, fair.supernet_cost()) == (pytest.approx(1), pytest.approx(4))


@pytest.mark.usefixtures("files")
def test_spaces_agree(tmp_path: Path) -> None:
    retrain = tmp_path / "retrain.yaml"
    retrain.write_text(retrain.read_text().replace("detnas_tiny", "detnas_small"))
    with pytest.raises(InputError, match="'alone' has MODEL.DETNAS.SPACE detnas_small, the search"):
        read_source(write_pipeline(tmp_path, [trained("alone")]))
    file = tmp_path / "other.yaml"
    stage = {"NAME": "net", "KIND": "train", "CONFIG": "retrain.yaml", "PATH": "uniform 3x3"}
    file.write_text(yaml.safe_dump({"STAGES": [stage]}))
    with pytest.raises(InputError, match="no stage of KIND search"):
        read_source(str(file))
