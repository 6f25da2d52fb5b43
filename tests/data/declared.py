"""Datasets as tests declare them, and what training and evaluation see of them."""

from __future__ import annotations

import json

from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data import register_datasets


def declare(make_cfg, files):
    register_datasets(make_cfg(files.declaration))


def objects():
    """What training learns from and what the evaluation counts, as numbers of objects."""
    dicts = DatasetCatalog.get("pets")
    with open(MetadataCatalog.get("pets").json_file) as file:
        truth = json.load(file)["annotations"]
    return (
        sum(a["iscrowd"] == 0 for d in dicts for a in d["annotations"]),
        sum(a["iscrowd"] == 0 for a in truth),
    )
