"""Samples of datasets: datasets of some of the images, with the ground truth of those alone."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator

from detnas_d2.data import register_datasets
from detnas_d2.data.datasets.cuts import choose
from detnas_d2.data.datasets.registration import cache_dir
from detnas_d2.data.datasets.sample import register_sample
from detnas_d2.evaluation.evaluators import build_evaluator


def ids(name: str) -> set[object]:
    return {d["image_id"] for d in DatasetCatalog.get(name)}


@pytest.mark.parametrize("format", ["coco", "voc", "toys"])
def test_a_sample_is_a_choice_by_seed(make_cfg, request, format):
    files = request.getfixturevalue(format)
    whole = files.declaration["NAME"]
    cfg = make_cfg(files.declaration, test=[whole])
    register_datasets(cfg)
    place = cache_dir(cfg)
    names = [register_sample(whole, size, 0, place) for size in (3, 5)]
    assert names == [f"{whole}@3", f"{whole}@5"]
    assert [len(DatasetCatalog.get(name)) for name in names] == [3, 5]
    assert ids(names[0]) < ids(names[1]) < ids(whole)
    kind = MetadataCatalog.get(whole).evaluator_type
    assert MetadataCatalog.get(names[0]).evaluator_type == kind
    assert register_sample(whole, 8, 0, place) == register_sample(whole, 9, 0, place) == whole
    first = ids(names[0])
    assert ids(register_sample(whole, 3, 1, place)) != first
    assert ids(register_sample(whole, 3, 0, place)) == first


def test_ground_truth_is_that_of_the_sample(make_cfg, coco, voc, perfect_results):
    """Objects of other images would count as missed."""
    cfg = make_cfg(coco.declaration, voc.declaration, test=["pets", "zoo"])
    register_datasets(cfg)
    pets, zoo = (register_sample(name, 4, 0, cache_dir(cfg)) for name in ("pets", "zoo"))
    with open(MetadataCatalog.get(pets).json_file) as file:
        data = json.load(file)
    assert {i["id"] for i in data["images"]} == ids(pets)
    assert {a["image_id"] for a in data["annotations"]} <= ids(pets)
    results = perfect_results(pets, COCOEvaluator(pets, output_dir=None))
    assert results["bbox"]["AP"] == pytest.approx(100)
    results = perfect_results(zoo, PascalVOCDetectionEvaluator(zoo))
    assert results["bbox"]["AP50"] == pytest.approx(100)


def test_data_registered_by_hand(cfg, tmp_path, perfect_results):
    dicts = DatasetCatalog.get("pets")
    DatasetCatalog.register("by_hand", lambda: dicts)
    MetadataCatalog.get("by_hand").set(
        evaluator_type="coco",
        thing_classes=["cat", "dog", "owl"],
        json_file=MetadataCatalog.get("pets").json_file,
    )
    name = register_sample("by_hand", 4, 0, cache_dir(cfg))
    chosen = {dicts[int(place)]["image_id"] for place in choose(map(str, range(8)), 4, 0)}
    assert ids(name) == chosen and len(chosen) == 4
    assert not hasattr(MetadataCatalog.get(name), "json_file")  # it tells of all images
    assert register_sample("by_hand", 4, 0, cache_dir(cfg)) == name
    cfg.MODEL.KEYPOINT_ON = False
    evaluator = build_evaluator(cfg, name, str(tmp_path))
    assert perfect_results(name, evaluator)["bbox"]["AP"] == pytest.approx(100)
