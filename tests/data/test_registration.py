"""Datasets declared in a config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.datasets.pascal_voc import load_voc_instances, register_pascal_voc
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator

from detnas_d2.data import DatasetError, register_datasets


def test_coco_is_loaded_by_detectron2(make_cfg, coco):
    register_datasets(make_cfg(coco.declaration, train=["pets"]))
    meta = MetadataCatalog.get("pets")
    assert meta.evaluator_type == "coco"
    # Known before anything is loaded, for evaluators that are built first.
    assert meta.thing_classes == ["cat", "dog", "owl"]
    assert meta.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}
    root = coco.root
    assert DatasetCatalog.get("pets") == load_coco_json(
        str(root / "pets.json"), str(root / "pets"), "pets"
    )


def test_declarations_out_of_use_are_not_read(make_cfg, coco):
    (coco.root / "pets.json").unlink()
    register_datasets(make_cfg(coco.declaration))
    assert "pets" in DatasetCatalog
    with pytest.raises(DatasetError, match=r"pets\.json"):
        register_datasets(make_cfg(coco.declaration), ["pets"])


def test_declared_classes_decide_the_order(make_cfg, coco, perfect_results):
    declaration = {**coco.declaration, "CLASSES": ["owl", "cat", "dog"]}
    register_datasets(make_cfg(declaration, train=["pets"]))
    assert MetadataCatalog.get("pets").thing_classes == ["owl", "cat", "dog"]
    labels = [[a["category_id"] for a in d["annotations"]] for d in DatasetCatalog.get("pets")]
    stated = [
        [a["category_id"] % 3 for a in coco.data["annotations"] if a["image_id"] == i]
        for i in range(1, 9)
    ]
    assert labels == stated
    evaluator = COCOEvaluator("pets", ("bbox",), False)
    assert perfect_results("pets", evaluator)["bbox"]["AP-owl"] == pytest.approx(100)


def test_a_declared_class_may_be_absent(make_cfg, coco):
    declaration = {**coco.declaration, "CLASSES": ["cat", "dog", "owl", "yak"]}
    register_datasets(make_cfg(declaration, train=["pets"]))
    assert len(DatasetCatalog.get("pets")) == 8
    assert MetadataCatalog.get("pets").thing_classes[3] == "yak"


def test_voc_is_loaded_as_by_detectron2(make_cfg, voc, monkeypatch, perfect_results):
    monkeypatch.setitem(vars(np), "str", str)  # gone from NumPy, used by Detectron2 0.6
    register_datasets(make_cfg({**voc.declaration, "YEAR": 2007}, train=["zoo"]))
    meta = MetadataCatalog.get("zoo")
    assert (meta.evaluator_type, meta.split, meta.year) == ("pascal_voc", "train", 2007)
    assert meta.dirname == str(voc.root)  # normal files stay where they are
    dicts = DatasetCatalog.get("zoo")
    assert dicts == load_voc_instances(str(voc.root), "train", ["cat", "dog", "owl"])
    assert dicts[0]["annotations"][0]["bbox"] == [0, 1, 20, 25]
    results = perfect_results("zoo", PascalVOCDetectionEvaluator("zoo"))
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_image_folder(make_cfg, toys):
    register_datasets(make_cfg(toys.declaration, train=["toys"]))
    meta = MetadataCatalog.get("toys")
    assert (meta.evaluator_type, meta.thing_classes) == ("image_classification", ["ball", "kite"])
    dicts = DatasetCatalog.get("toys")
    assert [d["label"] for d in dicts] == [0] * 4 + [1] * 4
    assert dicts[5]["image_id"] == "kite/1.jpg"
    assert Path(dicts[5]["file_name"]) == toys.root / "kite" / "1.jpg"


def test_image_folder_with_declared_classes(make_cfg, toys):
    declaration = {**toys.declaration, "CLASSES": ["kite", "ball"]}
    register_datasets(make_cfg(declaration, train=["toys"]))
    assert DatasetCatalog.get("toys")[0]["image_id"] == "kite/0.jpg"


def test_again_changes_nothing(make_cfg, coco):
    cfg = make_cfg(coco.declaration, train=["pets"])
    register_datasets(cfg)
    loader, meta = dict(DatasetCatalog)["pets"], MetadataCatalog.get("pets")
    DatasetCatalog.get("pets")
    register_datasets(cfg)
    assert dict(DatasetCatalog)["pets"] is loader
    assert MetadataCatalog.get("pets") is meta


def test_conflicting_declaration(make_cfg, coco):
    register_datasets(make_cfg(coco.declaration))
    with pytest.raises(DatasetError, match=r"'pets'.*images .*pets.*other"):
        register_datasets(make_cfg({**coco.declaration, "IMAGES": "other"}))
    with pytest.raises(DatasetError, match="coco_2017_train"):
        register_datasets(make_cfg({**coco.declaration, "NAME": "coco_2017_train"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"IMAGE": "x"}, r"REGISTER\[0\] \('pets'\): unknown key 'IMAGE'"),
        ({"FORMAT": "kitti"}, r"FORMAT must be one of .*'coco'.* got 'kitti'"),
        ({"FORMAT": "voc"}, "key ROOT is missing; FORMAT voc needs it"),
        ({"NAME": ""}, r"REGISTER\[0\]\.NAME must be a non-empty text"),
        ({"NAME": "a@b"}, "'@' is kept"),
        ({"NAME": "digits_train"}, "demo"),
        ({"ANNOTATIONS": 3}, r"ANNOTATIONS must be a non-empty text, got 3"),
        ({"CLASSES": "cat"}, "CLASSES must be a non-empty list"),
        ({"CLASSES": ["cat", "cat"]}, "duplicates"),
        ({"CLASSES": ["a/b"]}, "'a/b' is not a class name"),
    ],
)
def test_malformed_declarations(make_cfg, coco, change, message):
    with pytest.raises(DatasetError, match=message):
        register_datasets(make_cfg({**coco.declaration, **change}))


def test_missing_keys(make_cfg, voc):
    for key in ("ROOT", "CLASSES"):
        declaration = {k: v for k, v in voc.declaration.items() if k != key}
        with pytest.raises(DatasetError, match=f"key {key} is missing"):
            register_datasets(make_cfg(declaration))
    with pytest.raises(DatasetError, match="YEAR must be 2007 or 2012, got 2010"):
        register_datasets(make_cfg({**voc.declaration, "YEAR": 2010}))


def test_unknown_names(make_cfg, coco):
    with pytest.raises(DatasetError, match="'pet'.*did you mean pets"):
        register_datasets(make_cfg(coco.declaration, train=["pet"]))
    with pytest.raises(DatasetError, match="'nothing'"):
        register_datasets(make_cfg(coco.declaration), ["nothing@search_val"])
    with pytest.raises(DatasetError, match="pets@search"):
        register_datasets(make_cfg(coco.declaration), ["pets@search"])
    with pytest.raises(DatasetError, match=r"DATASETS\.INVALID.*'maybe'"):
        register_datasets(make_cfg(DATASETS__INVALID="maybe"))


def test_declarations_survive_yaml(make_cfg, coco, tmp_path):
    cfg = make_cfg(coco.declaration, train=["pets"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    loaded = make_cfg()
    loaded.merge_from_file(str(tmp_path / "config.yaml"))
    register_datasets(loaded)
    assert len(DatasetCatalog.get("pets")) == 8


def test_absolute_paths(make_cfg, coco, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    declaration = {**coco.declaration, "IMAGES": str(coco.root / "pets")}
    declaration["ANNOTATIONS"] = str(coco.root / "pets.json")
    register_datasets(make_cfg(declaration, train=["pets"]))
    assert len(DatasetCatalog.get("pets")) == 8


def test_a_published_data_set_keeps_its_loader(make_cfg, coco):
    calls = []

    def load():
        calls.append(1)
        return load_coco_json(str(coco.root / "pets.json"), str(coco.root / "pets"), "public")

    DatasetCatalog.register("public", load)
    MetadataCatalog.get("public").set(
        evaluator_type="coco",
        json_file=str(coco.root / "pets.json"),
        image_root=str(coco.root / "pets"),
    )
    coco.add(1, 1, [5, 5, 0, 4])  # COCO has a few of these; Detectron2 passes over them
    coco.save()
    register_datasets(make_cfg(train=["public"]))
    assert len(DatasetCatalog.get("public")) == 8
    assert calls
    (coco.root / "pets" / "3.png").unlink()
    with pytest.raises(DatasetError, match=r"missing_image.*3\.png"):
        register_datasets(make_cfg(train=["public"]))


def test_published_voc_works_with_current_numpy(make_cfg, voc):
    register_pascal_voc("public_voc", str(voc.root), "train", 2007, ["cat", "dog", "owl"])
    MetadataCatalog.get("public_voc").evaluator_type = "pascal_voc"
    register_datasets(make_cfg(train=["public_voc@search_train"], test=["public_voc"]))
    assert len(DatasetCatalog.get("public_voc")) == 8
    assert len(DatasetCatalog.get("public_voc@search_train")) == 5
    assert MetadataCatalog.get("public_voc@search_val").year == 2007


def test_other_formats_pass_unchecked(make_cfg):
    DatasetCatalog.register("mine", lambda: [{"file_name": "x"}])
    MetadataCatalog.get("mine").set(evaluator_type="own")
    register_datasets(make_cfg(train=["mine"]))
    with pytest.raises(DatasetError, match="'mine' cannot be split"):
        register_datasets(make_cfg(train=["mine@search_train"]))


def test_a_name_registered_by_hand_may_stand_for_other_files_later(make_cfg, coco, tmp_path):
    cfg = make_cfg(train=["by_hand"])
    for images in (8, 3):
        part = {**coco.data, "images": coco.data["images"][:images]}
        part["annotations"] = [a for a in coco.data["annotations"] if a["image_id"] <= images]
        file = tmp_path / f"first_{images}.json"
        file.write_text(json.dumps(part))
        if "by_hand" in DatasetCatalog:
            DatasetCatalog.remove("by_hand")
            MetadataCatalog.remove("by_hand")
        register_coco_instances("by_hand", {}, str(file), str(coco.root / "pets"))
        for _ in range(2):
            register_datasets(cfg)
            assert len(DatasetCatalog.get("by_hand")) == images


def test_data_registered_by_hand_need_not_tell_where_they_lie(make_cfg, coco):
    register_datasets(make_cfg(coco.declaration, train=["pets"]))
    dicts = DatasetCatalog.get("pets")
    DatasetCatalog.register("by_hand", lambda: dicts)
    metadata = MetadataCatalog.get("by_hand")
    metadata.set(evaluator_type="coco", thing_classes=["cat", "dog", "owl"])
    for _ in range(2):
        register_datasets(make_cfg(train=["by_hand"]))
        assert DatasetCatalog.get("by_hand") is dicts
        metadata.json_file = str(coco.root / "pets.json")  # Detectron2's evaluator sets it alone


def test_masks_of_a_format_without_masks(make_cfg, voc):
    for key in ("MASK_ON", "KEYPOINT_ON"):
        cfg = make_cfg(voc.declaration, train=["zoo@search_train"])
        cfg.MODEL[key] = True
        with pytest.raises(DatasetError, match=f"MODEL.{key} is True, and dataset 'zoo' is of a "):
            register_datasets(cfg)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("zoo",)
        register_datasets(cfg)
