"""The predictor of trained networks, and demo.py on top of it."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from detnas_d2.data import register_datasets
from detnas_d2.engine import inference
from detnas_d2.engine.inference import Predictor, load_trained
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, write_config

COMMAND = str(Path(__file__).parents[2] / "projects" / "DetNAS" / "demo.py")


@pytest.fixture
def trained(configs: Configs, tmp_path: Path) -> Configs:
    """Configs of a detector whose random weights find something everywhere."""

    def make(*opts: object):
        cfg = configs("faster", "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone", *opts)
        cfg.MODEL.DETNAS.PATH = "0 1 2 3 0"
        cfg.MODEL.WEIGHTS = str(tmp_path / "detector.pth")
        if not (tmp_path / "detector.pth").exists():
            torch.manual_seed(0)
            torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
        return cfg

    return make


def write_images(folder: Path, *names: str) -> None:
    random = np.random.RandomState(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def run_demo(cfg, tmp_path: Path, *arguments: str) -> None:
    main = runpy.run_path(COMMAND)["main"]
    config = write_config(cfg, tmp_path / "detector.yaml")
    main(["--config-file", config, *arguments])


def test_predictor_names_the_classes_without_the_images(trained) -> None:
    cfg = trained()
    cfg.DATASETS.REGISTER[0]["IMAGES"] = "/nowhere"
    predictor = Predictor(cfg)
    assert predictor.metadata.thing_classes == ["a", "b", "c"]
    instances = predictor(np.zeros((60, 80, 3), np.uint8))["instances"]
    assert instances.image_size == (60, 80)


def test_class_names_that_are_nowhere(trained) -> None:
    cfg = trained()
    cfg.DATASETS.REGISTER[0]["ANNOTATIONS"] = "/nowhere.json"
    # As in a config that a search wrote.
    cfg.HIT_SEARCH.ARCH_START_ITER, cfg.HIT_SEARCH.ARCH_TRAIN = 0, ("shapes@search_val",)
    assert Predictor(cfg).metadata.get("thing_classes") is None


def own_data(trained: Configs, declaration: dict[str, object]):
    """A config that is tested on a part of declared data, of which bad entries are left out."""
    splits = {"SPLITS": {"learned": 0.5, "tested": 0.5}}
    return trained(
        *("DATASETS.REGISTER", [{"NAME": "own", **declaration, **splits}]),
        *("DATASETS.INVALID", "drop", "DATASETS.TRAIN", ("learned",), "DATASETS.TEST", ("tested",)),
    )


def test_bad_entries_that_are_left_out_hide_no_class_names(
    trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{i}.png" for i in range(4)]
    write_images(tmp_path / "own", *names)
    good, empty = "1 0.5 0.5 0.5 0.5\n", "0 0.5 0.5 0 0.5\n"
    for name in names:
        (tmp_path / "own" / name).with_suffix(".txt").write_text(good + empty * 2)
    (tmp_path / "data.yaml").write_text("{train: own, names: [x, y, z]}")
    data = {"FORMAT": "yolo", "DATA": str(tmp_path / "data.yaml"), "SPLIT": "train"}
    assert inference.test_metadata(own_data(trained, data)).thing_classes == ["x", "y", "z"]
    assert "No class names" not in caplog.text
    checked = list((tmp_path / "cache" / "checked").iterdir())
    register_datasets(own_data(trained, data))  # finds what was read for the names
    assert list((tmp_path / "cache" / "checked").iterdir()) == checked


def test_declared_names_of_boxes_need_no_data(trained, caplog: pytest.LogCaptureFixture) -> None:
    data = {"FORMAT": "voc", "ROOT": "/nowhere", "CLASSES": ["x", "y", "z"]}
    assert Predictor(own_data(trained, data)).metadata.thing_classes == ["x", "y", "z"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_number_of_classes_is_filled_in_as_in_training(trained) -> None:
    trained()  # writes the weights
    cfg = trained("MODEL.ROI_HEADS.NUM_CLASSES", 80)
    assert load_trained(cfg).roi_heads.num_classes == 3
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80  # the caller's config stays


def test_networks_without_a_path_are_refused(trained, configs: Configs) -> None:
    cfg = configs()
    cfg.MODEL.WEIGHTS = trained().MODEL.WEIGHTS
    with pytest.raises(ValueError, match="is a supernet and has no path"):
        load_trained(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_detnas_relaxed_backbone"
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["stage3"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16]]
    with pytest.raises(ValueError, match="holds all candidates at once"):
        load_trained(cfg)


def test_weights_of_a_supernet_are_refused(trained, configs: Configs, tmp_path: Path) -> None:
    cfg, search = trained(), configs.search()
    cfg.MODEL.WEIGHTS = search.MODEL.WEIGHTS
    with pytest.raises(ValueError, match=r"fasterBN.pth are a supernet's: .*mix all paths"):
        load_trained(cfg)


def test_demo_writes_pictures(trained, tmp_path: Path) -> None:
    cfg = trained()
    write_images(tmp_path / "images", "one.png", "two.jpg", "deep/one.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    out = tmp_path / "pictures"
    images = str(tmp_path / "images")
    threshold = ("--confidence-threshold", "0.0")
    run_demo(cfg, tmp_path, "--input", images, "--output", str(out), *threshold)
    assert sorted(path.name for path in out.iterdir()) == ["one.png", "two.jpg"]
    with Image.open(out / "one.png") as picture, Image.open(f"{images}/one.png") as original:
        assert picture.size == original.size
        assert not np.array_equal(np.asarray(picture), np.asarray(original))  # boxes are drawn
    # Nothing is that certain: the picture is the image. Names below the common folder are kept.
    run_demo(
        cfg, tmp_path, "--input", f"{images}/**/*.png", "--output", str(out / "all"),
        "--confidence-threshold", "1.0", "--opts", "INPUT.FORMAT", "RGB",
    )  # fmt: skip
    found = sorted(str(path.relative_to(out)) for path in out.glob("all/**/*.png"))
    assert found == ["all/deep/one.png", "all/one.png"]
    with Image.open(out / "all" / "one.png") as picture, Image.open(f"{images}/one.png") as image:
        assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(image))
    assert MetadataCatalog.get("shapes").thing_classes == ["a", "b", "c"]


def test_demo_skips_what_it_cannot_read(
    trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", "good.png")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    out = tmp_path / "pictures"
    with pytest.raises(InputError, match="1 of 2 files could not be read"):
        run_demo(trained(), tmp_path, "--input", str(tmp_path / "images"), "--output", str(out))
    assert [path.name for path in out.iterdir()] == ["good.png"]
    assert "images/broken.jpg: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["gone/*.jpg"], "out", r"'gone/\*\.jpg': no image found"),
        (["empty"], "out", "'empty': no image found"),
        (["1.png", "2.png"], "out.png", "out.png is one file, --input has 2 images"),
    ],
)
def test_demo_says_what_is_wrong_first(
    trained, tmp_path: Path, inputs: list[str], output: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path, "1.png", "2.png")
    with pytest.raises(InputError, match=message):
        run_demo(trained(), tmp_path, "--input", *inputs, "--output", output)


def test_demo_refuses_a_classifier(configs: Configs, tmp_path: Path) -> None:
    write_images(tmp_path, "1.png")
    with pytest.raises(InputError, match="a classifier; expected a config of a detector"):
        run_demo(configs("classifier"), tmp_path, "--input", "1.png", "--output", "out")
