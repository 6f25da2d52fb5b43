"""Folders as their producers write them: what is recognised, and that training reads the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data import DatasetError, register_datasets
from detnas_d2.data.recognition import recognise
from detnas_d2.utils.errors import InputError

BOXES = [("cat", (4, 6, 24, 26)), ("dog", (10, 2, 30, 22))]  # edges, from 0, the last outside
SIZE = (40, 30)


def images(folder, number, write_image, first=0, name="{}.jpg", size=SIZE):
    names = [name.format(i) for i in range(first, first + number)]
    for i, file in enumerate(names, start=first):
        write_image(folder / file, *size, seed=i)
    return names


def coco_data(names, prefix="", categories=("cat", "dog"), first=1, **more):
    """One box of each of BOXES in every image."""
    labels = {label: first + i for i, label in enumerate(categories)}
    data = {
        "info": {"description": "", "year": 2026},
        "licenses": [],
        "categories": [
            {"id": i, "name": label, "supercategory": ""} for label, i in labels.items()
        ],
        "images": [
            {"id": i, "file_name": prefix + file, "width": SIZE[0], "height": SIZE[1]}
            for i, file in enumerate(names)
        ],
        "annotations": [],
    }
    for image in data["images"]:
        for label, (x0, y0, x1, y1) in BOXES:
            data["annotations"].append(
                {
                    "id": len(data["annotations"]),
                    "image_id": image["id"],
                    "category_id": labels[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
    return {**data, **more}


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def voc_xml(file):
    """As LabelImg writes it."""
    objects = "".join(
        f"""
	<object>
		<name>{label}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>{x0 + 1}</xmin>
			<ymin>{y0 + 1}</ymin>
			<xmax>{x1}</xmax>
			<ymax>{y1}</ymax>
		</bndbox>
	</object>"""
        for label, (x0, y0, x1, y1) in BOXES
    )
    return f"""<annotation>
	<folder>x</folder>
	<filename>{file}</filename>
	<path>/home/me/x/{file}</path>
	<source>
		<database>Unknown</database>
	</source>
	<size>
		<width>{SIZE[0]}</width>
		<height>{SIZE[1]}</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>{objects}
