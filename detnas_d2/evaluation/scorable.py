"""Whether a dataset can give a metric at all: without objects to find, evaluators report NaN.

Known before a candidate is evaluated, from the ground truth as the evaluators count it: COCO passes
over crowds and, for an area range, objects outside it; VOC passes over difficult objects, and its
mean over the classes needs one object of each.
"""

from __future__ import annotations

from collections import Counter

from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.datasets.catalog import source_of_metadata
from detnas_d2.data.datasets.coco import category_names, read_file
from detnas_d2.data.datasets.sources import CocoSource, VocSource
from detnas_d2.data.datasets.voc import count_scored
from detnas_d2.utils.errors import InputError

# pycocotools' area ranges, in pixels squared, both ends included.
_AREAS = {"APs": (0.0, 32.0**2), "APm": (32.0**2, 96.0**2), "APl": (96.0**2, 1e10)}


_REMEDY = "choose another SEARCH.METRIC, another SEARCH.VAL or a larger DATASETS.SEARCH_SPLIT"


def check_scorable(dataset_name: str, metric: str, *, remedy: str = _REMEDY) -> None:
    """Looks for objects that the metric counts in a registered dataset.

    Args:
        metric: "task/metric" of the dataset's evaluator.
        remedy: what to do where there are none.

    Raises:
        InputError: there are none; names the dataset and the metric.
    """
    source = source_of_metadata(dataset_name)
    task, _, key = metric.partition("/")
    if isinstance(source, CocoSource):
        reason = _coco_lack(source, task, key)
    elif isinstance(source, VocSource):
        reason = _voc_lack(dataset_name, source)
    else:
        return
    if reason:
        raise InputError(
            f"dataset {dataset_name!r}, which candidates are scored on, cannot give {metric}: "
            f"{reason}; {remedy}"
        )


def _coco_lack(source: CocoSource, task: str, key: str) -> str:
    """Reason why a COCO dataset gives no score for a metric, "" where it gives one."""
    file = read_file(source.annotations)
    objects = [a for a in file.annotations if not a.get("iscrowd")]
    if task == "keypoints":
        objects = [a for a in objects if a.get("num_keypoints")]
    if not objects:
        return "all of its objects are passed over" if file.annotations else "it has no object"
    if key in _AREAS:
        low, high = _AREAS[key]
        if not any(low <= a.get("area", 0) <= high for a in objects):
            return f"no object has an area from {low:g} to {high:g} square pixels"
    elif key.startswith("AP-"):
        names = category_names(file)
        wanted = {number for number, name in names.items() if name == key.removeprefix("AP-")}
        if not any(a["category_id"] in wanted for a in objects):
            return f"it has no object of {key.removeprefix('AP-')}"
    return ""


def _voc_lack(dataset_name: str, source: VocSource) -> str:
    classes = MetadataCatalog.get(dataset_name).thing_classes
    dicts = DatasetCatalog.get(dataset_name)
    present = Counter(classes[item["category_id"]] for d in dicts for item in d["annotations"])
    absent = [name for name in classes if not present[name]]
    if absent:
        return f"it has no object of {', '.join(absent)}, and VOC's mean over the classes is nan"
    scored = count_scored(source)
    difficult = [name for name in classes if not scored[name]]
    if difficult:
        return f"all objects of {', '.join(difficult)} are difficult, which VOC does not count"
    return ""
