"""Folders as their producers write them: what is recognised, and that training reads the same."""

from __future__ import annotations

import json
import shutil

import pytest

from detnas_d2.data.recognition import recognise
from tests.data.layouts import (
    assert_same,
    boxes_of,
    coco_data,
    csv_text,
    images,
    roboflow,
    voc,
    write_json,
    write_lists,
    write_xml,
    write_yolo,
    yolo_lines,
)


def test_coco_as_published(tmp_path, write_image, seen):
    data = tmp_path / "data"
    for split, number in (("train", 4), ("val", 2)):
        names = images(data / f"{split}2017", number, write_image, name=f"{split}_{{:012d}}.jpg")
        write_json(data / "annotations" / f"instances_{split}2017.json", coco_data(names))
        write_json(data / "annotations" / f"captions_{split}2017.json", {"info": {}, "images": []})
        keypoints = coco_data(names, categories=("cat", "dog", "person"))
        write_json(data / "annotations" / f"person_keypoints_{split}2017.json", keypoints)
    found = seen(data)
    assert (found.format, found.classes) == ("coco", ("cat", "dog"))
    assert_same(found, 4, 2)
    assert found.parts[0].classes == {"cat": 4, "dog": 4}
    assert found.parts[0].place == "annotations/instances_train2017.json"
    assert found.declarations[0]["IMAGES"] == str(data / "train2017")
    assert any("instances_val2017.json is the test set" in note for note in found.notes)


