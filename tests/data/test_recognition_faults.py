"""What ``recognise`` tells of a folder, what it cannot use, and what it remembers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from detnas_d2.data.checks import progress
from detnas_d2.data.recognition import memory, recognise
from detnas_d2.utils.errors import InputError
from tests.data.layouts import (
    assert_same,
    coco_data,
    csv_text,
    images,
    roboflow,
    voc,
    voc_xml,
    write_json,
    write_yolo,
    yolo_lines,
)


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


def test_images_that_are_gone_are_not_taken_from_another_part(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = [roboflow(data, split, n, write_image) for split, n in (("train", 12), ("test", 4))]
    assert set(names[1]) < set(names[0])
    for file in (data / "train").glob("*.jpg"):
        file.unlink()
    found = refusal(data, tmp_path)
    assert f"{data / 'train' / '_annotations.coco.json'}: of 12 of its images" in found
    assert "4 are there, and those lie in test, among images of another part" in found
    # Where most are in their place, those that are gone are left out.
    roboflow(data, "train", 12, write_image)
    (data / "train" / names[1][0]).unlink()
    part = seen(data).part("train")
    assert part.images == 11 and part.dropped == {"missing_image": 1}


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


def test_a_cache_that_cannot_be_written(tmp_path, write_image, monkeypatch):
    data = tmp_path / "data"
    voc(data, write_image, ".", ".")
    (data / "0.xml").write_text("<annotation/>")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(memory.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    folder = str(tmp_path / "tmp" / f"detnas_d2-{os.getuid()}")
    assert memory.default_cache() == folder
    assert recognise(str(data)).part("all").listing.startswith(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert memory.default_cache() == str(tmp_path / "cache" / "detnas_d2")


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
    assert "without a data.yaml or classes.txt that names the classes" in refusal(data, tmp_path)
    (data / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    assert "'images' is not there" in refusal(data, tmp_path)
    (data / "x").mkdir()
    (data / "x" / "q.xml").write_text(voc_xml("q.jpg"))
    assert "x: VOC's XML, but no image of the same name" in refusal(data, tmp_path)


def test_a_data_yaml_that_cannot_be_used_is_told_first(tmp_path, write_image):
    data = tmp_path / "data"
    write_yolo(data / "images" / "train", 3, write_image)
    hint = f"{os.path.join('labels', 'train', '*.txt')} look like YOLO's, without a data.yaml"
    assert f"no labelled images recognised: {hint}" in refusal(data, tmp_path)
    for text, reason in (
        ("train: images/train\nnc: 2\n", "data.yaml: a data.yaml of YOLO needs 'names', the list"),
        ("names: [cat, dog]\n", "data.yaml: a data.yaml of YOLO needs 'train'"),
        ("train: [a\nnames: {\n", f"[broken_annotation_file] {data / 'data.yaml'}: while parsing"),
    ):
        (data / "data.yaml").write_text(text)
        refused = refusal(data, tmp_path)
        assert f"no labelled images recognised: {reason}" in refused and hint not in refused
    flat = tmp_path / "flat"
    for file in images(flat, 3, write_image):
        (flat / file).with_suffix(".txt").write_text(yolo_lines())
    assert "recognised: *.txt look like YOLO's" in refusal(flat, tmp_path)


@pytest.mark.parametrize("fault", ["folder", "labels"])
def test_nothing_is_trained_on_in_the_place_of_images_that_are_gone(
    fault, tmp_path, write_image, seen
):
    data = tmp_path / "data"
    for split in ("train", "val"):
        write_yolo(data / "images" / split, 4, write_image, first=0 if split == "train" else 10)
    file = data / "data.yaml"
    file.write_text("names: [cat, dog]\ntrain: images/train\nval: images/val\n")
    assert seen(data).part("train").images == 4
    if fault == "folder":
        file.write_text("names: [cat, dog]\ntrain: trian\nval: images/val\n")
    else:
        for label in (data / "labels" / "train").iterdir():
            label.unlink()
    found = refusal(data, tmp_path)
    told = {"folder": f"{file}: 'trian' is not there", "labels": "none of its 4 images has a label"}
    assert told[fault] in found
    file.write_text("names: [cat, dog]\ntrain:\nval: images/val\n")  # nothing is named
    notes = recognise(str(data), str(tmp_path / "memory")).notes
    assert any("for nothing is named for training" in note for note in notes)


def test_a_file_that_holds_no_annotations(tmp_path, write_image):
    data = tmp_path / "data"
    write_yolo(data / "images", 3, write_image)
    (data / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    (data / "notes.txt").write_text("mine")
    refused = refusal(data / "notes.txt", tmp_path)
    assert f"{data / 'notes.txt'}: not recognised as annotations: expected COCO" in refused


def test_too_few_images_for_a_test_set(tmp_path, write_image, seen):
    names = images(tmp_path / "data", 3, write_image)
    write_json(tmp_path / "data" / "a.json", coco_data(names[:2]))
    refused = refusal(tmp_path / "data", tmp_path)
    assert "data: 2 images that can be used, and no test set; expected 3 or more" in refused
    write_json(tmp_path / "data" / "a.json", coco_data(names))
    assert sorted(seen(tmp_path / "data").splits.values()) == [1, 2]


def test_no_box_is_left(tmp_path, write_image):
    names = images(tmp_path / "data", 2, write_image)
    content = coco_data(names)
    for annotation in content["annotations"]:
        annotation["bbox"] = [0, 0, 0, 0]
    write_json(tmp_path / "data" / "a.json", content)
    refused = refusal(tmp_path / "data", tmp_path)
    assert refused.startswith(str(tmp_path / "data" / "a.json"))
    assert "no box to learn from; 4 entries cannot be used, the first: [empty_box]" in refused


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


@pytest.mark.parametrize("format", ["coco", "csv", "voc", "yolo"])
def test_a_look_needs_no_torch(tmp_path, write_image, format):
    data = tmp_path / "data"
    if format == "voc":
        voc(data, write_image, number=4)
    else:
        write_yolo(data / "images", 4, write_image)
        names = [f"{i}.jpg" for i in range(4)]
        (data / "images.csv").write_text(csv_text(names))
        write_json(data / "images.json", coco_data(names))
        (data / "images.yaml").write_text("train: images\nnames: [cat, dog]\n")
        data /= f"images.{'yaml' if format == 'yolo' else format.replace('coco', 'json')}"
    code = (
        "import sys\nfrom detnas_d2.data.recognition import recognise\n"
        f"found = recognise({str(data)!r}, {str(tmp_path / 'memory')!r})\n"
        "print(found.format, found.part('all').boxes, 'torch' in sys.modules)"
    )
    for _ in ("first", "from memory"):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert out.stdout.split() == [format, "8", "False"], out.stderr


def test_progress_is_for_a_terminal(tmp_path, write_image, monkeypatch, capsys):
    write_yolo(tmp_path / "data" / "images", 4, write_image)
    (tmp_path / "data" / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    monkeypatch.setattr(progress, "_SILENT", 0)
    recognise(str(tmp_path / "data"), str(tmp_path / "one"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True)
    recognise(str(tmp_path / "data"), str(tmp_path / "two"))
    shown = capsys.readouterr().err
    assert "reading labels:" in shown and "reading images:" in shown and "| 0/4" in shown
