"""Images that are cut off, damaged, deep or turned."""

from __future__ import annotations

import logging
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from detnas_d2.data import DatasetError, register_datasets, validate_dataset
from detnas_d2.data.checks import image_check
from detnas_d2.data.checks.image_check import ImageHeader, read_header
from detnas_d2.data.loaders.user_images import UnreadableImage, read_bgr
from tests.data.declared import declare


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm"])
def test_cut_off_images_are_found_without_decoding(make_cfg, toys, write_image, extension):
    path = toys.root / "ball" / f"9.{extension}"
    write_image(path, 90, 70)
    declare(make_cfg, toys)
    assert validate_dataset("toys", cache_dir="cache").num_images == 9
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DatasetError, match=rf"unreadable_image\] .*ball/9\.{extension}"):
        validate_dataset("toys", cache_dir="cache")


def test_an_end_in_a_preview_is_not_the_end_of_the_image(tmp_path, write_image):
    write_image(tmp_path / "small.jpg", 16, 16)
    preview = (tmp_path / "small.jpg").read_bytes()
    write_image(tmp_path / "a.jpg", 60, 40, comment=preview)
    whole = (tmp_path / "a.jpg").read_bytes()
    assert not read_header(str(tmp_path / "a.jpg")).kind
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert read_header(str(tmp_path / "a.jpg")).kind == "unreadable_image"


def test_bytes_behind_the_end_are_no_problem(tmp_path, write_image):
    for name in ("a.jpg", "a.png", "a.gif"):
        write_image(tmp_path / name, 60, 40)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\0" * 5000)
        assert not read_header(str(tmp_path / name)).kind


def test_damage_inside_an_image_is_found_by_decoding(make_cfg, toys, write_image):
    path = toys.root / "ball" / "9.png"
    write_image(path, 90, 70)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    declare(make_cfg, toys)
    assert validate_dataset("toys", cache_dir="cache").ok
    with pytest.raises(DatasetError, match=r"unreadable_image\] .*ball/9\.png"):
        validate_dataset("toys", cache_dir="cache", decode=True)


@pytest.mark.parametrize("mode, extension", [("I;16", "png"), ("I", "tif"), ("F", "tif")])
def test_images_of_more_than_8_bits_are_refused(make_cfg, coco, mode, extension):
    values = np.full((30, 40), 40000)
    image = Image.fromarray(values.astype({"I;16": "uint16", "I": "int32", "F": "float32"}[mode]))
    assert image.mode == mode
    image.save(coco.root / "pets" / f"deep.{extension}")
    coco.data["images"][0]["file_name"] = f"deep.{extension}"
    coco.save()
    with pytest.raises(DatasetError, match=rf"deep_image\] .*deep\.{extension}: .* 8 bits"):
        register_datasets(make_cfg(coco.declaration, train=["pets"]))
    with pytest.raises(UnreadableImage, match=rf"deep\.{extension}: .* 8 bits"):
        read_bgr(str(coco.root / "pets" / f"deep.{extension}"))


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="{}"/>'


def save_turned(path, chunk, orientation, size=(40, 30)):
    """Writes an image whose ``chunk`` asks to turn it."""
    pixels = Image.new("RGB", size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    info = PngInfo()
    if chunk == "exif":
        pixels.save(path, exif=exif)
    elif chunk == "webp xmp":
        pixels.save(path, xmp=XMP.format(orientation).encode())
    else:
        if chunk == "xmp":
            info.add_itxt("XML:com.adobe.xmp", XMP.format(orientation))
        elif chunk == "raw":
            data = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
            info.add_text(
                "Raw profile type exif", f"\nexif\n{len(data):8d}\n{data.hex()}\n", zip=True
            )
        pixels.save(path, pnginfo=info)
    if chunk == "late":  # behind the pixels
        data = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        late = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[:-12] + late + content[-12:])


@pytest.mark.parametrize(
    "chunk, name",
    [("exif", "a.png"), ("exif", "a.jpg"), ("exif", "a.webp")]
    + [("xmp", "a.png"), ("raw", "a.png"), ("late", "a.png"), ("webp xmp", "a.webp")],
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_what_detectron2_reads(tmp_path, chunk, name, orientation):
    path = str(tmp_path / name)
    save_turned(path, chunk, orientation)
    header = read_header(path)
    assert (header.height, header.width) == read_image(path, "BGR").shape[:2]
    assert (header.orientation, header.stored) == (orientation, (40, 30))


def test_a_turned_tiff_is_refused(tmp_path):
    save_turned(tmp_path / "a.tif", "exif", 1)
    assert not read_header(str(tmp_path / "a.tif")).kind
    save_turned(tmp_path / "a.tif", "exif", 6)  # read_image gives 40 x 30, upside down
    assert "turned twice" in read_header(str(tmp_path / "a.tif")).message


def test_an_orientation_is_named_where_the_file_states_the_stored_size(make_cfg, coco, caplog):
    save_turned(coco.root / "pets" / "1.png", "xmp", 6)
    message = r"images\[0\] \(id 1\): .* orientation of 6, by which Detectron2 turns it to 30 x 40"
    with pytest.raises(DatasetError, match=message):
        register_datasets(make_cfg(coco.declaration, train=["pets"]))
    coco.data["images"][0] |= {"width": 30, "height": 40}
    coco.save()
    with caplog.at_level(logging.WARNING, "detnas_d2"):
        register_datasets(make_cfg(coco.declaration, train=["pets"]))
    assert "1 images are turned as their EXIF orientation says, e.g. 1.png" in caplog.text


def test_exif_orientation_counts(make_cfg, voc, write_image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: Detectron2 reads 40 x 30
    write_image(voc.root / "JPEGImages" / "img_3.jpg", 30, 40, exif=exif)
    declare(make_cfg, voc)
    assert validate_dataset("zoo", cache_dir="cache").ok


@pytest.mark.parametrize("wait", [0.0, 0.001])
def test_threads_read_what_has_to_be_waited_for(monkeypatch, wait):
    threads = set()

    def read(path, decode):
        threads.add(threading.get_ident())
        if wait:
            time.sleep(wait)
        return ImageHeader(width=int(path))

    monkeypatch.setattr(image_check, "read_header", read)
    paths = [str(i) for i in range(100)]
    assert [header.width for header in image_check.read_headers(paths)] == list(range(100))
    assert (len(threads) > 1) == bool(wait)


def test_empty_and_foreign_files_are_told_apart(tmp_path):
    for content, message in ((b"", "the file is empty"), (b"text", "no image in a format")):
        (tmp_path / "a.jpg").write_bytes(content)
        header = read_header(str(tmp_path / "a.jpg"))
        assert header.kind == "unreadable_image" and header.message.startswith(message)
        with pytest.raises(UnreadableImage, match=f"a.jpg: {message}"):
            read_bgr(str(tmp_path / "a.jpg"))
    with pytest.raises(UnreadableImage, match="absent.jpg: No such file or directory$"):
        read_bgr(str(tmp_path / "absent.jpg"))
