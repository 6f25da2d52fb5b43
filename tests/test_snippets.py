"""The Python of the documents runs as it is printed there, with small data and small models."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from detnas_d2.modeling import find_supernet
from tests.engine.tiny_scenes import THINGS, write_scenes

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("my_train", "my_val", "my_search_val")
_PYTHON = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def snippets(document: str) -> list[str]:
    return _PYTHON.findall((ROOT / document).read_text(encoding="utf-8"))


def run(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(code, "snippet", "exec"), namespace)
    return namespace


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registers scenes as "my_train" and "my_val", and makes configs of the model zoo small."""
    images, annotations = [], []
    for scene in write_scenes(tmp_path / "data"):
        number = scene["image_id"]
        size = {key: scene[key] for key in ("height", "width")}
        images.append({"id": number, "file_name": scene["file_name"], **size})
        for thing in scene["annotations"]:
            left, top, right, bottom = thing["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": thing["category_id"] + 1,
                    "iscrowd": 0,
                    "segmentation": thing["segmentation"],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(THINGS, 1)]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "my.json").write_text(json.dumps(content))
    for name in NAMES:
        register_coco_instances(name, {}, str(tmp_path / "my.json"), str(tmp_path / "data"))

    zoo = model_zoo.get_config

    def get_config(name: str) -> Any:
        config = zoo(name)
        if "dataloader" in config:
            config.train.device, config.train.max_iter = "cpu", 2
            for loader in (config.dataloader.train, config.dataloader.test):
                loader.mapper.augmentations, loader.num_workers = [], 0
            config.dataloader.train.total_batch_size = 2
            if "proposal_generator" in config.model:
                config.model.proposal_generator.post_nms_topk = (20, 20)
        return config

    monkeypatch.setattr(model_zoo, "get_config", get_config)
    monkeypatch.chdir(tmp_path)
    yield
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_library_in_the_readme(small: None) -> None:
    code = snippets("README.md")[0]
    lines = [line for line in code.splitlines() if line and not line.startswith(("from", "import"))]
    assert len(lines) == 12  # as the text before it says
    found = run(code)
    assert 0 <= found["results"]["bbox"]["AP"] <= 100 and "segm" in found["results"]
    # The path's BatchNorms alone were recalibrated, and none of the supernet's own was written.
    layers = [name for name in found["statistics"].moments if ".blocks." in name]
    assert layers and all(".candidates.5x5." in name for name in layers)
    assert all(
        not value.any()
        for name, value in found["model"].named_buffers()
        if name.startswith("backbone.bottom_up") and name.endswith("running_mean")
    )


def test_own_train_net_in_the_readme(small: None, tmp_path: Path) -> None:
    config = {
        "_BASE_": model_zoo.get_config_file("Base-RCNN-FPN.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "WEIGHTS": "",
            "BACKBONE": {"NAME": "build_detnas_supernet_fpn_backbone"},
            "DETNAS": {"SPACE": "detnas_tiny"},
            "FPN": {"IN_FEATURES": ["stage1", "stage2", "stage3", "stage4"], "OUT_CHANNELS": 16},
            "ROI_BOX_HEAD": {"FC_DIM": 16},
            "ROI_HEADS": {"NUM_CLASSES": 2, "BATCH_SIZE_PER_IMAGE": 16},
        },
        "DATASETS": {"TRAIN": ["my_train"], "TEST": ["my_val"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TRAIN": [48]},
        "SOLVER": {"IMS_PER_BATCH": 2},
    }
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", "2"]
    main = run(snippets("README.md")[1])["main"]
    main(Namespace(config_file=str(file), opts=options, resume=False, eval_only=False))
    weights = torch.load(tmp_path / "out" / "model_final.pth", weights_only=False)["model"]
    assert any(".blocks.0.candidates.xception." in name for name in weights)


def test_lazy_config_in_the_readme(small: None) -> None:
    model = instantiate(run(snippets("README.md")[2])["model"])
    assert find_supernet(model).space.name == "detnas_small"


def test_library_document(small: None, tmp_path: Path) -> None:
    train_and_search, network, statistics = snippets("docs/library.md")
    sizes = {
        "total_batch_size=16": "total_batch_size=2",
        "num_workers=4": "num_workers=0",
        "range(64)": "range(2)",
        "300_000_000": "400_000_000",
        "POPULATION=50": "POPULATION=2",
        "GENERATIONS=20": "GENERATIONS=1",
    }
    for large, little in sizes.items():
        assert large in train_and_search
        train_and_search = train_and_search.replace(large, little)
    found = run(train_and_search)
    assert found["best"].fitness >= 0 and found["best"].macs < 400_000_000
    assert (tmp_path / "output/supernet/model_final.pth").exists()
    assert len((tmp_path / "output/search/history.jsonl").read_text().splitlines()) == 2
    backbone = instantiate(run(network)["model"]).backbone.bottom_up
    assert len(backbone.path) == 20 and backbone.path.ops[0] == "5x5"
    found = run(statistics)
    seen = torch.cat([found["model"].conv1(x) for x in found["photos"]])
    mean = found["model"].bn1.running_mean
    torch.testing.assert_close(mean, seen.detach().mean((0, 2, 3)))
