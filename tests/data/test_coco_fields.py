"""The fields of COCO files in the types that Detectron2's loader and pycocotools read."""

from __future__ import annotations

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from detnas_d2.data import DatasetError, register_datasets, validate_dataset
from detnas_d2.data.loaders.train import load_training_dicts
from tests.data.declared import objects

NAN = float("nan")


def test_every_second_odd_value_loses_no_object(checked, coco, perfect_results):
    odd = [
        {"iscrowd": None},
        {"iscrowd": "0"},
        {"iscrowd": False},
        {"iscrowd": 0.0},
        {"area": None},
        {"area": "big"},
        {"area": -4},
        {"area": NAN},
        {"segmentation": None},
        {"segmentation": []},
        {"segmentation": [[]]},
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": [1, 2, 3, 4]},
        {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
        {"segmentation": [[[1, 2], [3, 4], [5, 6]]]},
        {"segmentation": "1 2 3"},
        {"segmentation": {"size": [1, 1], "counts": [1, 2, 3]}},
        {"segmentation": {"counts": [1]}},
        {"segmentation": {}},
        {"keypoints": "none"},
        {"keypoints": [None, 1, 2]},
        {"keypoints": {"a": 1}},
        {"score": NAN},
    ]
    total = len(coco.data["annotations"])
    for fields in odd:
        for annotation in coco.data["annotations"]:
            for key in ("segmentation", "keypoints", "score"):
                annotation.pop(key, None)
        for annotation in coco.data["annotations"][::2]:
            annotation |= fields
        checked()
        assert objects() == (total, total), fields
    results = perfect_results("pets", COCOEvaluator("pets", ("bbox",), False))
    assert results["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"iscrowd": 2}, "'iscrowd' must be 0 or 1, got 2"),
        ({"iscrowd": "yes"}, "'iscrowd' must be 0 or 1, got 'yes'"),
        ({"iscrowd": [0]}, r"'iscrowd' must be 0 or 1, got \[0\]"),
        ({"bbox": ["1", "1", "5", "5"]}, r"'bbox' must be \[x, y, width, height\]"),
        ({"bbox": [True] * 4}, "'bbox' must be"),
        ({"bbox": None}, "'bbox' must be"),
        ({"bbox": [5, 5, 1e-9, 4]}, "the box is 1e-09 x 4 pixels"),
        ({"bbox": [0, 0, 1e300, 1e300]}, "leaves the image"),
        ({"image_id": [1]}, "'image_id' must be a number or a text"),
        ({"image_id": 1.5}, "'image_id' must be a number or a text"),
        ({"image_id": True}, "'image_id' must be a number or a text"),
        ({"image_id": "1"}, "image_id '1' is not in 'images' .but 1, a number, is"),
        ({"category_id": {}}, "'category_id' must be a number or a text"),
        ({"category_id": "2"}, "category '2' is not one of .*but 2, a number, is"),
        ({"ignore": 1}, "'ignore' is not supported"),
    ],
)
def test_what_cannot_be_amended_is_listed_or_left_out(checked, coco, fields, message):
    total = len(coco.data["annotations"])
    coco.data["annotations"][2] |= fields
    with pytest.raises(DatasetError, match=rf"pets\.json, annotations\[2\] \(id 3\): .*{message}"):
        checked()
    checked(DATASETS__INVALID="drop")
    assert objects() == (total - 1, total - 1)


def test_crowd_regions_are_counted_apart(checked, coco):
    total = len(coco.data["annotations"])
    for annotation in coco.data["annotations"][:2]:
        annotation["iscrowd"] = "1"
    checked()
    report = validate_dataset("pets", cache_dir="cache")
    assert (report.num_annotations, report.num_crowd) == (total, 2)
    assert f"{total} annotations (2 of them crowd regions)" in str(report)
    assert objects() == (total - 2, total - 2)