def test_coco_with_three_parts_and_one_folder_of_images(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = images(data / "images", 9, write_image)
    for split, part in (("train", names[:5]), ("val", names[5:7]), ("test", names[7:])):
        write_json(data / f"{split}.json", coco_data(part))
    found = seen(data)
    assert_same(found, 5, 2, val=2)
    assert (found.train, found.test, found.val) == ("data-train", "data-test", "data-val")
    assert any("val.json can score candidates" in note for note in found.notes)


@pytest.mark.parametrize("prefix", ["", "images/", "pics/images/", "./images/"])
def test_one_coco_file_is_split(tmp_path, write_image, seen, prefix):
    names = images(tmp_path / "data" / "pics" / "images", 10, write_image)
    write_json(tmp_path / "data" / "labels.json", coco_data(names, prefix))
    found = seen(tmp_path / "data")
    assert_same(found, 8, 2)
    assert found.declarations[0]["SPLITS"] == {"data-train": 0.8, "data-test": 0.2}
    assert found.part("all").images == 10
    parts = [set(boxes_of(name)) for name in (found.train, found.test)]
    assert not parts[0] & parts[1]
    again = recognise(str(tmp_path / "data"), str(tmp_path / "elsewhere"))
    assert again == found  # the same split, whoever makes it


def test_roboflow_coco(tmp_path, write_image, seen):
    data = tmp_path / "data"
    for i, (split, number) in enumerate((("train", 4), ("valid", 2), ("test", 3))):
        roboflow(data, split, number, write_image, first=10 * i)
    (data / "README.roboflow.txt").write_text("animals - v1\n")
    found = seen(data)
    assert found.layout == "COCO, as Roboflow exports it"
    assert found.classes == ("cat", "dog")
    assert_same(found, 4, 3, val=2)
    assert "the root category 'animals' without annotations left out" in found.parts[0].notes


def test_a_super_category_with_boxes_is_a_class(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = roboflow(data, "train", 5, write_image)
    file = data / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 0
    write_json(file, content)
    found = seen(data)
    assert found.classes == ("animals", "cat", "dog")
    assert found.parts[0].classes == {"animals": 1, "cat": 4, "dog": 5}
    assert len(names) == found.parts[0].images


def test_copies_of_one_original_on_both_sides(tmp_path, write_image, seen):
    data = tmp_path / "data"
    roboflow(data, "train", 3, write_image)
    names = roboflow(data, "test", 3, write_image, first=2)
    assert names[0].startswith("2_jpg.rf.")
    (note,) = [note for note in seen(data).notes if "Roboflow's names" in note]
    assert note.startswith("1 images to test on are copies of originals") and "2_jpg" in note


YAMLS = {
    "roboflow": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
    "names: ['cat', 'dog']\n",
    "ultralytics": "path: .  # dataset root\ntrain: images/train\nval: images/val\ntest:\n\n"
    "names:\n  0: cat\n  1: dog\n",
    "absolute": "train: {root}/images/train\nval: {root}/images/val\nnames: [cat, dog]\n",
    "list": "path: ../data\ntrain: train.txt\nval: [images/val]\nnames: [cat, dog]\n",
}


@pytest.mark.parametrize("kind", YAMLS)
@pytest.mark.parametrize("segments", [False, True])
def test_yolo(tmp_path, write_image, seen, kind, segments):
    data = tmp_path / "data"
    folders = {"train": 4, "val": 2}
    for i, (split, number) in enumerate(folders.items()):
        folder = data / "images" / split
        if kind == "roboflow":
            folder = data / {"val": "valid"}.get(split, split) / "images"
        write_yolo(folder, number, write_image, first=10 * i, segments=segments)
    (data / "data.yaml").write_text(YAMLS[kind].format(root=data))
    if kind == "list":
        files = sorted((data / "images" / "train").iterdir())
        (data / "train.txt").write_text("".join(f"./images/train/{f.name}\n" for f in files))
    if kind == "roboflow":  # a test set that was emptied
        assert any("'test' of data.yaml is left out" in n for n in seen(data).notes)
    found = seen(data)
    assert (found.format, found.classes) == ("yolo", ("cat", "dog"))
    assert_same(found, 4, 2)
    # Once more without the memory: the same.
    assert recognise(str(data / "data.yaml"), str(tmp_path / "m")).parts == found.parts


def test_yolo_that_is_validated_on_what_it_learned(tmp_path, write_image, seen):
    """As coco8.yaml and coco128.yaml are."""
    write_yolo(tmp_path / "data" / "images" / "train2017", 10, write_image)
    text = (
        "path: ../data\ntrain: images/train2017\nval: images/train2017\nnames: {0: cat, 1: dog}\n"
    )
    (tmp_path / "data" / "coco10.yaml").write_text(text)
    found = seen(tmp_path / "data")
    assert_same(found, 8, 2)
    assert any("all of its images are trained on" in note for note in found.notes)


def test_a_validation_set_that_tests_scores_no_candidates(tmp_path, write_image, seen):
    """Many a data.yaml names one folder for both."""
    for i, part in enumerate(("train", "test")):
        write_yolo(tmp_path / "data" / "images" / part, 4, write_image, first=10 * i)
    text = "path: .\ntrain: images/train\nval: {}\ntest: images/test\nnames: [cat, dog]\n"
    (tmp_path / "data" / "data.yaml").write_text(text.format("images/test"))
    found = seen(tmp_path / "data")
    assert_same(found, 4, 4)
    assert any("val is left out: all of its images are tested on" in note for note in found.notes)
    write_yolo(tmp_path / "data" / "images" / "val", 2, write_image, first=20)
    (tmp_path / "data" / "data.yaml").write_text(text.format("[images/val, images/test]"))
    found = seen(tmp_path / "data")
    assert_same(found, 4, 4, val=6)
    assert any(
        "4 of 6 images of data.yaml, val are tested on too, so that the result favours what was "
        "chosen by them" in note
        for note in found.notes
    )


@pytest.mark.parametrize("tool", ["labelimg", "label studio", "cvat", "parts"])
def test_yolo_without_a_yaml(tmp_path, write_image, seen, tool):
    data = tmp_path / "data"
    if tool == "label studio":
        write_yolo(data / "images", 10, write_image)
        (data / "classes.txt").write_text("cat\ndog")
        write_json(data / "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {}})
    elif tool == "parts":
        for i, (split, number) in enumerate((("train", 8), ("val", 2))):
            write_yolo(data / "images" / split, number, write_image, first=10 * i)
        (data / "labels" / "classes.txt").write_text("cat\ndog\n")
    else:
        folder = data / ("obj_train_data" if tool == "cvat" else "")
        for name in images(folder, 10, write_image):
            (folder / name).with_suffix(".txt").write_text(yolo_lines())
        name = "obj.names" if tool == "cvat" else "classes.txt"
        (data / name).write_text("cat\ndog\n")
    found = seen(data)
    assert found.layout == "YOLO without data.yaml" and found.classes == ("cat", "dog")
    assert_same(found, 8, 2)


def test_darknet_of_roboflow(tmp_path, write_image, seen):
    data = tmp_path / "data"
    for i, (split, number) in enumerate((("train", 4), ("valid", 2), ("test", 3))):
        for name in images(data / split, number, write_image, first=10 * i):
            (data / split / name).with_suffix(".txt").write_text(yolo_lines())
        (data / split / "_darknet.labels").write_text("cat\ndog\n")
    assert_same(seen(data), 4, 3, val=2)


@pytest.mark.parametrize("top", ["", "VOCdevkit/VOC2012"])
def test_voc_as_published(tmp_path, write_image, seen, top):
    data = tmp_path / "data" / top
    ids = voc(data, write_image)
    lists = {"train": ids[:4], "val": ids[4:7], "trainval": ids[:7], "test": ids[7:]}
    write_lists(data, **lists, cat_train=[f"{i}  1" for i in ids])
    found = seen(tmp_path / "data")
    assert (found.format, found.classes) == ("voc", ("cat", "dog"))
    assert_same(found, 7, 3)
    (data / "ImageSets" / "Main" / "test.txt").unlink()
    found = recognise(str(tmp_path / "data"), str(tmp_path / "memory"))
    assert (found.parts[0].images, found.parts[1].images) == (4, 3)
    assert found.declarations[1]["SPLIT"] == "val"


@pytest.mark.parametrize("below", ["", "camera/"])
def test_voc_with_one_list(tmp_path, write_image, seen, below):
    """As CVAT exports it, also from images in folders."""
    places = f"Annotations/{below}", f"JPEGImages/{below}"
    ids = voc(tmp_path / "data", write_image, *places)
    write_lists(tmp_path / "data", default=[below + i for i in ids])
    found = seen(tmp_path / "data")
    assert_same(found, 8, 2)
    assert found.declarations[0]["SPLIT"] == "default"


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [("Annotations", "JPEGImages"), ("annotations", "images"), (".", "."), ("a/xml", "a/b/c")],
)
def test_voc_without_lists(tmp_path, write_image, seen, annotations, pictures):
    voc(tmp_path / "data", write_image, annotations, pictures)
    found = seen(tmp_path / "data")
    assert_same(found, 8, 2)
    assert "SPLIT" not in found.declarations[0]


def test_voc_in_folders_of_parts(tmp_path, write_image, seen):
    """As Roboflow exports it: XML beside images."""
    data = tmp_path / "data"
    for i, (split, number) in enumerate((("train", 4), ("valid", 2), ("test", 3))):
        names = images(data / split, number, write_image, first=10 * i)
        write_xml(data / split, names)
    assert_same(seen(data), 4, 3, val=2)


def test_csv_of_parts(tmp_path, write_image, seen):
    data = tmp_path / "data"
    for i, (split, number) in enumerate((("train", 4), ("test", 3))):
        names = images(data / "images" / split, number, write_image, first=10 * i)
        (data / f"{split}_labels.csv").write_text(csv_text(names))
    found = seen(data)
    assert found.format == "csv"
    assert_same(found, 4, 3)
    assert found.declarations[0]["IMAGES"] == str(data / "images" / "train")


def test_one_csv(tmp_path, write_image, seen):
    names = images(tmp_path / "data" / "images", 10, write_image)
    (tmp_path / "data" / "labels.csv").write_text(csv_text(names))
    assert_same(seen(tmp_path / "data"), 8, 2)


def test_two_readings(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = images(data / "images", 10, write_image)
    write_json(data / "labels.json", coco_data(names[:9]))
    (data / "labels.csv").write_text(csv_text(names))
    found = seen(data)
    assert found.format == "coco" and found.part("all").images == 9
    assert "could also be read as CSV of boxes (labels.csv)" in found.notes[0]
    chosen = recognise(str(data / "labels.csv"), str(tmp_path / "memory"))
    assert chosen.format == "csv" and chosen.part("all").images == 10
    write_json(data / "more_labels.json", coco_data(names))
    found = recognise(str(data), str(tmp_path / "memory"))
    assert found.part("all").place == "more_labels.json"
    assert any("left out: labels.json" in note for note in found.notes)


def test_classes_that_only_one_part_has(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = images(data / "images", 6, write_image)
    write_json(data / "train.json", coco_data(names[:4], categories=("owl", "dog", "cat")))
    write_json(data / "test.json", coco_data(names[4:]))
    found = seen(data)
    assert found.classes == ("owl", "dog", "cat")
    assert_same(found, 4, 2)
    assert "classes without a box in the training images: owl" in found.notes


def test_equal_images_are_named(tmp_path, write_image, seen):
    data = tmp_path / "data"
    for i, (split, number) in enumerate((("train", 4), ("test", 3))):
        names = images(data / split, number, write_image, first=10 * i)
        write_json(data / f"{split}.json", coco_data(names))
    shutil.copy(data / "train" / "2.jpg", data / "test" / "11.jpg")
    found = seen(data)
    assert found.equal_images == ((str(data / "train" / "2.jpg"), str(data / "test" / "11.jpg")),)
    assert any(note.startswith("1 images to test on are byte by byte") for note in found.notes)


def test_equal_images_that_a_split_parts(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = images(data, 10, write_image)
    (data / "labels.csv").write_text(csv_text(names))
    found = seen(data)
    assert not found.equal_images
    one, other = (sorted(boxes_of(name))[0] for name in (found.train, found.test))
    shutil.copy(data / one, data / other)
    found = recognise(str(data), str(tmp_path / "memory"))
    assert found.equal_images == ((str(data / one), str(data / other)),)
