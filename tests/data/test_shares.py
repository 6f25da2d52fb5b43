"""SPLITS: datasets made of shares of another one's images."""

from __future__ import annotations

import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator

from detnas_d2.data import DatasetError, register_datasets
from detnas_d2.data.checks.duplicates import identical_images
from detnas_d2.data.datasets.cuts import Shares
from detnas_d2.data.datasets.splits import overlap

SPLITS = {"SPLITS": {"mine/train": 0.5, "mine_val": 0.25, "mine_test": 0.25}}


def ids(name: str) -> set[object]:
    return {d["image_id"] for d in DatasetCatalog.get(name)}


def test_a_key_stays_where_it_is():
    # Fixed by SHA-256, as the search splits are.
    shares = Shares((("a", 0.75), ("b", 0.25)))
    keys = [str(i) for i in range(20)]
    parts = shares.cut("x", keys)
    assert sorted(parts["b"], key=int) == ["1", "5", "11", "13", "16"]
    assert parts["a"] | parts["b"] == set(keys) and not parts["a"] & parts["b"]
    assert shares.cut("x", keys[::-1]) == parts
    assert Shares(shares.parts, seed=1).cut("x", keys) != parts
    files = shares.cut("x", [f"{i}.{('jpg', 'PNG')[i % 2]}" for i in range(20)])
    assert sorted(files["b"]) == ["1.PNG", "11.PNG", "13.PNG", "16.jpg", "5.PNG"]


@pytest.mark.parametrize("format", ["coco", "voc", "toys"])
def test_parts_are_disjoint_and_complete(make_cfg, request, format):
    files = request.getfixturevalue(format)
    whole = files.declaration["NAME"]
    declaration = {**files.declaration, **SPLITS}
    cfg = make_cfg(declaration, train=["mine/train@search_train"], test=["mine_test"])
    cfg.DATASETS.SEARCH_SPLIT.SIZE = 1
    register_datasets(cfg)
    parts = [ids(name) for name in SPLITS["SPLITS"]]
    assert [len(part) for part in parts] == [4, 2, 2]
    assert set.union(*parts) == ids(whole)
    assert ids("mine/train@search_train") | ids("mine/train@search_val") == parts[0]
    register_datasets(cfg)
    assert [ids(name) for name in SPLITS["SPLITS"]] == parts
    other = {**declaration, "SPLIT_SEED": 3}
    register_datasets(make_cfg(other, train=["mine_val"]))
    assert ids("mine_val") != parts[1]


def test_what_parts_overlap(make_cfg, coco):
    register_datasets(make_cfg({**coco.declaration, **SPLITS}, train=["mine_val"]))
    assert overlap("pets", "mine_val") and overlap("mine_test", "pets@search_val")
    assert overlap("mine/train@search_val", "pets")
    assert not overlap("mine/train", "mine_test")
    assert not overlap("mine_val", "mine_test@search_val")


def test_equal_images_in_two_parts_are_found(make_cfg, coco):
    register_datasets(make_cfg({**coco.declaration, **SPLITS}, train=["mine_val"]))
    assert identical_images("mine/train", "mine_test") == []
    one, other = (DatasetCatalog.get(name)[0] for name in ("mine/train", "mine_test"))
    shutil.copy(one["file_name"], other["file_name"])
    for record in coco.data["images"]:
        if record["id"] == other["image_id"]:
            record |= {key: one[key] for key in ("width", "height")}
    coco.data["annotations"] = [coco.add(i, 1, [1, 1, 9, 9]) for i in range(1, 9)]
    coco.save()
    register_datasets(make_cfg({**coco.declaration, **SPLITS}, train=["mine_val"]))
    files = [(one["file_name"], other["file_name"])]
    assert identical_images("mine/train", "mine_test") == files


def test_parts_of_voc_are_evaluated(make_cfg, voc, perfect_results):
    register_datasets(make_cfg({**voc.declaration, **SPLITS}, train=["mine/train"]))
    for name in SPLITS["SPLITS"]:
        results = perfect_results(name, PascalVOCDetectionEvaluator(name))
        assert results["bbox"]["AP"] == pytest.approx(100)
    assert MetadataCatalog.get("mine/train").thing_classes == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"SPLITS": {"a": 0.8, "b": 0.3}}, "sum to more than 1"),
        ({"SPLITS": {"a": 0}}, r"SPLITS\.a must be a share in \(0, 1\], got 0"),
        ({"SPLITS": {"a": True}}, "must be a share"),
        ({"SPLITS": {"pets": 0.5}}, "'pets' is the name of the whole"),
        ({"SPLITS": {"a@b": 0.5}}, "'@' is kept"),
        ({"SPLITS": [0.5, 0.5]}, "must map names to shares"),
        ({"SPLITS": {"a": 0.5}, "SPLIT_SEED": "x"}, "SPLIT_SEED must be a whole number, got 'x'"),
        ({"SPLITS": {"a": 0.01, "b": 0.5}}, "0.01 of 8 images are none for 'a'"),
        ({"SPLITS": {"coco_2017_train": 0.5, "a": 0.5}}, "the name of another dataset"),
    ],
)
def test_malformed_shares(make_cfg, coco, keys, message):
    with pytest.raises(DatasetError, match=message):
        register_datasets(make_cfg({**coco.declaration, **keys}, train=["a"]))


def test_a_name_is_declared_once(make_cfg, coco, voc):
    one = {**coco.declaration, "SPLITS": {"part": 0.5}}
    with pytest.raises(DatasetError, match=r"REGISTER\[1\]: 'part' is declared before"):
        register_datasets(make_cfg(one, {**voc.declaration, "NAME": "part"}))
