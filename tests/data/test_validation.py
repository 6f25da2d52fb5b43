"""The check of datasets before training."""

from __future__ import annotations

import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from PIL import Image

from detnas_d2.data import DatasetError, register_datasets, validate_dataset
from tests.data.declared import declare


def find(make_cfg, files, decode=False):
    """(kind, file name, entry) of the problems found when dropping them."""
    declare(make_cfg, files)
    name = files.declaration["NAME"]
    report = validate_dataset(name, cache_dir="cache", on_problem="drop", decode=decode)
    return [(p.kind, p.file.rsplit("/", 1)[-1], p.entry) for p in report.problems]


def test_good_data(make_cfg, coco, voc, toys):
    for files, boxes in ((coco, 14), (voc, 24), (toys, 8)):
        declare(make_cfg, files)
        report = validate_dataset(files.declaration["NAME"], cache_dir="cache", decode=True)
        assert report.ok
        assert (report.num_images, report.num_annotations) == (8, boxes)


def break_images(coco):
    pets = coco.root / "pets"
    (pets / "1.png").unlink()
    (pets / "2.png").write_text("no image")
    coco.data["images"][2]["width"] = 41
    coco.data["images"].append({**coco.data["images"][3]})
    coco.data["images"].append({"id": 99})
    coco.save()


def test_coco_images(make_cfg, coco):
    break_images(coco)
    assert find(make_cfg, coco) == [
        ("duplicate_image_id", "pets.json", "images[8]"),
        ("broken_image_entry", "pets.json", "images[9]"),
        ("missing_image", "1.png", ""),
        ("unreadable_image", "2.png", ""),
        ("size_mismatch", "pets.json", "images[2] (id 3)"),
    ]
    dicts = DatasetCatalog.get("pets")
    assert [d["image_id"] for d in dicts] == [4, 5, 6, 7, 8]


def test_coco_annotations(make_cfg, coco, perfect_results):
    first = len(coco.data["annotations"])
    bad = [
        ("empty_box", coco.add(1, 1, [5, 5, 0, 4])),
        ("empty_box", coco.add(1, 1, [5, 5, 3, -1])),
        ("box_outside", coco.add(2, 1, [25, 5, 10, 4])),
        ("unknown_class", coco.add(2, 7, [5, 5, 5, 4])),
        ("absent_image", coco.add(77, 1, [5, 5, 5, 4])),
        ("broken_annotation", coco.add(1, 1, [5, 5, 5, 4])),
        ("broken_annotation", coco.add(1, 1, [5, 5, float("nan"), 4])),
    ]
    bad[5][1]["bbox"] = [1, 2, 3]
    coco.add(3, 1, [30, 20, 10.5, 10.9])  # rounding: less than a pixel outside
    coco.save()
    expected = [
        (kind, "pets.json", f"annotations[{first + i}] (id {annotation['id']})")
        for i, (kind, annotation) in enumerate(bad)
    ]
    assert find(make_cfg, coco) == expected
    # Training and the evaluation's ground truth have lost the same.
    assert sum(len(d["annotations"]) for d in DatasetCatalog.get("pets")) == first + 1
    with open(MetadataCatalog.get("pets").json_file) as file:
        assert len(json.load(file)["annotations"]) == first + 1
    evaluator = COCOEvaluator("pets", ("bbox",), False)
    assert perfect_results("pets", evaluator)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_boxes_in_shares_of_the_image_are_refused(make_cfg, coco, policy):
    for annotation in coco.data["annotations"]:
        annotation["bbox"] = [value / 100 for value in annotation["bbox"]]
    coco.save()
    with pytest.raises(DatasetError, match=r"pets\.json: no box reaches beyond the first pixel"):
        declare(make_cfg, coco)
        validate_dataset("pets", cache_dir="cache", on_problem=policy)


def test_the_error_lists_the_first_problems(make_cfg, coco):
    for _ in range(30):
        coco.add(1, 1, [5, 5, 0, 4])
    coco.save()
    with pytest.raises(DatasetError) as caught:
        register_datasets(make_cfg(coco.declaration, train=["pets"]))
    message = str(caught.value)
    assert "'pets' has 30 problem(s)" in message
    assert message.count("[empty_box]") == 20
    assert "and 10 more" in message
    assert "pets.json, annotations[14] (id 15)" in message
    assert "DATASETS.INVALID" in message


