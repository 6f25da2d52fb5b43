"""Unions of datasets, and search splits of them."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator

from detnas_d2.data import DatasetError, register_datasets
from detnas_d2.data.datasets.cuts import choose
from detnas_d2.data.datasets.splits import overlap


def second_coco(coco, names=("owl", "cat", "dog")):
    """Images 1 to 8 again, as other files, and the categories in another order."""
    shutil.copytree(coco.root / "pets", coco.root / "farm")
    data = json.loads(json.dumps(coco.data))
    old = {c["id"]: c["name"] for c in data["categories"]}
    data["categories"] = [{"id": 10 + i, "name": name} for i, name in enumerate(names)]
    ids = {name: 10 + i for i, name in enumerate(names)}
    for item in data["annotations"]:
        item["category_id"] = ids.get(old[item["category_id"]], 10)
    (coco.root / "farm.json").write_text(json.dumps(data))
    return {"NAME": "farm", "FORMAT": "coco", "IMAGES": "farm", "ANNOTATIONS": "farm.json"}


def second_voc(voc, ids, root="zoo12", **changes):
    """A VOC folder with the first images of ``voc`` under the given ids."""
    base = voc.root.parent / root
    for old, new in zip(voc.ids, ids, strict=False):
        for folder, end in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
            (base / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(voc.root / folder / f"{old}{end}", base / folder / f"{new}{end}")
    (base / "ImageSets/Main").mkdir(parents=True)
    (base / "ImageSets/Main/train.txt").write_text("".join(f"{i}\n" for i in ids))
    return {**voc.declaration, "NAME": root, "ROOT": root, **changes}


def halves(name):
    return [
        [d["image_id"] for d in DatasetCatalog.get(f"{name}@{half}")]
        for half in ("search_train", "search_val")
    ]


def test_one_choice_from_the_images_of_both(make_cfg, voc, perfect_results):
    ids = [f"2008_{i}" for i in range(6)]
    name = "zoo+zoo12"
    declarations = voc.declaration | {"YEAR": 2007}, second_voc(voc, ids)
    cfg = make_cfg(*declarations, train=[f"{name}@search_train"], test=[f"{name}@search_val"])
    cfg.DATASETS.SEARCH_SPLIT.SIZE = 5
    register_datasets(cfg)
    train, val = halves(name)
    assert set(val) == choose([*voc.ids, *ids], 5, 0) and len(val) == 5
    assert sorted(train + val) == sorted([*voc.ids, *ids])
    assert set(val) & set(voc.ids) and set(val) & set(ids)  # 3 and 2 of them, whatever comes first
    meta = MetadataCatalog.get(f"{name}@search_val")
    assert meta.year == 2007 and meta.thing_classes == list(voc.declaration["CLASSES"])
    results = perfect_results(meta.name, PascalVOCDetectionEvaluator(meta.name))
    assert results["bbox"]["AP"] == pytest.approx(100)
    register_datasets(cfg)
    assert halves(name) == [train, val]


def test_voc_images_of_one_id_are_two(make_cfg, voc):
    declarations = voc.declaration, second_voc(voc, voc.ids[:3])
    register_datasets(make_cfg(*declarations, train=["zoo+zoo12@search_train"]))
    train, val = halves("zoo+zoo12")
    assert len(set(train + val)) == len(train + val) == 11
    files = [d["file_name"] for d in DatasetCatalog.get("zoo+zoo12")]
    assert len({os.path.realpath(path) for path in files}) == 11


def test_coco_classes_are_matched_by_name(make_cfg, coco, perfect_results):
    name = "pets+farm"
    register_datasets(make_cfg(coco.declaration, second_coco(coco), train=[f"{name}@search_val"]))
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["cat", "dog", "owl"]
    labels = {}
    for record in DatasetCatalog.get(name):
        assert os.path.isfile(record["file_name"])
        found = [a["category_id"] for a in record["annotations"]]
        labels.setdefault(os.path.basename(record["file_name"]), []).append(found)
    assert len(labels) == 8 and all(one == other for one, other in labels.values())
    train, val = halves(name)
    assert sorted(train + val) == list(range(1, 17)) and len(val) == 3
    evaluator = COCOEvaluator(f"{name}@search_val", ("bbox",), False)
    assert perfect_results(f"{name}@search_val", evaluator)["bbox"]["AP"] == pytest.approx(100)


def test_folders(make_cfg, toys):
    shutil.copytree(toys.root, toys.root.parent / "more")
    more = {**toys.declaration, "NAME": "more", "ROOT": "more", "CLASSES": ["kite", "ball"]}
    register_datasets(make_cfg(toys.declaration, more, train=["toys+more@search_train"]))
    train, val = halves("toys+more")
    assert len(set(train + val)) == 16
    for record in DatasetCatalog.get("toys+more"):
        assert (
            os.path.basename(os.path.dirname(record["file_name"]))
            == (["ball", "kite"][record["label"]])
        )
        assert os.path.isfile(record["file_name"])


def test_what_cannot_be_joined_is_refused(make_cfg, coco, voc):
    def refused(*declarations, name):
        register_datasets(make_cfg(*declarations, train=[f"{name}@search_train"]))

    other = second_coco(coco, names=("owl", "cat", "cow"))
    with pytest.raises(DatasetError, match="'pets' are .*'dog'.*'farm' .*'cow'.* same names"):
        refused(coco.declaration, other, name="pets+farm")
    with pytest.raises(DatasetError, match=r"different formats: .*'coco'.*'voc'"):
        refused(coco.declaration, voc.declaration, name="pets+zoo")
    with pytest.raises(DatasetError, match="names a dataset twice"):
        refused(coco.declaration, name="pets+pets")
    with pytest.raises(DatasetError, match="'nowhere' is neither in DATASETS.REGISTER"):
        refused(coco.declaration, name="pets+nowhere")
    with pytest.raises(DatasetError, match=r"'\+' is kept for unions"):
        register_datasets(make_cfg({**coco.declaration, "NAME": "a+b"}))


def test_an_image_of_both_is_a_leak(make_cfg, voc):
    voc.save_split(voc.ids[:2], "val")
    again = {**voc.declaration, "NAME": "again", "SPLIT": "val"}
    with pytest.raises(DatasetError, match=r"img_0\.jpg belongs to 'zoo' and to 'again'"):
        register_datasets(make_cfg(voc.declaration, again, train=["zoo+again@search_train"]))


def test_overlap_of_unions():
    assert overlap("a+b@search_val", "a") and overlap("b", "a+b@search_train")
    assert overlap("a+b@search_val", "a@search_train")  # two choices, which may meet
    assert overlap("a+b@search_val", "b+c") and overlap("a+b@search_val", "a+b")
    assert not overlap("a+b@search_val", "a+b@search_train")
    assert not overlap("a+b@search_val", "c@search_train")
