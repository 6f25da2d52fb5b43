"""Images of any mode, orientation and name: read right with their boxes, or named in one line."""

from __future__ import annotations

import os

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from detnas_d2.data.checks.image_check import read_header
from detnas_d2.data.recognition import recognise
from tests.data.layouts import (
    BOXES,
    SIZE,
    boxes_of,
    coco_data,
    csv_text,
    images,
    write_json,
    write_xml,
    write_yolo,
    yolo_lines,
)


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


RED, GREY = (200, 30, 60), (90, 90, 90)


def save_as(mode, path):
    """Writes two halves, RED and GREY; returns what a person sees of them (RGB)."""
    pixels = np.full((30, 40, 3), RED, np.uint8)
    pixels[:, 20:] = GREY
    image = Image.fromarray(pixels)
    if mode == "P":
        image.quantize(16).save(path)
    elif mode == "P with a transparent colour":
        image.quantize(16).save(path, transparency=0)
    elif mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(path)
    elif mode == "16 bits a channel":
        import cv2

        deep = pixels[..., ::-1].astype(np.uint16) * 256 + 77
        assert cv2.imwrite(str(path), deep)
    else:
        image.convert(mode).save(path, **({"quality": 98} if path.suffix == ".jpg" else {}))
    if mode in ("L", "LA"):
        luma = [round(np.dot(c, (0.299, 0.587, 0.114))) for c in (RED, GREY)]
        return [(v,) * 3 for v in luma]
    return [RED, GREY]


@pytest.mark.parametrize(
    ("mode", "extension"),
    [
        *[(mode, ".png") for mode in ("RGB", "L", "LA", "RGBA", "P", "16 bits a channel")],
        ("P with a transparent colour", ".png"),
        ("CMYK", ".jpg"),
        ("L", ".jpg"),
        ("CMYK", ".tif"),
        ("16 bits a channel", ".tif"),
    ],
)
def test_modes_that_are_read_right(tmp_path, mode, extension):
    path = tmp_path / f"a{extension}"
    expected = save_as(mode, path)
    header = read_header(str(path), decode=True)
    assert not header.kind and (header.width, header.height) == (40, 30)
    read = read_image(str(path), "BGR")[..., ::-1].astype(int)
    for colour, x in zip(expected, (8, 32), strict=True):
        assert np.abs(read[15, x] - colour).max() <= (4 if extension == ".jpg" else 0)


PORTRAIT = 6  # EXIF: the camera was held upright, the pixels lie


@pytest.mark.parametrize("kind", ["coco", "voc", "csv"])
def test_a_turned_photo(tmp_path, write_image, seen, kind):
    """Labelled as its pixels lie it is named, labelled as a person sees it it is read."""
    data = tmp_path / "data"
    names = images(data / "images", 5, write_image)
    exif = Image.Exif()
    exif[0x0112] = PORTRAIT
    write_image(data / "images" / "2.jpg", *SIZE, exif=exif)

    def label(size):
        if kind == "coco":
            content = coco_data(names)
            content["images"][2] |= {"width": size[0], "height": size[1]}
            write_json(data / "a.json", content)
        elif kind == "csv":
            lines = csv_text(names).replace("2.jpg,40,30", f"2.jpg,{size[0]},{size[1]}")
            (data / "a.csv").write_text(lines)
        else:
            write_xml(data / "images", names)
            file = data / "images" / "2.xml"
            text = file.read_text().replace("<width>40<", f"<width>{size[0]}<")
            file.write_text(text.replace("<height>30<", f"<height>{size[1]}<"))
        return recognise(str(data), str(tmp_path / "memory")).part("all")

    part = label(SIZE)
    assert part.dropped == {"size_mismatch": 1} and part.images == 4
    with open(part.listing) as file:
        (line,) = file.read().splitlines()
    assert "EXIF orientation of 6, by which Detectron2 turns it to 30 x 40" in line
    part = label(SIZE[::-1])
    assert not part.dropped and part.images == 5
    assert any("1 images are turned as their EXIF orientation says" in note for note in part.notes)
    assert sorted(part.image_width.values())[0] == 32  # the quantile between 30 and 40
    seen(data)


def test_shares_of_a_turned_photo(tmp_path, write_image, seen):
    """YOLO's tools see the turned image."""
    data = tmp_path / "data"
    write_yolo(data / "images", 5, write_image)
    exif = Image.Exif()
    exif[0x0112] = PORTRAIT
    write_image(data / "images" / "2.jpg", *SIZE, exif=exif)
    (data / "classes.txt").write_text("cat\ndog\n")
    found = seen(data)
    boxes = boxes_of(found.train) | boxes_of(found.test)
    turned = [(n, (a * 3 / 4, b * 4 / 3, c * 3 / 4, d * 4 / 3)) for n, (a, b, c, d) in BOXES]
    for (name, box), (label, edges) in zip(boxes["2.jpg"], turned, strict=True):
        assert name == label and box == pytest.approx(edges, abs=1e-3)


def test_deep_and_foreign_images_are_named(tmp_path, write_image, seen):
    data = tmp_path / "data"
    names = images(data / "images", 6, write_image, name="{}.png")
    Image.fromarray(np.full((30, 40), 40000, np.uint16)).save(data / "images" / "3.png")
    (data / "images" / "x.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    write_json(data / "a.json", coco_data(names[:5]))
    found = seen(data)
    part = found.part("all")
    assert part.dropped == {"deep_image": 1}
    assert part.images == 4
    assert "1 of 6 images below the folder are in no part, e.g. images/5.png" in found.notes
    assert any("passed over: 1 .heic; convert them" in note for note in found.notes)