def test_drop_warns_once_with_counts(make_cfg, coco, caplog):
    break_images(coco)
    with caplog.at_level(logging.WARNING, "detnas_d2"):
        register_datasets(make_cfg(coco.declaration, train=["pets"], DATASETS__INVALID="drop"))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "missing_image 1" in warnings[0]
    assert "size_mismatch 1" in warnings[0]


def test_ignore_does_not_look(make_cfg, coco):
    break_images(coco)
    coco.data["images"] = coco.data["images"][:8]
    coco.save()
    register_datasets(make_cfg(coco.declaration, train=["pets"], DATASETS__INVALID="ignore"))
    assert len(DatasetCatalog.get("pets")) == 8


@pytest.mark.parametrize("policy", ["error", "drop"])
@pytest.mark.parametrize(
    "text", ["{", "[]", '{"images": []}', '{"images": [], "categories": []}', None]
)
def test_unusable_json(make_cfg, coco, text, policy):
    path = coco.root / "pets.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DatasetError, match=r"pets\.json"):
        register_datasets(make_cfg(coco.declaration, train=["pets"], DATASETS__INVALID=policy))


def test_nothing_left_is_an_error(make_cfg, coco):
    for image in (coco.root / "pets").iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match="8 problem"):
        register_datasets(make_cfg(coco.declaration, train=["pets"], DATASETS__INVALID="drop"))


def test_no_image_at_all_is_an_error(make_cfg, coco):
    coco.data["images"], coco.data["annotations"] = [], []
    coco.save()
    with pytest.raises(DatasetError, match="'pets' holds no image"):
        register_datasets(make_cfg(coco.declaration, train=["pets"]))


def test_fields_that_evaluation_needs_are_filled_in(make_cfg, coco, perfect_results):
    for annotation in coco.data["annotations"]:
        del annotation["area"], annotation["iscrowd"]
        annotation["id"] -= 1  # COCOeval counts matches to annotation 0 as misses
    for image in coco.data["images"]:
        del image["width"], image["height"]
    coco.save()
    register_datasets(make_cfg(coco.declaration, train=["pets"]))
    assert DatasetCatalog.get("pets")[0]["width"] == 40
    results = perfect_results("pets", COCOEvaluator("pets", ("bbox",), False))
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_voc_problems(make_cfg, voc, perfect_results):
    good = ("cat", (2, 2, 20, 20))
    voc.add("img_0", voc.xml([good, ("dog", (5, 5, 5, 5)), ("yak", (1, 1, 9, 9))]))
    voc.add("img_1", voc.xml([good, ("dog", (5, 5, "x", 9)), ("owl", (30, 5, 44, 9))]))
    voc.add("img_2", "<annotation><size>")
    (voc.root / "Annotations" / "img_3.xml").unlink()
    (voc.root / "JPEGImages" / "img_4.jpg").unlink()
    voc.add("img_5", voc.xml([good], size=(30, 40)))
    voc.save_split([*voc.ids, "img_6"])
    assert find(make_cfg, voc) == [
        ("duplicate_image_id", "train.txt", "line 9"),
        ("empty_box", "img_0.xml", "object 2"),
        ("unknown_class", "img_0.xml", "object 3"),
        ("broken_annotation", "img_1.xml", "object 2"),
        ("box_outside", "img_1.xml", "object 3"),
        ("broken_annotation_file", "img_2.xml", ""),
        ("missing_annotation_file", "img_3.xml", ""),
        ("missing_image", "img_4.jpg", ""),
        ("size_mismatch", "img_5.xml", "size"),
    ]
    dicts = DatasetCatalog.get("zoo")
    assert [d["image_id"] for d in dicts] == ["img_0", "img_1", "img_6", "img_7"]
    assert [len(d["annotations"]) for d in dicts] == [1, 1, 3, 3]
    results = perfect_results("zoo", PascalVOCDetectionEvaluator("zoo"))
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_voc_is_normalised_for_the_evaluator(make_cfg, voc, perfect_results):
    boxes = [(name, (3.4, 2, 20.6, 25)) for name in ("cat", "dog", "owl ")]
    voc.add("no fields", voc.xml(boxes, size=None, fields=""), extension=".png")
    voc.add("size_0", voc.xml(boxes, size=(0, 0), fields="<difficult>1</difficult>"))
    voc.save_split(["no fields", "size_0", *voc.ids])
    register_datasets(make_cfg(voc.declaration, train=["zoo"]))
    dicts = DatasetCatalog.get("zoo")
    assert [d["image_id"] for d in dicts[:3]] == ["no_fields", "size_0", "img_0"]
    assert (dicts[0]["width"], dicts[0]["height"]) == (40, 30)
    assert dicts[0]["annotations"][0]["bbox"] == [2, 1, 21, 25]
    with Image.open(dicts[0]["file_name"]) as image:
        assert image.size == (40, 30)
    results = perfect_results("zoo", PascalVOCDetectionEvaluator("zoo"))
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_an_image_may_come_back_under_another_extension(make_cfg, voc, write_image):
    (voc.root / "JPEGImages" / "img_4.jpg").unlink()
    declare(make_cfg, voc)
    assert validate_dataset("zoo", cache_dir="cache", on_problem="drop").num_images == 7
    write_image(voc.root / "JPEGImages" / "img_4.png", 40, 30)
    assert validate_dataset("zoo", cache_dir="cache", on_problem="drop").num_images == 8


