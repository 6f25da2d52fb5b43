"""The check of datasets before training."""

from __future__ import annotations

import json
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from detnas_d2.data import DatasetError, register_datasets, validate_dataset
from detnas_d2.data.checks.image_check import read_header
from detnas_d2.data.loaders.user_images import UnreadableImage, read_bgr


def declare(make_cfg, files):
    register_datasets(make_cfg(files.declaration))


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
