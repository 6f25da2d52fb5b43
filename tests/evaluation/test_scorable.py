"""A fitness that can never be a number is refused before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.datasets.catalog import install
from detnas_d2.data.datasets.sources import CocoSource, VocSource
from detnas_d2.evaluation.scorable import check_scorable


@pytest.fixture
def register():
    names = []

    def register_as(name, source):
        install(name, source)
        names.append(name)

    yield register_as
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def coco(tmp_path: Path, register):
    """Registers a dataset of one image with objects given as (category, side, further keys)."""

    def make(*objects):
        annotations = [
            {
                "id": i,
                "image_id": 1,
                "category_id": category,
                "bbox": [0, 0, side, side],
                "area": side * side,
                "iscrowd": 0,
                **extra,
            }
            for i, (category, side, extra) in enumerate(objects, start=1)
        ]
        categories = [{"id": i, "name": name} for i, name in ((3, "cat"), (5, "owl"))]
        images = [{"id": 1, "file_name": "1.png", "width": 200, "height": 200}]
        data = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "a.json").write_text(json.dumps(data))
        register("pets", CocoSource(str(tmp_path / "a.json"), str(tmp_path)))

    return make


SMALL, MEDIUM, LARGE, CROWD = (3, 20, {}), (3, 50, {}), (5, 100, {}), (5, 50, {"iscrowd": 1})


@pytest.mark.parametrize(
    ("objects", "metric", "reason"),
    [
        ((SMALL,), "bbox/AP", ""),
        ((SMALL,), "bbox/AP75", ""),
        ((SMALL,), "bbox/APs", ""),
        ((SMALL,), "bbox/APm", "no object has an area from 1024 to 9216 square pixels"),
        ((SMALL, MEDIUM), "bbox/APl", "no object has an area from 9216"),
        (((3, 32, {}),), "bbox/APs", ""),  # both ends belong to a range
        (((3, 32, {}),), "bbox/APm", ""),
        ((SMALL, LARGE), "bbox/AP-owl", ""),
        ((SMALL, CROWD), "bbox/AP-owl", "it has no object of owl"),
        ((CROWD,), "bbox/AP", "all of its objects are passed over"),
        ((), "segm/AP50", "it has no object"),
        ((SMALL,), "keypoints/AP", "all of its objects are passed over"),
        (((3, 50, {"num_keypoints": 2}),), "keypoints/AP", ""),
        (((3, 50, {"num_keypoints": 2}), LARGE), "keypoints/APl", "no object has an area"),
    ],
)
def test_coco(coco, objects, metric, reason):
    coco(*objects)
    if not reason:
        check_scorable("pets", metric)
        return
    with pytest.raises(ValueError, match=f"'pets', which .* cannot give {metric}: {reason}"):
        check_scorable("pets", metric)


@pytest.mark.parametrize(
    ("difficult", "reason"),
    [
        ((0, 1, 0), ""),  # one cat counts
        ((1, 1, 0), "all objects of cat are difficult, which VOC does not count"),
        ((1, 1, 1), "all objects of cat, dog are difficult"),
        ((0, 1, None), "it has no object of dog, and VOC's mean over the classes is nan"),
    ],
)
def test_voc(tmp_path, register, difficult, reason):
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    objects = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>{flag}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object>"
        for name, flag in zip(("cat", "cat", "dog"), difficult, strict=True)
        if flag is not None
    )
    size = "<size><width>30</width><height>30</height></size>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\n")
    register("zoo", VocSource(str(tmp_path), "val", ("cat", "dog")))
    if not reason:
        check_scorable("zoo", "bbox/AP50")
        return
    with pytest.raises(ValueError, match=f"'zoo', which .* cannot give bbox/AP50: {reason}"):
        check_scorable("zoo", "bbox/AP50")