IDS = {
    "texts": [f"img_{k}" for k in range(8)],
    "digits": [f"{k:012d}" for k in range(8)],
    "dates": [20261128093015001 + k for k in range(8)],
    "hashes": [0x9E3779B97F4A7C15 * (k + 1) % 2**64 for k in range(8)],
    "negative": list(range(-8, 0)),
    "floats": [float(k) for k in range(1, 9)],
    "mixed": [1, "1", 2, "2", 3, "3", 4, "4"],
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_become_what_every_evaluator_takes(checked, coco, perfect_results, kind):
    new = dict(zip(range(1, 9), IDS[kind], strict=True))
    for image in coco.data["images"]:
        image["id"] = new[image["id"]]
    for annotation in coco.data["annotations"]:
        annotation["image_id"] = new[annotation["image_id"]]
    checked()
    assert sorted(d["image_id"] for d in DatasetCatalog.get("pets")) == list(range(1, 9))
    with open(MetadataCatalog.get("pets").json_file) as file:
        images = json.load(file)["images"]
    assert [i.get("source_id", i["id"]) for i in images] == IDS[kind]
    for fast in (False, True):
        evaluator = COCOEvaluator("pets", distributed=False, use_fast_impl=fast)
        results = perfect_results("pets", evaluator)
        assert results["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("ids", [["c1", "c2", "c3"], [1.0, 2.0, 3.0], [0, 2**60, 2**61]])
def test_category_ids(checked, coco, perfect_results, ids):
    for category in coco.data["categories"]:
        category["id"] = ids[category["id"] - 1]
    for annotation in coco.data["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"] - 1]
    checked()
    assert MetadataCatalog.get("pets").thing_classes == ["cat", "dog", "owl"]
    for fast in (False, True):
        evaluator = COCOEvaluator("pets", distributed=False, use_fast_impl=fast)
        results = perfect_results("pets", evaluator)
        assert results["bbox"]["AP"] == pytest.approx(100)


def test_annotation_ids_of_any_kind(checked, coco):
    total = len(coco.data["annotations"])
    for ids in (["x"] * total, [[1]] * total, [2**60 + k for k in range(total)], [None] * total):
        for annotation, key in zip(coco.data["annotations"], ids, strict=True):
            annotation["id"] = key
        checked()
        assert objects() == (total, total)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": None}, r"categories\[1\]: 'name' must be a text, got None"),
        ({"name": ["a"]}, r"categories\[1\]: 'name' must be a text"),
        ({"name": " "}, r"categories\[1\]: 'name' must be a text"),
        ({"id": None}, r"categories\[1\]: 'id' must be a number or a text, got None"),
        ({"id": [1]}, r"categories\[1\]: 'id' must be a number or a text"),
        ({"id": "2"}, r"categories\[1\]: the id '2' is a text or a number unlike"),
        ({"id": 1}, r"categories\[1\]: the id 1 occurs twice"),
        ({"name": "cat"}, r"categories: 'cat' occurs twice, with annotations of the ids 1, 2"),
    ],
)
@pytest.mark.parametrize("policy", ["error", "drop"])
def test_broken_categories_are_named(checked, coco, change, message, policy):
    coco.data["categories"][1] |= change
    with pytest.raises(DatasetError, match=r"pets\.json, " + message):
        checked(DATASETS__INVALID=policy)


def test_a_root_category_named_like_a_class_is_left_out(checked, coco, perfect_results):
    coco.data["categories"].insert(0, {"id": 0, "name": "dog", "supercategory": "none"})
    checked()
    assert MetadataCatalog.get("pets").thing_classes == ["cat", "dog", "owl"]
    results = perfect_results("pets", COCOEvaluator("pets", distributed=False))
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_names_that_are_numbers_become_texts(checked, coco):
    for category in coco.data["categories"]:
        category["name"] = category["id"] + 6
    checked()
    assert MetadataCatalog.get("pets").thing_classes == ["7", "8", "9"]
    assert len(DatasetCatalog.get("pets")) == 8


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_are_rewritten(checked, coco, make_cfg, encoding):
    total = len(coco.data["annotations"])
    (coco.root / "pets.json").write_text(json.dumps(coco.data), encoding=encoding)
    register_datasets(make_cfg(coco.declaration, train=["pets"]))
    assert objects() == (total, total)


@pytest.mark.parametrize("content", ["[" * 200_000, '{"images": [' + "9" * 100_000 + "]}", "\x80"])
def test_files_that_no_parser_takes_are_named(make_cfg, coco, content):
    (coco.root / "pets.json").write_text(content, encoding="latin-1")
    with pytest.raises(DatasetError, match=r"\[broken_annotation_file\] .*pets\.json: "):
        register_datasets(make_cfg(coco.declaration, train=["pets"]))


