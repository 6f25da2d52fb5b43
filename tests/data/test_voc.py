"""VOC folders as people have them: lists, encodings, layouts, and ids that lead elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator

from detnas_d2.data import DatasetError, register_datasets, validate_dataset
from detnas_d2.data.datasets.sources import VocSource
from detnas_d2.data.datasets.voc import load_voc
from detnas_d2.data.datasets.voc_view import write_view


def use(make_cfg, files, perfect_results, **changes):
    """The dicts that training gets, after the evaluator has found a perfect detector perfect."""
    register_datasets(make_cfg({**files.declaration, **changes}, train=["zoo"]))
    results = perfect_results("zoo", PascalVOCDetectionEvaluator("zoo"))
    assert results["bbox"]["AP"] == pytest.approx(100)
    return DatasetCatalog.get("zoo")


def write_list(files, data: bytes) -> None:
    (files.root / "ImageSets" / "Main" / "train.txt").write_bytes(data)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimg_0\nimg_1\n",
        "img_0\r\nimg_1\r\n",
        "img_0\rimg_1",
        "\nimg_0\n\n  img_1 \t\n",
        "img_0 -1\nimg_1  1\n",
        "img_0.jpg\nimg_1.JPG\n",
        "img_0.png 1\nimg_1.xml 0\n",
    ],
)
def test_lists_of_images(make_cfg, voc, perfect_results, text):
    write_list(voc, text.encode())
    assert [d["image_id"] for d in use(make_cfg, voc, perfect_results)] == ["img_0", "img_1"]


def test_an_id_that_looks_like_a_column_or_an_extension(make_cfg, voc, perfect_results):
    for image_id in ("cat 1", "cat.jpg"):
        voc.add(image_id, voc.xml([(name, (2, 2, 20, 20)) for name in ("cat", "dog", "owl")]))
    write_list(voc, b"cat 1\ncat.jpg\n")
    assert [d["image_id"] for d in use(make_cfg, voc, perfect_results)] == ["cat_1", "cat.jpg"]


@pytest.mark.parametrize("policy", ["error", "drop", "ignore"])
def test_a_list_that_is_no_text(make_cfg, voc, policy):
    write_list(voc, b"img_0\nimg_\xff\n")
    cfg = make_cfg(voc.declaration, train=["zoo"], DATASETS__INVALID=policy)
    with pytest.raises(DatasetError, match=r"train\.txt, line 2: not UTF-8"):
        register_datasets(cfg)
        DatasetCatalog.get("zoo")


@pytest.mark.parametrize("extension", [".JPG", ".jpeg", ".png", ".PNG", ".bmp", ".webp"])
def test_images_in_folders_with_any_extension(make_cfg, voc, perfect_results, extension):
    boxes = [(name, (2, 2, 20, 20)) for name in ("cat", "dog", "owl")]
    (voc.root / "Annotations" / "night").mkdir()
    for image_id in ("night/a", "night/b"):
        voc.add(image_id, voc.xml(boxes), extension=extension)
    voc.save_split(["night/a", "night/b", "img_0"])
    dicts = use(make_cfg, voc, perfect_results)
    assert [d["image_id"] for d in dicts] == ["night/a", "night/b", "img_0"]
    assert all(os.path.isfile(d["file_name"]) for d in dicts)


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if "cache" not in path.relative_to(folder).parts[:1]
    }


HOSTILE = {
    "../victim/pic": "leads out of the folder",
    "../../../../../../victim/pic": "leads out of the folder",
    "night/../../victim/pic": "leads out of the folder",
    "{tmp}/victim/pic": "is an absolute path",
    "C:\\\\victim\\\\pic": "is an absolute path",
    "img_0\0": "has a control character",
    "night//a": "has an empty part",
    "./img_0": "has an empty part or '.'",
    "night /a": "has blanks at the end of a part",
}


@pytest.mark.parametrize("image_id", HOSTILE)
def test_ids_that_lead_elsewhere(make_cfg, voc, tmp_path, image_id):
    message = HOSTILE[image_id]
    image_id = image_id.replace("{tmp}", str(tmp_path))
    victim = tmp_path / "victim"
    victim.mkdir()
    shutil.copy(voc.root / "JPEGImages" / "img_0.jpg", victim / "pic.jpg")
    (victim / "pic.xml").write_text(voc.xml([("cat", (2, 2, 20, 20))], fields=""))
    voc.save_split([*voc.ids[:4], image_id])
    before = everything_below(tmp_path)

    def cfg(policy, names):
        return make_cfg(voc.declaration, train=names, DATASETS__INVALID=policy)

    with pytest.raises(DatasetError) as caught:
        register_datasets(cfg("error", ["zoo"]))
    assert "[broken_image_entry]" in str(caught.value) and message in str(caught.value)
    assert "train.txt, line 5" in str(caught.value)
    with pytest.raises(DatasetError, match=r"train\.txt, line 5"):
        register_datasets(cfg("ignore", ["zoo@search_train"]))
    register_datasets(cfg("drop", ["zoo@search_train"]))
    assert [d["image_id"] for d in DatasetCatalog.get("zoo")] == voc.ids[:4]
    assert everything_below(tmp_path) == before


def test_a_view_keeps_to_its_folder(tmp_path):
    for ids, split in ((["../out"], "train"), ([], "../../out"), ([], "/tmp/out")):
        entries = [(image_id, "a.jpg", "<annotation/>") for image_id in ids]
        with pytest.raises(DatasetError, match="broken_image_entry"):
            write_view(str(tmp_path / "view"), {split: ids}, entries)
    assert not list(tmp_path.rglob("*out*"))


@pytest.mark.parametrize("split", ["../../train", "/etc/hosts", "a\0b", "../lists/all.txt"])
def test_splits_that_lead_elsewhere(make_cfg, voc, split):
    with pytest.raises(DatasetError, match="SPLIT must be the name of a split file"):
        register_datasets(make_cfg({**voc.declaration, "SPLIT": split}))


@pytest.mark.parametrize(
    "encoding", ["ISO-8859-1", "windows-1252", "utf-16", "utf-8", "utf-8-sig", "utf-16-be", None]
)
def test_encodings(make_cfg, voc, perfect_results, encoding):
    text = voc.xml([(name, (2, 2, 20, 20)) for name in ("cat", "dog", "owl")])
    text = text.replace("<annotation>", "<annotation><folder>Bäume</folder>")
    if encoding:
        name = {"utf-8-sig": "utf-8", "utf-16-be": "utf-16"}.get(encoding, encoding)
        text = f'<?xml version="1.0" encoding="{name}"?>{text}'
    (voc.root / "Annotations" / "img_3.xml").write_bytes(text.encode(encoding or "utf-8"))
    assert len(use(make_cfg, voc, perfect_results)) == 8


@pytest.mark.parametrize("encoding", ["gb2312", "ISO-8859-1", "us-ascii"])
def test_ascii_that_declares_another_encoding(make_cfg, voc, perfect_results, encoding):
    path = voc.root / "Annotations" / "img_3.xml"
    path.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{path.read_text()}')
    assert len(use(make_cfg, voc, perfect_results)) == 8


def test_a_class_name_that_is_not_ascii(make_cfg, voc, perfect_results):
    for i, image_id in enumerate(voc.ids):
        text = voc.xml([(name, (2, 2, 20, 20 + i)) for name in ("猫", "dog", "owl")])
        declared = f'<?xml version="1.0" encoding="gb2312"?>{text}'
        (voc.root / "Annotations" / f"{image_id}.xml").write_bytes(declared.encode("gb2312"))
    dicts = use(make_cfg, voc, perfect_results, CLASSES=["dog", "猫", "owl"])
    assert [a["category_id"] for a in dicts[0]["annotations"]] == [1, 0, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "encoding klingon"),
        (b'<?xml version="1.0" encoding="utf-16"?><annotation/>', "in another"),
        (b"<annotation>B\xe4ume</annotation>", "not readable in the encoding utf-8"),
        (b"<annotation><size>", "no element|unclosed"),
        (b"", "no element"),
        (b"<html></html>", "outermost element is <html>"),
        (b'<?xml version="1.0" encoding="zip"?><annotation/>', "encoding zip"),
    ],
)
def test_xml_that_cannot_be_read(make_cfg, voc, data, message):
    (voc.root / "Annotations" / "img_3.xml").write_bytes(data)
    expected = rf"\[broken_annotation_file\] .*img_3\.xml: .*({message})"
    with pytest.raises(DatasetError, match=expected):
        register_datasets(make_cfg(voc.declaration, train=["zoo"]))
    report = validate_dataset("zoo", cache_dir="cache", on_problem="drop")
    assert [p.kind for p in report.problems] == ["broken_annotation_file"]
    assert report.num_images == 7


def test_namespaces(make_cfg, voc, perfect_results):
    for image_id in voc.ids[:4]:
        path = voc.root / "Annotations" / f"{image_id}.xml"
        text = path.read_text().replace("<annotation>", '<annotation xmlns="http://x.y/z">')
        path.write_text(text)
    assert [len(d["annotations"]) for d in use(make_cfg, voc, perfect_results)] == [3] * 8


def test_a_deep_file_is_written_anew(make_cfg, voc, perfect_results):
    text = voc.xml([(name, (2, 2, 20, 20)) for name in ("cat", "dog", "owl")], fields="")
    deep = "<part>" * 5000 + "</part>" * 5000
    path = voc.root / "Annotations" / "img_3.xml"
    path.write_text(text.replace("</annotation>", f"{deep}</annotation>"))
    assert len(use(make_cfg, voc, perfect_results)) == 8


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, 1) for text in ("1", " 1 ", "True", "true", "yes", "Y", "1.0")],
        *[(text, 0) for text in ("0", "0 ", "False", "no", "0.0", "", "Unspecified")],
    ],
)
def test_flags(make_cfg, voc, text, value):
    fields = f"<pose>Left</pose><truncated>{text}</truncated><difficult>{text}</difficult>"
    voc.add("img_0", voc.xml([("cat", (2, 2, 20, 20))], fields=fields))
    register_datasets(make_cfg(voc.declaration, train=["zoo"]))
    meta = MetadataCatalog.get("zoo")
    written = Path(meta.dirname, "Annotations", "img_0.xml").read_text()
    if text.strip() in "01" and text:  # int() reads it: the file stays
        assert f"<difficult>{text}</difficult>" in written
    else:
        assert f"<truncated>{value}</truncated><difficult>{value}</difficult>" in written


@pytest.mark.parametrize("text", ["maybe", "2", "-1", "0.5", "1e9", "nan"])
def test_flags_that_say_nothing(make_cfg, voc, text):
    fields = f"<pose>Left</pose><truncated>{text}</truncated><difficult>{text}</difficult>"
    voc.add("img_0", voc.xml([("cat", (2, 2, 20, 20))], fields=fields))
    with pytest.raises(DatasetError, match=r"img_0\.xml, object 1: difficult must be 0 or 1"):
        register_datasets(make_cfg(voc.declaration, train=["zoo"]))


def test_other_folders(make_cfg, voc, perfect_results):
    for old, new in (("JPEGImages", "photos"), ("Annotations", "boxes/xml"), ("ImageSets", "x")):
        (voc.root / new).parent.mkdir(exist_ok=True)
        shutil.move(voc.root / old, voc.root / new)
    (voc.root / "lists").mkdir()
    (voc.root / "lists" / "first.txt").write_text("img_2\nimg_0\n")
    keys = {"IMAGES": "photos", "ANNOTATIONS": "boxes/xml", "SPLIT": "lists/first.txt"}
    dicts = use(make_cfg, voc, perfect_results, **keys)
    assert [d["image_id"] for d in dicts] == ["img_2", "img_0"]
    assert MetadataCatalog.get("zoo").split == "first"


def flatten(voc) -> dict[str, str]:
    """Brings images and XML files into one folder without lists; returns the keys for it."""
    for folder in ("JPEGImages", "Annotations"):
        for path in (voc.root / folder).iterdir():
            shutil.move(path, voc.root / path.name)
        (voc.root / folder).rmdir()
    shutil.rmtree(voc.root / "ImageSets")
    del voc.declaration["SPLIT"]
    return {"IMAGES": ".", "ANNOTATIONS": "."}


@pytest.mark.parametrize("policy", ["error", "ignore"])
def test_xml_beside_images(make_cfg, voc, perfect_results, monkeypatch, policy):
    monkeypatch.setattr(voc, "declaration", dict(voc.declaration))
    keys = flatten(voc)
    cfg = make_cfg({**voc.declaration, **keys}, train=["zoo"], DATASETS__INVALID=policy)
    register_datasets(cfg)
    assert [d["image_id"] for d in DatasetCatalog.get("zoo")] == voc.ids
    results = perfect_results("zoo", PascalVOCDetectionEvaluator("zoo"))
    assert results["bbox"]["AP"] == pytest.approx(100)
    (voc.root / "new.xml").write_text(voc.xml([("cat", (2, 2, 9, 9))]))
    shutil.copy(voc.root / "img_0.jpg", voc.root / "new.jpg")
    register_datasets(cfg)
    assert len(DatasetCatalog.get("zoo")) == 9  # the folder is the list


def test_a_split_is_not_forgotten(make_cfg, voc):
    declaration = {k: v for k, v in voc.declaration.items() if k != "SPLIT"}
    with pytest.raises(DatasetError, match=r"set SPLIT to one of \['train'\]"):
        register_datasets(make_cfg(declaration, train=["zoo"]))


def test_no_annotation_at_all(make_cfg, voc):
    (voc.root / "other").mkdir()
    declaration = {**voc.declaration, "ANNOTATIONS": "other"}
    with pytest.raises(DatasetError, match="8 problem"):
        register_datasets(make_cfg(declaration, train=["zoo"]))


def test_loading_names_a_broken_file(voc):
    (voc.root / "Annotations" / "img_3.xml").write_text("<annotation>")
    with pytest.raises(DatasetError, match=r"img_3\.xml"):
        load_voc(VocSource(str(voc.root), "train", ("cat", "dog", "owl")))
