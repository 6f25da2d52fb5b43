"""Search splits."""

from __future__ import annotations

import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator

from detnas_d2.config.data_config import add_data_config
from detnas_d2.data import DatasetError, register_datasets
from detnas_d2.data.datasets.cuts import choose
from detnas_d2.data.datasets.splits import overlap


def halves(name):
    return [
        [d["image_id"] for d in DatasetCatalog.get(f"{name}@{half}")]
        for half in ("search_train", "search_val")
    ]


def register(make_cfg, files, **keys):
    name = files.declaration["NAME"]
    names = [f"{name}@search_train"]
    register_datasets(make_cfg(files.declaration, train=names, **keys))
    return halves(name)


def test_choice_is_the_same_everywhere():
    # Fixed by SHA-256: a change of these numbers would silently change every search.
    keys = [str(i) for i in range(20)]
    assert sorted(choose(keys, 5, 0), key=int) == ["4", "7", "9", "15", "18"]
    assert choose(reversed(keys), 5, 0) == choose(keys, 5, 0)
    assert choose(keys, 5, 0) < choose(keys, 8, 0)
    assert choose(keys, 5, 1) != choose(keys, 5, 0)


def test_overlap_by_name():
    assert overlap("a", "a") and overlap("a@search_val", "a") and overlap("a", "a@search_train")
    assert overlap("a@search_val", "a@search_val")
    assert not overlap("a@search_val", "a@search_train") and not overlap("a", "b@search_val")


@pytest.mark.parametrize("format", ["coco", "voc", "toys"])
def test_halves_are_disjoint_and_complete(make_cfg, request, format):
    files = request.getfixturevalue(format)
    train, val = register(make_cfg, files)
    assert (len(train), len(val)) == (5, 3)
    whole = [d["image_id"] for d in DatasetCatalog.get(files.declaration["NAME"])]
    assert sorted(train + val) == sorted(whole)
    other = register(make_cfg, files, DATASETS__SEARCH_SPLIT__SEED=1)
    assert other[1] != val


def test_settings(make_cfg, coco):
    _, val = register(make_cfg, coco, DATASETS__SEARCH_SPLIT__FRACTION=0.25)
    assert len(val) == 2
    with pytest.raises(DatasetError, match="asks for 8 images of 'pets', which has 8"):
        register(make_cfg, coco, DATASETS__SEARCH_SPLIT__SIZE=8)
    with pytest.raises(DatasetError, match="SIZE must be positive, got 0"):
        register(make_cfg, coco, DATASETS__SEARCH_SPLIT__SIZE=0)
    with pytest.raises(DatasetError, match=r"FRACTION must be in \[0, 1\), got 1.5"):
        register(make_cfg, coco, DATASETS__SEARCH_SPLIT__FRACTION=1.5)


def test_coco_files(make_cfg, coco, perfect_results):
    for annotation in coco.data["annotations"]:
        annotation["segmentation"] = [[2, 3, 10, 3, 10, 12]]
    coco.save()
    train, val = register(make_cfg, coco)
    assert 8 in train + val  # images without objects stay
    meta = MetadataCatalog.get("pets@search_val")
    assert meta.thing_classes == ["cat", "dog", "owl"]
    with open(meta.json_file) as file:
        data = json.load(file)
    assert data["info"]["source"] == "pets"
    assert (data["info"]["seed"], data["info"]["num_images"]) == (0, 3)
    assert len(data["info"]["source_sha256"]) == 64
    assert data["categories"] == coco.data["categories"]
    ids = set(val)
    assert data["annotations"] == [a for a in coco.data["annotations"] if a["image_id"] in ids]
    evaluator = COCOEvaluator("pets@search_val", ("bbox",), False)
    assert perfect_results("pets@search_val", evaluator)["bbox"]["AP"] == pytest.approx(100)


def test_voc_files(make_cfg, voc, perfect_results):
    _, val = register(make_cfg, voc)
    for half in ("search_train", "search_val"):
        name = f"zoo@{half}"
        meta = MetadataCatalog.get(name)
        assert (meta.split, meta.year, meta.evaluator_type) == (half, 2012, "pascal_voc")
        results = perfect_results(name, PascalVOCDetectionEvaluator(name))
        assert results["bbox"]["AP"] == pytest.approx(100)
    beside = os.path.join(os.path.dirname(meta.dirname), "search_val.json")
    with open(beside) as file:
        data = json.load(file)
    assert [image["id"] for image in data["images"]] == val
    # xmin 1, ymin 2, xmax 20 + i, ymax 25 counts pixels from 1.
    number = int(val[0][-1])
    assert data["annotations"][0]["bbox"] == [0, 1, 20 + number, 24]
    assert data["annotations"][0]["category_id"] == 1


def test_voc_warns_of_absent_classes(make_cfg, voc, caplog):
    for image_id in voc.ids:
        voc.add(image_id, voc.xml([("cat", (2, 2, 20, 20))]))
    register(make_cfg, voc)
    assert "no object of ['dog', 'owl']" in caplog.text


def test_folder_files(make_cfg, toys):
    train, val = register(make_cfg, toys)
    with open(MetadataCatalog.get("toys@search_val").listing) as file:
        data = json.load(file)
    assert data["classes"] == ["ball", "kite"]
    assert [path for path, _ in data["files"]] == val
    record = DatasetCatalog.get("toys@search_val")[0]
    assert record["label"] == data["classes"].index(record["image_id"].split("/")[0])


def test_dropped_entries_are_in_neither_half(make_cfg, coco):
    (coco.root / "pets" / "4.png").unlink()
    train, val = register(make_cfg, coco, DATASETS__INVALID="drop")
    assert sorted(train + val) == [1, 2, 3, 5, 6, 7, 8]


def written(meta):
    folder = os.path.dirname(meta.json_file)
    return {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}


def test_files_are_reused_as_long_as_they_match(make_cfg, coco):
    first = register(make_cfg, coco)
    meta = MetadataCatalog.get("pets@search_val")
    times = written(meta)
    assert register(make_cfg, coco) == first
    assert written(meta) == times
    os.unlink(meta.json_file)
    assert register(make_cfg, coco) == first
    with open(meta.json_file, "a") as file:
        file.write(" ")
    assert register(make_cfg, coco) == first
    with open(meta.json_file) as file:
        assert not file.read().endswith(" ")


def test_changed_annotations_make_new_files(make_cfg, coco):
    first = register(make_cfg, coco)
    image = first[1][0]
    before = MetadataCatalog.get("pets@search_val").json_file
    coco.add(image, 1, [1, 1, 9, 9])
    coco.save()
    assert register(make_cfg, coco) == first  # the choice depends on image ids alone
    meta = MetadataCatalog.get("pets@search_val")
    assert meta.json_file != before
    with open(meta.json_file) as file:
        assert [1, 1, 9, 9] in [a["bbox"] for a in json.load(file)["annotations"]]


def test_names_below_search_count(make_cfg, coco):
    from detectron2.config import CfgNode

    cfg = make_cfg(coco.declaration)
    cfg.SEARCH = CfgNode({"DATASET": "pets@search_val", "SPACE": "any", "SIZES": [1, 2]})
    register_datasets(cfg)
    assert len(DatasetCatalog.get("pets@search_val")) == 3


def test_defaults_are_the_papers():
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_data_config(cfg)
    assert cfg.DATASETS.SEARCH_SPLIT.SIZE == 5000
