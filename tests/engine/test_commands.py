"""What single commands find before they compute, as pipelines do for each of their stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model

from detnas_d2.engine import commands, gradient_search_main, search_main, train_main
from detnas_d2.engine.checks import disk
from detnas_d2.engine.checks.models import Models
from detnas_d2.search_space import SPACES
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, arguments, write_config

PATH = str(SPACES["detnas_tiny"].uniform_path("3x3"))


@pytest.fixture
def network(configs: Configs) -> CfgNode:
    opts = ("MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone", "MODEL.DETNAS.PATH", PATH)
    return configs("faster", *opts)


@pytest.fixture
def attempt(
    network: CfgNode, configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Calls a command; returns what it refuses with. Nothing may begin."""
    for name in ("train", "search", "gradient_search"):
        monkeypatch.setattr(commands, name, lambda *args, **keys: pytest.fail("it ran"))
    search = configs.search("SEARCH.RETRAIN_CONFIG", "train.yaml")
    files = {
        train_main: write_config(network, tmp_path / "train.yaml"),
        search_main: write_config(search, tmp_path / "search.yaml"),
        gradient_search_main: str(tmp_path / "train.yaml"),
    }

    def attempt(main: Callable, *opts: str, resume: bool = False) -> str:
        with pytest.raises(InputError) as caught:
            main(arguments(files[main], *opts, resume=resume))
        return str(caught.value)

    return attempt


def test_data_that_nothing_evaluates(attempt: Callable[..., str]) -> None:
    DatasetCatalog.register("own", list)
    MetadataCatalog.get("own").set(evaluator_type="mine")
    text = attempt(train_main, "DATASETS.TEST", "('own',)")
    assert text.startswith("dataset 'own' has evaluator_type 'mine'; expected one of ")


def test_weights_that_do_not_fit(
    attempt: Callable[..., str], network: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.MODEL.FPN.OUT_CHANNELS = 32
    file = str(tmp_path / "other.pth")
    torch.save({"model": build_model(network).state_dict()}, file)
    for main in (train_main, search_main):
        text = attempt(main, "MODEL.WEIGHTS", file)
        assert text.startswith(f"MODEL.WEIGHTS '{file}': the weights ") and "fit" in text
    assert attempt(train_main, "MODEL.WEIGHTS", "gone.pth") == (
        "MODEL.WEIGHTS 'gone.pth': no such file"
    )
    # A run that goes on from its own checkpoint does without.
    (tmp_path / "out" / "model_0000001.pth").touch()
    begun: list[bool] = []
    monkeypatch.setattr(commands, "train", lambda *args, **keys: begun.append(True))
    train_main(arguments(str(tmp_path / "train.yaml"), "MODEL.WEIGHTS", "gone.pth", resume=True))
    assert begun


def test_the_config(attempt: Callable[..., str], tmp_path: Path) -> None:
    text = attempt(train_main, "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbon")
    assert "did you mean build_detnas_fpn_backbone" in text
    unread = ("DATASETS.TRAIN", "('no_such_data',)")
    assert "MODEL: the model cannot be" in attempt(train_main, "MODEL.FPN.NORM", "XN", *unread)
    assert not (tmp_path / "out").exists()
    assert "TEST.PRECISE_BN" in attempt(
        train_main,
        *("MODEL.BACKBONE.NAME", "build_detnas_supernet_fpn_backbone"),
        *("TEST.PRECISE_BN.ENABLED", "True"),
    )
    assert "ARCH_START_ITER -1" in attempt(gradient_search_main)


def test_the_network_that_a_search_completes(
    attempt: Callable[..., str], network: CfgNode, tmp_path: Path
) -> None:
    network.MODEL.FPN.NORM = "XN"
    write_config(network, tmp_path / "train.yaml")
    assert "'XN'" in attempt(search_main)


def test_the_disk(attempt: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10)
    assert "0.0 GiB are free, the stages need about" in attempt(train_main)


def test_models_that_read_numbers_while_they_are_built(network: CfgNode) -> None:
    """Which the meta device does not have."""

    @BACKBONE_REGISTRY.register()
    def build_with_item(cfg: CfgNode, input_shape: ShapeSpec) -> torch.nn.Module:
        assert torch.linspace(0, 1, 3)[1].item() == 0.5
        return BACKBONE_REGISTRY.get("build_detnas_fpn_backbone")(cfg, input_shape)

    network.MODEL.BACKBONE.NAME = "build_with_item"
    assert next(Models().of(network).parameters()).device.type == "cpu"
    network.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    assert next(Models().of(network).parameters()).is_meta