</annotation>
"""


def write_xml(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for file in names:
        stem = os.path.splitext(file)[0]
        (folder / f"{stem}.xml").write_text(voc_xml(file), encoding="utf-8")


def yolo_lines(segments=False):
    lines = []
    for label, (x0, y0, x1, y1) in enumerate(box for _, box in BOXES):
        xs, ys = [x / SIZE[0] for x in (x0, x1)], [y / SIZE[1] for y in (y0, y1)]
        values = [sum(xs) / 2, sum(ys) / 2, xs[1] - xs[0], ys[1] - ys[0]]
        if segments:
            values = [
                xs[0],
                ys[0],
                xs[1],
                ys[0],
                xs[1],
                ys[1],
                xs[0],
                ys[1],
                (xs[0] + xs[1]) / 2,
                ys[0],
            ]
        lines.append(f"{label} {' '.join(f'{v:.6f}' for v in values)}\n")
    return "".join(lines)


def write_yolo(folder, names, write_image, first=0, **options):
    """``folder``: of the images; labels beside it."""
    made = images(folder, names, write_image, first)
    labels = folder.parent / folder.name.replace("images", "labels")
    if folder.name != "images":
        labels = folder.parent.parent / "labels" / folder.name
    labels.mkdir(parents=True, exist_ok=True)
    for file in made:
        (labels / file).with_suffix(".txt").write_text(yolo_lines(**options))


CSV_HEAD = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def csv_text(names):
    return CSV_HEAD + "".join(
        f"{file},{SIZE[0]},{SIZE[1]},{label},{','.join(map(str, box))}\n"
        for file in names
        for label, box in BOXES
    )


@pytest.fixture
def seen(make_cfg, tmp_path):
    """Recognises a folder, registers what it declares, and returns both."""

    def see(folder, **keys):
        found = recognise(str(folder), str(tmp_path / "memory"))
        names = [found.train, found.test, *([found.val] if found.val else [])]
        cfg = make_cfg(*found.declarations, train=names[:1], test=names[1:], **keys)
        cfg.DATASETS.INVALID = "drop"
        register_datasets(cfg)
        return found

    return see


def boxes_of(name):
    """Image -> {(class, edges)} as training reads them."""
    classes = MetadataCatalog.get(name).thing_classes
    found = {}
    for record in DatasetCatalog.get(name):
        edges = []
        for item in record["annotations"]:
            x, y, a, b = item["bbox"]
            box = (x, y, a, b) if item["bbox_mode"] == 0 else (x, y, x + a, y + b)
            edges.append((classes[item["category_id"]], tuple(round(v, 3) for v in box)))
        found[os.path.basename(record["file_name"])] = sorted(edges)
    return found


def assert_same(found, train, test, val=0):
    """Numbers of images, and the boxes of each as they were written."""
    assert found.images[found.train] == train and found.images[found.test] == test
    assert bool(found.val) == bool(val) and (not val or found.images[found.val] == val)
    for name, number in ((found.train, train), (found.test, test)):
        boxes = boxes_of(name)
        assert len(boxes) == number
        assert all(item == sorted(BOXES) for item in boxes.values())
    assert found.classes == tuple(MetadataCatalog.get(found.train).thing_classes)


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


def roboflow(folder, split, number, write_image, first=0):
    names = images(folder / split, number, write_image, first, f"{{}}_jpg.rf.{first:032x}.jpg")
    data = coco_data(names, categories=("animals", "cat", "dog"), first=0)
    for category in data["categories"]:
        category["supercategory"] = "animals" if category["id"] else "none"
    data["info"] |= {"contributor": "", "url": "https://public.roboflow.com/object-detection/x"}
    write_json(folder / split / "_annotations.coco.json", data)
    return names


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


def voc(data, write_image, annotations="Annotations", pictures="JPEGImages", number=10):
    names = images(data / pictures, number, write_image, name="{:06d}.jpg")
    write_xml(data / annotations, names)
    return [os.path.splitext(name)[0] for name in names]


def write_lists(data, **lists):
    folder = data / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for name, ids in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))


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


def test_voc_with_one_list(tmp_path, write_image, seen):
    """As CVAT exports it."""
    ids = voc(tmp_path / "data", write_image)
    write_lists(tmp_path / "data", default=ids)
    assert_same(seen(tmp_path / "data"), 8, 2)


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
    assert "class 'owl' has no box in the training images" in found.notes


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


def test_what_is_dropped_is_listed(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = images(data / "images", 6, write_image)
    content = coco_data([*names, "absent.jpg"])
    content["annotations"][0]["bbox"][2] = 0
    write_json(data / "train.json", content)
    (data / "images" / "3.jpg").write_bytes(b"no image")
    found = seen(data)
    part = found.part("all")
    assert part.dropped == {"missing_image": 1, "unreadable_image": 1, "empty_box": 1}
    assert (part.images, part.boxes) == (5, 9)
    with open(part.listing) as file:
        lines = file.read().splitlines()
    assert len(lines) == 3 and any("3.jpg" in line for line in lines)
    assert not part.listing.startswith(str(data))


def test_images_without_boxes_and_quantiles(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = images(data / "images", 10, write_image)
    content = coco_data(names)
    content["annotations"] = content["annotations"][:4]  # two boxes each in two of the images
    write_json(data / "all.json", content)
    part = seen(data).part("all")
    assert (part.images_without_boxes, part.boxes) == (8, 4)
    # Both boxes are 20 x 20 in 40 x 30.
    assert set(part.box_size.values()) == {round((20 * 20 / (40 * 30)) ** 0.5, 4)}
    assert set(part.box_aspect.values()) == {1.0}
    assert part.boxes_per_image == {"5": 0, "25": 0, "50": 0, "75": 0, "95": 2}
    assert set(part.image_width.values()) == {40} and set(part.image_height.values()) == {30}


def test_hidden_files_of_macos(tmp_path, write_image, seen):
    data = tmp_path / "data"
    voc(data, write_image, ".", ".")
    for file in list(data.iterdir()):
        (data / f"._{file.name}").write_bytes(b"\0\5\26\7")
    (data / "__MACOSX").mkdir()
    (data / "__MACOSX" / "x.json").write_text('{"images": [], "annotations": []}')
    found = seen(data)
    assert_same(found, 8, 2)
    assert not found.part("all").dropped


@pytest.mark.parametrize("name", ["Bäume 1 (Kopie).JPG", "猫 1.JPEG", "a+b #1.Png"])
def test_names_as_they_come(tmp_path, write_image, seen, name):
    for kind in ("coco", "voc", "yolo", "csv"):
        data = tmp_path / f"my {kind} data"
        stem, extension = os.path.splitext(name)
        made = images(data / "images", 5, write_image, name=f"{stem} {{}}{extension}")
        if kind == "coco":
            write_json(data / "a.json", coco_data(made))
        elif kind == "voc":
            write_xml(data / "images", made)
        elif kind == "csv":
            (data / "boxes.csv").write_text(csv_text(made), encoding="utf-8")
        else:
            (data / "labels").mkdir()
            for file in made:
                (data / "labels" / file).with_suffix(".txt").write_text(yolo_lines())
            (data / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
        found = seen(data)
        assert found.format == kind and not found.part("all").dropped
        assert found.train == f"my_{kind}_data-train"
        assert found.images[found.train] == 4 and found.images[found.test] == 1
        assert all(len(boxes) == 2 for boxes in boxes_of(found.train).values())


# What cannot be used: one line.


def refusal(folder, tmp_path):
    with pytest.raises(InputError) as caught:
        recognise(str(folder), str(tmp_path / "memory"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_is_there(tmp_path, write_image):
    assert "nowhere: no such folder" in refusal(tmp_path / "nowhere", tmp_path)
    (tmp_path / "data").mkdir()
    message = refusal(tmp_path / "data", tmp_path)
    assert "COCO" in message and "YOLO" in message and "VOC" in message and "CSV" in message
    assert "found no file at all" in message
    images(tmp_path / "data", 3, write_image)
    (tmp_path / "data" / "notes.json").write_text("{}")
    assert "found 3 .jpg, 1 .json, of them 3 images" in refusal(tmp_path / "data", tmp_path)


def test_near_misses(tmp_path, write_image):
    data = tmp_path / "data"
    names = images(data / "labels", 2, write_image)
    write_json(data / "a.json", coco_data(["x/none.jpg"]))
    assert "a.json: COCO's layout, but none of 1 of its images" in refusal(data, tmp_path)
    write_json(data / "a.json", {**coco_data(names), "annotations": []})
    assert "'annotations' is empty or absent" in refusal(data, tmp_path)
    (data / "a.json").write_text('{"images": [')
    assert "a.json: Expecting value" in refusal(data, tmp_path)
    (data / "a.json").unlink()
    (data / "labels.csv").write_text("image,label\n")
    assert "labels.csv, line 1: expected the columns filename" in refusal(data, tmp_path)
    (data / "labels" / "0.txt").write_text(yolo_lines())
    assert "without a data.yaml that names the classes" in refusal(data, tmp_path)
    (data / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    assert "'images' is not there" in refusal(data, tmp_path)
    (data / "x").mkdir()
    (data / "x" / "q.xml").write_text(voc_xml("q.jpg"))
    assert "x: VOC's XML, but no image of the same name" in refusal(data, tmp_path)


def test_no_box_is_left(tmp_path, write_image):
    names = images(tmp_path / "data", 2, write_image)
    content = coco_data(names)
    for annotation in content["annotations"]:
        annotation["bbox"] = [0, 0, 0, 0]
    write_json(tmp_path / "data" / "a.json", content)
    with pytest.raises(DatasetError, match="no box to learn from; 4 entries cannot be used"):
        recognise(str(tmp_path / "data"), str(tmp_path / "memory"))


# The memory.


def test_a_change_is_seen(tmp_path, write_image, touch):
    data = tmp_path / "data"
    write_yolo(data / "images", 10, write_image)
    yaml = "path: {}\ntrain: images\nval: {}\nnames: [cat, dog]\n"
    write_yolo(tmp_path / "far" / "images", 3, write_image, first=20)
    (data / "data.yaml").write_text(yaml.format(data, tmp_path / "far" / "images"))

    def look():
        before = os.stat(written).st_mtime_ns if written else 0
        found = recognise(str(data), str(tmp_path / "memory"))
        (file,) = (tmp_path / "memory").rglob("recognised.json")
        return found, file, os.stat(file).st_mtime_ns != before

    written = None
    first, written, _ = look()
    again, _, new = look()
    assert again == first and not new
    label = data / "labels" / "3.txt"
    label.write_text(label.read_text().splitlines(True)[0])
    found, _, new = look()
    assert new and found.part("train").boxes == first.part("train").boxes - 1
    far = tmp_path / "far" / "labels" / "20.txt"  # outside the folder
    far.write_text("")
    touch(far)
    found, _, new = look()
    assert new and found.part("test").boxes == first.part("test").boxes - 2
    (data / "images" / "4.jpg").unlink()
    found, _, new = look()
    assert new and found.part("train").images == 9
    touch(data / "images" / "5.jpg")
    assert look()[2] and not look()[2]


def test_a_remembered_answer_needs_no_torch(tmp_path, write_image):
    write_yolo(tmp_path / "data" / "images", 4, write_image)
    (tmp_path / "data" / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    found = recognise(str(tmp_path / "data"), str(tmp_path / "memory"))
    code = (
        "import sys\nfrom detnas_d2.data.recognition import recognise\n"
        f"found = recognise({str(tmp_path / 'data')!r}, {str(tmp_path / 'memory')!r})\n"
        "print(found.part('all').boxes, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [str(found.part("all").boxes), "False"]
