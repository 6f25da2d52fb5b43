"""The same images and boxes in any format are the same data, and get the same recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detnas_d2.data.recognition import Recognised, recognise
from detnas_d2.recipe.choice import choose
from detnas_d2.recipe.decide import read_facts
from detnas_d2.recipe.facts import DataFacts
from detnas_d2.recipe.inputs import Data
from detnas_d2.recipe.one_form import file_of, in_one_form
from tests.data.conftest import write_image
from tests.data.layouts import boxes_of
from tests.recipe.values import CPU, GPU

CLASSES = ("cat", "dog", "owl")
SIZE = (96, 64)
NAMES = [f"a/photo-{i}.v2.{'png' if i % 3 else 'jpg'}" for i in range(7)] + [
    f"b/{i:03d}.jpg" for i in range(8)
]
Boxes = list[tuple[str, tuple[int, int, int, int]]]


def boxes(number: int) -> Boxes:
    """Class and edges of an image, from 0, the last outside; the fifth image has none."""
    found = []
    for k in range(0 if number == 4 else 1 + number % 3):
        left, top = 5 * k + number, 3 * k + number
        found.append((CLASSES[(number + k) % 3], (left, top, left + 12 + number, top + 9 + 2 * k)))
    return found


def write_voc(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        objects = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin>"
            f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in boxes(number)
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        file = (folder / "Annotations" / name).with_suffix(".xml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<annotation>{size}{objects}</annotation>")


def write_yolo(folder: Path) -> None:
    (folder / "data.yaml").write_text(f"train: images\nnames: [{', '.join(CLASSES)}]\n")
    for number, name in enumerate(NAMES):
        file = (folder / "labels" / name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{CLASSES.index(label)} {(x0 + x1) / 2 / SIZE[0]:.6f} {(y0 + y1) / 2 / SIZE[1]:.6f} "
            f"{(x1 - x0) / SIZE[0]:.6f} {(y1 - y0) / SIZE[1]:.6f}\n"
            for label, (x0, y0, x1, y1) in boxes(number)
        ]
        file.write_text("".join(lines))


def write_roboflow(folder: Path) -> None:
    rows = [(i, label, box) for i in range(len(NAMES)) for label, box in boxes(i)]
    annotations = [
        {
            "id": k,
            "image_id": i,
            "category_id": 1 + CLASSES.index(label),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": 0,
        }
        for k, (i, label, (x0, y0, x1, y1)) in enumerate(rows)
    ]
    categories = [{"id": 0, "name": "animals", "supercategory": "none"}] + [
        {"id": i, "name": n, "supercategory": "animals"} for i, n in enumerate(CLASSES, start=1)
    ]
    images = [
        {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for i, name in enumerate(NAMES)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "images" / "_annotations.coco.json").write_text(json.dumps(content))


def write_csv(folder: Path) -> None:
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for number, name in enumerate(NAMES):
        start = f"{name},{SIZE[0]},{SIZE[1]}"
        found = [f"{start},{label},{','.join(map(str, box))}" for label, box in boxes(number)]
        lines += found or [f"{start},,,,,"]
    (folder / "boxes.csv").write_text("\n".join(lines))


WRITERS: dict[str, Callable[[Path], None]] = {
    "yolo": write_yolo,
    "coco": write_roboflow,
    "csv": write_csv,
}


def recognised(folder: Path, write: Callable[[Path], None]) -> tuple[Recognised, Data]:
    for number, name in enumerate(NAMES):
        write_image(folder / "images" / name, *SIZE, seed=number)
    write(folder)
    found = recognise(str(folder), str(folder.parent / "memory"))
    return found, Data(found.declarations, found.train, found.test, found.val, found.classes)


def look(folder: Path, write: Callable[[Path], None]) -> tuple[Recognised, DataFacts]:
    found, data = recognised(folder, write)
    return found, read_facts(data, str(folder.parent / "run"))


def content(name: str) -> dict[str, list]:
    """Image without its extension -> classes and edges."""
    return {os.path.splitext(image)[0]: found for image, found in boxes_of(name).items()}


@pytest.mark.parametrize("format", WRITERS)
def test_a_voc_dataset_in_another_format(tmp_path: Path, format: str) -> None:
    voc, voc_facts = look(tmp_path / "voc", write_voc)
    found, facts = look(tmp_path / format, WRITERS[format])
    assert (voc.format, found.format, found.classes) == ("voc", format, CLASSES)
    assert list(found.images.values()) == list(voc.images.values()) == [15, 12, 3]
    assert content(found.train) == content(voc.train)
    assert content(found.test) == content(voc.test)
    assert vars(found.part("all")).keys() == vars(voc.part("all")).keys()
    for key in ("boxes", "images_without_boxes", "classes", "boxes_per_image", "image_width"):
        assert getattr(found.part("all"), key) == getattr(voc.part("all"), key)
    for machine in (CPU, GPU):
        assert choose(facts, machine, "detnas") == choose(voc_facts, machine, "detnas")
    assert vars(facts).keys() == vars(voc_facts).keys()
    for key, value in vars(voc_facts).items():
        assert vars(facts)[key] == pytest.approx(value, rel=1e-4), key


def files_of_a_run(folder: Path, write: Callable[[Path], None]) -> tuple[list[Any], DataFacts]:
    """What the files say that a run trains and tests on, and the facts about them."""
    run = str(folder.parent / f"run-{folder.name}")
    data = in_one_form(recognised(folder, write)[1], run)
    contents = []
    for declaration in data.declarations:
        assert declaration["IMAGES"] == os.path.realpath(folder / "images")
        content = json.loads(Path(declaration["ANNOTATIONS"]).read_text())
        for image in content["images"]:
            del image["source_id"]
        contents.append(content)
    return contents, read_facts(data, run)


@pytest.mark.parametrize("format", WRITERS)
def test_a_run_learns_from_the_same_files(tmp_path: Path, format: str) -> None:
    (train, test), facts = files_of_a_run(tmp_path / "voc", write_voc)
    other, other_facts = files_of_a_run(tmp_path / format, WRITERS[format])
    assert json.dumps(other) == json.dumps([train, test]) and other_facts == facts
    assert [len(part["images"]) for part in (train, test)] == [12, 3]
    everything = {image["file_name"]: image["id"] for image in train["images"]}
    number = next(i for i, name in enumerate(NAMES) if name in everything and i != 4)
    mine = [a for a in train["annotations"] if a["image_id"] == everything[NAMES[number]]]
    assert sorted((CLASSES[a["category_id"] - 1], tuple(a["bbox"])) for a in mine) == sorted(
        (label, (x0, y0, x1 - x0, y1 - y0)) for label, (x0, y0, x1, y1) in boxes(number)
    )


def test_corrected_data_keep_the_numbers_of_their_images(tmp_path: Path) -> None:
    """By which the images are drawn that score candidates."""
    before = recognised(tmp_path / "voc", write_voc)[1]
    run, other = str(tmp_path / "run"), str(tmp_path / "other")
    in_one_form(before, run)
    like = file_of(run, before.train)
    numbers = numbers_of(like)
    assert sorted(numbers.values()) == list(range(1, 13))

    def write(folder: Path) -> None:
        """YOLO, with classes in another order, a label less, an image less, and two new ones."""
        write_yolo(folder)
        yaml = f"train: images\nnames: [{', '.join(reversed(CLASSES))}]\n"
        (folder / "data.yaml").write_text(yaml)
        for file in folder.rglob("labels/*/*.txt"):
            rows = [line.split(" ", 1) for line in file.read_text().splitlines()]
            file.write_text("\n".join(f"{2 - int(label)} {box}" for label, box in rows[:2]))
        for name in ("a/0.jpg", "b/999.jpg"):
            write_image(folder / "images" / name, *SIZE, seed=99)
        gone = next(name for name in NAMES if os.path.splitext(name)[0] in numbers)
        (folder / "images" / gone).unlink()
        (folder / "labels" / gone).with_suffix(".txt").unlink()

    data = recognised(tmp_path / "yolo", write)[1]
    assert data.classes == tuple(reversed(CLASSES))
    assert in_one_form(data, other, like).classes == CLASSES
    found = numbers_of(file_of(other, data.train))
    kept = found.keys() & numbers.keys()
    assert len(kept) >= 10 and all(found[name] == numbers[name] for name in kept)
    new = [found[name] for name in found.keys() - kept]
    assert new and min(new) > max(found[name] for name in kept)
    assert len(set(found.values())) == len(found)


def numbers_of(file: str) -> dict[str, int]:
    """Image without its extension -> number, in a file of a run."""
    images = json.loads(Path(file).read_text())["images"]
    return {os.path.splitext(image["file_name"])[0]: image["id"] for image in images}
