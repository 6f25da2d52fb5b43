"""Boxes in CSV and YOLO files become COCO JSON, checked as COCO's are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from detnas_d2.data import DatasetError, register_datasets, validate_dataset

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax"


def found(name: str) -> dict[str, list[tuple[str, list[float]]]]:
    """File name -> (class, XYWH box) of its objects, as training gets them."""
    classes = MetadataCatalog.get(name).thing_classes
    return {
        Path(record["file_name"]).name: [
            (classes[a["category_id"]], a["bbox"]) for a in record["annotations"]
        ]
        for record in DatasetCatalog.get(name)
    }


def problems(name: str) -> list[tuple[str, str, str]]:
    report = validate_dataset(name, on_problem="drop", cache_dir="cache")
    return [(p.kind, p.file.rsplit("/", 1)[-1], p.entry) for p in report.problems]


@pytest.fixture
def table(tmp_path, write_image):
    """Writes a CSV file beside two images; returns its declaration."""
    for name in ("a.png", "night/b.jpg"):
        write_image(tmp_path / "photos" / name, 40, 30)

    def write(*lines: str, header: str = HEADER, encoding: str = "utf-8", **keys: object):
        text = "\n".join([header, *lines]) + "\n"
        (tmp_path / "boxes.csv").write_bytes(text.encode(encoding))
        return {
            "NAME": "birds",
            "FORMAT": "csv",
            "IMAGES": "photos",
            "ANNOTATIONS": "boxes.csv",
            **keys,
        }

    return write


ROWS = ("a.png,40,30,owl,1,2,11,12", "night/b.jpg,0,0,cat,5,5,39.5,29", "a.png,40,30,cat,0,0,9,9")


@pytest.mark.parametrize("policy", ["error", "ignore"])
def test_csv(make_cfg, table, perfect_results, policy):
    cfg = make_cfg(table(*ROWS), train=["birds"], DATASETS__INVALID=policy)
    register_datasets(cfg)
    assert MetadataCatalog.get("birds").thing_classes == ["cat", "owl"]
    assert found("birds") == {
        "a.png": [("owl", [1, 2, 10, 10]), ("cat", [0, 0, 9, 9])],
        "b.jpg": [("cat", [5, 5, 34.5, 24])],
    }
    results = perfect_results("birds", COCOEvaluator("birds", ("bbox",), False))
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert all(Path(d["file_name"]).is_file() for d in DatasetCatalog.get("birds"))


def test_csv_as_people_write_it(make_cfg, table):
    header = "class; XMIN;ymin ;xmax;ymax;filename"
    declaration = table(
        " owl;1;2;11;12;a.png", ";;;;;night/b.jpg", header=header, encoding="utf-8-sig"
    )
    declaration["CLASSES"] = ["owl", "cat"]
    register_datasets(make_cfg(declaration, train=["birds"]))
    assert MetadataCatalog.get("birds").thing_classes == ["owl", "cat"]
    assert found("birds") == {"a.png": [("owl", [1, 2, 10, 10])], "b.jpg": []}


def test_csv_problems(make_cfg, table):
    declaration = table(
        ROWS[0],
        "a.png,40,30,owl,11,2,1,12",
        "a.png,40,30,owl,1,2,80,12",
        "a.png,40,30,yak,1,2,11,12",
        "a.png,40,30,owl,x,2,11,12",
        "a.png,40,30,owl,1,2,11",
        "a.png,40,30,,1,2,11,12",
        "c.png,40,30,owl,1,2,11,12",
        "night/b.jpg,30,40,owl,1,2,11,12",
        CLASSES=["cat", "owl"],
    )
    register_datasets(make_cfg(declaration))
    assert problems("birds") == [
        ("broken_annotation", "boxes.csv", "line 6"),
        ("broken_annotation", "boxes.csv", "line 7"),
        ("broken_annotation", "boxes.csv", "line 8"),
        ("empty_box", "boxes.csv", "line 3"),
        ("box_outside", "boxes.csv", "line 4"),
        ("unknown_class", "boxes.csv", "line 5"),
        ("missing_image", "c.png", ""),
        ("size_mismatch", "boxes.csv", "line 10"),
    ]
    assert found("birds") == {"a.png": [("owl", [1, 2, 10, 10])]}
    with pytest.raises(DatasetError, match=r"boxes\.csv, line 3: the box is -10 x 10 pixels"):
        register_datasets(make_cfg(declaration, train=["birds"]))


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("image,x1,y1,x2,y2,label", ROWS, "line 1: expected the columns filename,class,xmin"),
        (f"{HEADER},class", ROWS, "line 1: expected the columns"),
        (HEADER, (), "no row below"),
        (HEADER, ('"a.png,40',), "after line 1: unexpected end"),
        ('"filename"x', ROWS, "line 1: .* expected after"),
    ],
)
def test_csv_of_another_form(make_cfg, table, header, lines, message):
    with pytest.raises(DatasetError, match=rf"boxes\.csv.*{message}"):
        register_datasets(make_cfg(table(*lines, header=header), train=["birds"]))
    with pytest.raises(DatasetError, match=r"boxes\.csv: not UTF-8"):
        declaration = table("a.png,40,30,\xe4,1,2,3,4", encoding="latin-1", NAME="other")
        register_datasets(make_cfg(declaration, train=["other"]))


@pytest.fixture
def yolo(tmp_path, write_image):
    """Writes label files of two images and data.yaml; returns a declaration."""
    root = tmp_path / "farm"
    for name in ("a.jpg", "b.png"):
        write_image(root / "train" / "images" / name, 40, 20)

    def write(labels: dict[str, str], place: str = "train/images", **data: object):
        (root / "train" / "labels").mkdir(exist_ok=True)
        for name, text in labels.items():
            (root / "train" / "labels" / name).write_text(text)
        content = {"train": place, "names": ["cat", "owl"], "nc": 2, **data}
        (root / "data.yaml").write_text(yaml.safe_dump(content))
        return {"NAME": "farm", "FORMAT": "yolo", "DATA": "farm/data.yaml", "SPLIT": "train"}

    return write


LABELS = {"a.txt": "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.3 0.2 0.3 0.6\n"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"place": "../train/images"},  # as Roboflow exports it
        {"path": ".", "names": {0: "cat", 1: "owl"}},
        {"path": "farm"},  # below $DETECTRON2_DATASETS
        {"place": "train"},
    ],
)
def test_yolo(make_cfg, yolo, perfect_results, change):
    register_datasets(make_cfg(yolo(LABELS, **change), train=["farm"]))
    assert MetadataCatalog.get("farm").thing_classes == ["cat", "owl"]
    boxes = found("farm")
    assert boxes["b.png"] == []  # no label file: no object
    (owl, cat) = boxes["a.jpg"]
    assert owl == ("owl", [15, 5, 10, 10])
    assert cat[0] == "cat" and cat[1] == pytest.approx([4, 4, 8, 8])  # around the polygon
    results = perfect_results("farm", COCOEvaluator("farm", ("bbox",), False))
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_yolo_list_of_images(make_cfg, yolo, tmp_path):
    declaration = yolo(LABELS, place="train.txt")
    (tmp_path / "farm" / "train.txt").write_text("./train/images/a.jpg\n")
    register_datasets(make_cfg(declaration, train=["farm"]))
    assert list(found("farm")) == ["a.jpg"]


def test_yolo_names_that_yaml_takes_for_values(make_cfg, yolo, tmp_path):
    declaration = yolo(LABELS)
    (tmp_path / "farm/data.yaml").write_text("train: train/images\nnames: [no, 1]\ntest:\n")
    register_datasets(make_cfg(declaration, train=["farm"]))
    assert MetadataCatalog.get("farm").thing_classes == ["no", "1"]


def test_yolo_key_points(make_cfg, yolo):
    labels = {"a.txt": "1 0.5 0.5 0.25 0.5 0.4 0.4 2 0.6 0.6 1\n"}
    register_datasets(make_cfg(yolo(labels, kpt_shape=[2, 3]), train=["farm"]))
    assert found("farm")["a.jpg"] == [("owl", [15, 5, 10, 10])]


def test_yolo_classes_in_another_order(make_cfg, yolo):
    declaration = {**yolo(LABELS), "CLASSES": ["owl", "cat"]}
    register_datasets(make_cfg(declaration, train=["farm"]))
    assert MetadataCatalog.get("farm").thing_classes == ["owl", "cat"]
    assert [label for label, _ in found("farm")["a.jpg"]] == ["owl", "cat"]


def test_yolo_problems(make_cfg, yolo):
    lines = [
        "1 0.5 0.5 0.25 0.5",
        "2 0.5 0.5 0.25 0.5",
        "0.5 0.5 0.5 0.25 0.5",
        "1 0.5 0.5 0.25 0.5 0.9",
        "1 20 10 10 10",
        "1 0.5 0.5 0 0.5",
        "1 0.9 0.5 0.9 0.5",
        "owl 0.5 0.5 0.25 0.5",
        "1 nan 0.5 0.25 0.5",
        "1",
    ]
    register_datasets(make_cfg(yolo({"a.txt": "\n".join(lines)})))
    broken = [("broken_annotation", "a.txt", f"line {n}") for n in (2, 3, 4, 5, 8, 9, 10)]
    others = [("empty_box", "a.txt", "line 6"), ("box_outside", "a.txt", "line 7")]
    assert problems("farm") == broken + others
    assert found("farm")["a.jpg"] == [("owl", [15, 5, 10, 10])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["cat", ["owl"]]}, "names: expected texts"),
        ({"names": ["cat", "cat"]}, "names: a class is there twice"),
        ({"names": ["cat"]}, "names: 1 names, but nc is 2"),
        ({"names": {0: "cat", 2: "owl"}}, "expected the numbers 0 to 1"),
        ({"names": None}, "expected a list of class names"),
        ({"place": "elsewhere"}, "'elsewhere' is not there"),
        ({"train": None}, "no images under 'train'"),
    ],
)
def test_yolo_files_of_another_form(make_cfg, yolo, change, message):
    with pytest.raises(DatasetError, match=rf"data\.yaml.*{message}"):
        register_datasets(make_cfg(yolo(LABELS, **change), train=["farm"]))


def test_yolo_without_labels(make_cfg, yolo, tmp_path):
    with pytest.raises(DatasetError, match=r"none of the 2 images.*train/labels/a\.txt"):
        register_datasets(make_cfg(yolo({}), train=["farm"]))
    (tmp_path / "farm" / "data.yaml").write_text("train: [1, 2")
    declaration = {"NAME": "f2", "FORMAT": "yolo", "DATA": "farm/data.yaml", "SPLIT": "train"}
    with pytest.raises(DatasetError, match=r"data\.yaml: while parsing"):
        register_datasets(make_cfg(declaration, train=["f2"]))


def test_what_was_converted_follows_its_files(make_cfg, yolo, tmp_path, touch):
    declaration = yolo(LABELS)
    names = ["farm@search_val"]
    register_datasets(make_cfg(declaration, train=names, DATASETS__SEARCH_SPLIT__SIZE=1))
    first = MetadataCatalog.get("farm").json_file
    assert len(json.loads(Path(first).read_text())["annotations"]) == 2
    label = tmp_path / "farm" / "train" / "labels" / "b.txt"  # absent until now
    label.write_text("0 0.5 0.5 0.5 0.5\n")
    register_datasets(make_cfg(declaration, train=["farm"]))
    assert found("farm")["b.png"] == [("cat", [10, 5, 20, 10])]