@pytest.mark.parametrize(
    "name",
    ["a\0b.png", "\ud800.png", "x" * 5000, ".", "", 5],
    ids=["NUL", "surrogate", "long", "dot", "empty", "number"],  # that every encoding can print
)
def test_impossible_file_names_are_named(checked, coco, name):
    coco.data["images"][0]["file_name"] = name
    with pytest.raises(DatasetError, match=r"images\[0\]") as caught:
        checked()
    assert str(caught.value).encode("utf-8")  # it can be printed and logged
    checked(DATASETS__INVALID="drop")
    assert len(DatasetCatalog.get("pets")) == 7


def test_a_pipe_is_no_image(checked, coco):
    import os

    (coco.root / "pets" / "1.png").unlink()
    os.mkfifo(coco.root / "pets" / "1.png")
    with pytest.raises(DatasetError, match=r"missing_image\] .*1\.png: .*not a regular file"):
        checked()


def test_boxes_a_few_pixels_outside_are_clipped(checked, coco, make_cfg):
    box = coco.data["annotations"][0]["bbox"]
    box[:] = [-3, -2, 46, 35]  # the image has 40 x 30
    cfg = checked()
    (record,) = [d for d in load_training_dicts(cfg, ["pets"]) if d["image_id"] == 1]
    cfg.INPUT.MIN_SIZE_TRAIN = (30,)
    cfg.INPUT.RANDOM_FLIP = "none"
    mapped = DatasetMapper(cfg, True)(record)["instances"].gt_boxes.tensor
    assert mapped[0].tolist() == [0, 0, 40, 30]
    for outside in ([-4, 0, 20, 20], [41, 5, 2, 5], [20, 5, 24, 5]):
        box[:] = outside
        with pytest.raises(DatasetError, match=r"box_outside\] .*annotations\[0\]"):
            checked()


def test_a_duplicate_image_id_does_not_hand_boxes_on(checked, coco):
    """Whose boxes they are is unknown: neither image keeps them."""
    coco.data["images"][1]["id"] = 1
    for annotation in coco.data["annotations"]:
        annotation["image_id"] = 1 if annotation["image_id"] == 2 else annotation["image_id"]
    with pytest.raises(DatasetError) as caught:
        checked()
    for position in (0, 1):
        assert f"images[{position}]: the id 1 is that of several files" in str(caught.value)
    checked(DATASETS__INVALID="drop")
    assert [d["image_id"] for d in DatasetCatalog.get("pets")] == [3, 4, 5, 6, 7, 8]


def test_drop_says_what_went(checked, coco, caplog):
    for _ in range(30):
        coco.add(1, 1, [5, 5, 0, 4])
    first = len(coco.data["annotations"]) - 30
    with caplog.at_level(logging.WARNING, "detnas_d2"):
        checked(DATASETS__INVALID="drop")
    (text,) = [r.getMessage() for r in caplog.records if "Left out of" in r.getMessage()]
    assert f"[empty_box] {coco.root}/pets.json, annotations[{first}] (id {first + 1}): " in text
    listing = text.split("and 10 more, all listed in ")[1]
    with open(listing) as file:
        assert file.read().count("[empty_box]") == 30


def test_drop_never_goes_on_without_boxes(checked, coco):
    for annotation in coco.data["annotations"]:
        annotation["bbox"] = [5, 5, 0, 4]
    with pytest.raises(DatasetError, match=r"no object is left: .*annotations\[0\]"):
        checked(DATASETS__INVALID="drop")


def test_nothing_to_learn_from(checked, coco, make_cfg, caplog):
    for annotation in coco.data["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(
        DatasetError, match="'pets' has no object to learn from: its 14 annot.*crow"
    ):
        checked()
    coco.data["annotations"] = []
    with pytest.raises(DatasetError, match="'pets' has no object to learn from: it has no annot"):
        checked()
    register_datasets(make_cfg(coco.declaration, test=["pets"]))
    assert "'pets' has no object, so its scores are not defined" in caplog.text
