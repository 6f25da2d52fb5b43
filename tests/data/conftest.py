"""Small data sets on disk, and catalogs that forget them after each test."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detnas_d2.config.data_config import add_data_config
from detnas_d2.data import catalog

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def clean_catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each test has its own data folder, working directory and registered names."""
    before = dict(DatasetCatalog), dict(MetadataCatalog)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "_ORIGINALS", {})
    monkeypatch.setattr(catalog, "_DECLARED", set())
    yield
    for registry, content in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        registry.clear()
        registry.update(content)


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


def coco_annotation(number: int, image: int, category: int, box: list[float]) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    """Eight images, wide and high in turn; image 8 has no object. Returns the JSON's content."""
    images, annotations = [], []
    for i in range(1, 9):
        width, height = (40, 30) if i % 2 else (30, 40)
        write_image(tmp_path / "pets" / f"{i}.png", width, height, seed=i)
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        if i < 8:
            for j in range(1 + i % 3):
                box = [2 + j, 3, 10 + i, 12]
                annotations.append(coco_annotation(len(annotations) + 1, i, 1 + (i + j) % 3, box))
    data = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    save_coco(tmp_path, data)
    return data


def save_coco(root: Path, data: dict[str, Any]) -> None:
    (root / "pets.json").write_text(json.dumps(data))


COCO = {"NAME": "pets", "FORMAT": "coco", "IMAGES": "pets", "ANNOTATIONS": "pets.json"}
VOC = {
    "NAME": "zoo",
    "FORMAT": "voc",
    "ROOT": "zoo",
    "SPLIT": "train",
    "CLASSES": list(CLASSES),
}
FOLDER = {"NAME": "toys", "FORMAT": "image_folder", "ROOT": "toys"}


def voc_xml(
    size: tuple[int, int] | None, objects: list[tuple[str, tuple[float, ...]]], fields: bool = True
) -> str:
    extra = "<pose>Left</pose><truncated>0</truncated><difficult>0</difficult>" if fields else ""
    text = "<annotation>"
    if size is not None:
        text += f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    for name, box in objects:
        edges = "".join(
            f"<{edge}>{value}</{edge}>"
            for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        text += f"<object><name>{name}</name>{extra}<bndbox>{edges}</bndbox></object>"
    return text + "</annotation>"


def save_voc(
    root: Path, image_id: str, xml: str, size: tuple[int, int] = (40, 30), extension: str = ".jpg"
) -> None:
    write_image(root / "JPEGImages" / f"{image_id}{extension}", *size, seed=len(image_id))
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{image_id}.xml").write_text(xml)


def save_split(root: Path, ids: list[str], split: str = "train") -> None:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Eight normal images, all classes in each."""
    root = tmp_path / "zoo"
    ids = [f"img_{i}" for i in range(8)]
    for i, image_id in enumerate(ids):
        objects = [(name, (1 + 5 * k, 2, 20 + i, 25)) for k, name in enumerate(CLASSES)]
        save_voc(root, image_id, voc_xml((40, 30), objects))
    save_split(root, ids)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with four images each."""
    for label, name in enumerate(("ball", "kite")):
        for i in range(4):
            write_image(tmp_path / "toys" / name / f"{i}.jpg", 30, 24, seed=10 * label + i)
    return tmp_path / "toys"


def touch_later(path: Path) -> None:
    """Makes a file look modified, whatever the file system's clock resolution."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
