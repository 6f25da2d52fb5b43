"""Small datasets on disk, and catalogs that forget them after each test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from detnas_d2.config.data_config import add_data_config
from detnas_d2.data import register_datasets
from detnas_d2.data.recognition import recognise
from tests.catalogs import own_names

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def clean_catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each test has its own data folder, working directory and registered names."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with own_names():
        yield


@pytest.fixture
def make_cfg(tmp_path: Path) -> Callable[..., CfgNode]:
    def make(*declarations: dict[str, Any], train=(), test=(), **keys: Any) -> CfgNode:
        """``keys``: dots written as two underscores."""
        cfg = get_cfg()
        add_data_config(cfg)
        cfg.DATASETS.CACHE_DIR = str(tmp_path / "cache")
        cfg.DATASETS.REGISTER = list(declarations)
        cfg.DATASETS.TRAIN = tuple(train)
        cfg.DATASETS.TEST = tuple(test)
        cfg.DATASETS.SEARCH_SPLIT.SIZE = 3
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.IMS_PER_BATCH = 4
        cfg.INPUT.MIN_SIZE_TRAIN = (24, 32)
        cfg.INPUT.MIN_SIZE_TEST = 32
        cfg.SEED = 7
        for key, value in keys.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        return cfg

    return make


def write_image(path: Path, width: int, height: int, seed: int = 0, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture(name="write_image")
def write_image_fixture() -> Callable[..., None]:
    return write_image


class CocoFiles:
    """Eight images, wide and high in turn; image 8 has no object."""

    declaration = {"NAME": "pets", "FORMAT": "coco", "IMAGES": "pets", "ANNOTATIONS": "pets.json"}

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data: dict[str, Any] = {"images": [], "annotations": []}
        self.data["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        for i in range(1, 9):
            width, height = (40, 30) if i % 2 else (30, 40)
            write_image(root / "pets" / f"{i}.png", width, height, seed=i)
            image = {"id": i, "file_name": f"{i}.png", "width": width, "height": height}
            self.data["images"].append(image)
            for j in range(1 + i % 3 if i < 8 else 0):
                self.add(i, 1 + (i + j) % 3, [2 + j, 3, 10 + i, 12])
        self.save()

    def add(self, image: int, category: int, box: list[float]) -> dict[str, Any]:
        annotation = {
            "id": len(self.data["annotations"]) + 1,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        self.data["annotations"].append(annotation)
        return annotation

    def save(self) -> None:
        (self.root / "pets.json").write_text(json.dumps(self.data))


@pytest.fixture
def coco(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path)


@pytest.fixture
def cfg(make_cfg: Callable[..., CfgNode], coco: CocoFiles) -> CfgNode:
    """Trains on the images of ``coco``, which are registered."""
    cfg = make_cfg(coco.declaration, train=["pets"])
    register_datasets(cfg)
    return cfg


class VocFiles:
    """Eight normal images of 40 x 30 pixels, every class in each."""

    declaration = {
        "NAME": "zoo",
        "FORMAT": "voc",
        "ROOT": "zoo",
        "SPLIT": "train",
        "CLASSES": list(CLASSES),
    }

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ids = [f"img_{i}" for i in range(8)]
        for i, image_id in enumerate(self.ids):
            boxes = [(name, (1 + 5 * k, 2, 20 + i, 25)) for k, name in enumerate(CLASSES)]
            self.add(image_id, self.xml(boxes))
        self.save_split(self.ids)

    def add(
        self, image_id: str, xml: str, size: tuple[int, int] = (40, 30), extension: str = ".jpg"
    ) -> None:
        write_image(self.root / "JPEGImages" / f"{image_id}{extension}", *size, seed=len(image_id))
        (self.root / "Annotations").mkdir(exist_ok=True)
        (self.root / "Annotations" / f"{image_id}.xml").write_text(xml)

    def save_split(self, ids: list[str], split: str = "train") -> None:
        folder = self.root / "ImageSets" / "Main"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))

    @staticmethod
    def xml(
        objects: list[tuple[str, tuple[Any, ...]]],
        size: tuple[int, int] | None = (40, 30),
        fields: str = "<pose>Left</pose><truncated>0</truncated><difficult>0</difficult>",
    ) -> str:
        text = "<annotation>"
        if size is not None:
            text += f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        for name, box in objects:
            edges = "".join(
                f"<{edge}>{value}</{edge}>"
                for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            )
            text += f"<object><name>{name}</name>{fields}<bndbox>{edges}</bndbox></object>"
        return text + "</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> VocFiles:
    return VocFiles(tmp_path / "zoo")


class FolderFiles:
    """Two classes with four images each."""

    declaration = {"NAME": "toys", "FORMAT": "image_folder", "ROOT": "toys"}

    def __init__(self, root: Path) -> None:
        self.root = root
        for label, name in enumerate(("ball", "kite")):
            for i in range(4):
                write_image(root / name / f"{i}.jpg", 30, 24, seed=10 * label + i)


@pytest.fixture
def toys(tmp_path: Path) -> FolderFiles:
    return FolderFiles(tmp_path / "toys")


@pytest.fixture
def touch() -> Callable[[Path], None]:
    """Makes a file look modified, whatever the resolution of the file system's clock."""

    def touch_later(path: Path) -> None:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))

    return touch_later


@pytest.fixture
def perfect_results() -> Callable[[str, Any], dict[str, Any]]:
    """Evaluates the ground truth of a registered dataset as if it had been predicted."""

    def evaluate(name: str, evaluator: Any) -> dict[str, Any]:
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            instances = Instances((record["height"], record["width"]))
            boxes = [
                BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                for a in record["annotations"]
            ]
            instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
            classes = [a["category_id"] for a in record["annotations"]]
            instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
            instances.scores = torch.ones(len(boxes))
            evaluator.process([record], [{"instances": instances}])
        return evaluator.evaluate()

    return evaluate


@pytest.fixture
def checked(make_cfg, coco):
    """Saves the data, checks them as a training does, and returns the config."""

    def check(**keys):
        coco.save()
        cfg = make_cfg(coco.declaration, train=["pets"], test=["pets"], **keys)
        register_datasets(cfg)
        return cfg

    return check


@pytest.fixture
def seen(make_cfg, tmp_path):
    """Recognises a folder, registers what that declares, and returns what was recognised."""

    def see(folder, **keys):
        found = recognise(str(folder), str(tmp_path / "memory"))
        names = [found.train, found.test, *([found.val] if found.val else [])]
        cfg = make_cfg(*found.declarations, train=names[:1], test=names[1:], **keys)
        cfg.DATASETS.INVALID = "drop"
        register_datasets(cfg)
        return found

    return see