def test_voc_without_lists_or_images(make_cfg, voc):
    voc.save_split([])
    with pytest.raises(DatasetError, match=r"train\.txt.*empty"):
        register_datasets(make_cfg(voc.declaration, train=["zoo"]))
    with pytest.raises(DatasetError, match=r"val\.txt"):
        declaration = {**voc.declaration, "NAME": "zoo_val", "SPLIT": "val"}
        register_datasets(make_cfg(declaration, train=["zoo_val"]))


def test_folder_problems(make_cfg, toys):
    (toys.root / "ball" / "1.jpg").write_text("no image")
    (toys.root / "empty").mkdir()
    toys.declaration = {**toys.declaration, "CLASSES": ["ball", "empty"]}
    assert find(make_cfg, toys) == [
        ("unknown_class", "kite", ""),
        ("empty_class", "empty", ""),
        ("unreadable_image", "1.jpg", ""),
    ]
    assert [d["image_id"] for d in DatasetCatalog.get("toys")] == [
        "ball/0.jpg",
        "ball/2.jpg",
        "ball/3.jpg",
    ]


def test_the_second_check_is_remembered(make_cfg, coco, voc, toys, touch):
    changed = {
        "pets": [coco.root / "pets.json", coco.root / "pets" / "5.png"],
        "zoo": [voc.root / "Annotations" / "img_2.xml", voc.root / "ImageSets/Main/train.txt"],
        "toys": [toys.root / "kite" / "3.jpg", toys.root / "kite"],
    }
    for files in (coco, voc, toys):
        declare(make_cfg, files)
        name = files.declaration["NAME"]
        assert not validate_dataset(name, cache_dir="cache").cached
        assert validate_dataset(name, cache_dir="cache").cached
        assert not validate_dataset(name, cache_dir="cache", decode=True).cached
        assert validate_dataset(name, cache_dir="cache").cached
        for path in changed[name]:
            touch(path)
            assert not validate_dataset(name, cache_dir="cache").cached, path
            assert validate_dataset(name, cache_dir="cache").cached, path


def test_mended_data_are_checked_anew(make_cfg, coco):
    bad = coco.add(1, 1, [5, 5, 0, 4])
    coco.save()
    declare(make_cfg, coco)
    assert not validate_dataset("pets", cache_dir="cache", on_problem="drop").ok
    remembered = validate_dataset("pets", cache_dir="cache", on_problem="drop")
    assert remembered.cached
    assert remembered.counts() == {"empty_box": 1}
    assert MetadataCatalog.get("pets").json_file != str(coco.root / "pets.json")
    bad["bbox"] = [5, 5, 4, 4]
    coco.save()
    assert validate_dataset("pets", cache_dir="cache", on_problem="drop").ok
    assert MetadataCatalog.get("pets").json_file == str(coco.root / "pets.json")


def test_a_lost_cleaned_copy_is_written_again(make_cfg, coco):
    import shutil

    coco.add(1, 1, [5, 5, 0, 4])
    coco.save()
    declare(make_cfg, coco)
    validate_dataset("pets", on_problem="drop", cache_dir="cache")
    json_file = MetadataCatalog.get("pets").json_file
    shutil.rmtree(json_file.rsplit("/", 1)[0])
    validate_dataset("pets", on_problem="drop", cache_dir="cache")
    assert len(DatasetCatalog.get("pets")) == 8


def test_wrong_calls(make_cfg, coco):
    declare(make_cfg, coco)
    with pytest.raises(ValueError, match="on_problem"):
        validate_dataset("pets", cache_dir="cache", on_problem="skip")
    with pytest.raises(DatasetError, match="'cats' is not registered"):
        validate_dataset("cats", cache_dir="cache")
