"""Average precision of matches against pycocotools', resampled images, thresholds, worst images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detnas_d2.evaluation.matches import Box, Image, read_matches
from detnas_d2.report.worst import judge, picture, worst_images
from detnas_d2.utils.errors import InputError
from tests.report.folders import CLASSES, detections, evaluated


def matches_of(root: Path, found: list[dict[str, Any]]) -> Any:
    (root / "found.json").write_text(json.dumps(found))
    return read_matches(str(root / "truth.json"), str(root / "found.json"), str(root / "images"))


@pytest.mark.parametrize("seed", range(3))
def test_ap_and_curves_are_those_of_pycocotools(
    seed: int, truth: dict[str, Any], tmp_path: Path
) -> None:
    found = detections(truth, seed)
    matches = matches_of(tmp_path / "data", found)
    expected = evaluated(tmp_path / "data" / "truth.json", found)
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for number, name in enumerate(CLASSES):
        assert matches.classes[number].name == name
        np.testing.assert_array_equal(
            matches.classes[number].precision()[0], precision[:, :, number]
        )
    assert matches.ap()[0] == pytest.approx(100 * expected.stats[0], abs=1e-9)


def test_weights_are_repeated_images(truth: dict[str, Any], tmp_path: Path) -> None:
    """AP with weights is pycocotools' AP of a dataset with so many copies of each image."""
    found = detections(truth, 5)
    matches = matches_of(tmp_path / "data", found)
    weights = np.random.RandomState(0).randint(0, 3, len(truth["images"]))
    images, annotations, copies = [], [], []
    for image, times in zip(truth["images"], weights, strict=True):
        for _ in range(times):
            new = len(images) + 1
            images.append({**image, "id": new})
            for entry in truth["annotations"]:
                if entry["image_id"] == image["id"]:
                    annotations.append({**entry, "image_id": new, "id": len(annotations) + 1})
            copies += [{**b, "image_id": new} for b in found if b["image_id"] == image["id"]]
    repeated = {**truth, "images": images, "annotations": annotations}
    (tmp_path / "repeated.json").write_text(json.dumps(repeated))
    expected = evaluated(tmp_path / "repeated.json", copies)
    assert matches.ap(weights[None].astype(float))[0] == pytest.approx(100 * expected.stats[0])


def test_interval_holds_the_ap_and_is_the_same_again(truth: dict[str, Any], tmp_path: Path) -> None:
    matches = matches_of(tmp_path / "data", detections(truth, 2))
    low, high = matches.interval
    assert 0 <= low < matches.ap()[0] < high <= 100
    again = matches_of(tmp_path / "data", detections(truth, 2))
    assert again.interval == (low, high)


def test_nothing_detected_and_files_that_do_not_fit(truth: dict[str, Any], tmp_path: Path) -> None:
    matches = matches_of(tmp_path / "data", [])
    assert matches.ap()[0] == 0 and matches.threshold() == 0.5
    stranger = [{"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]
    with pytest.raises(InputError, match="no detections of"):
        matches_of(tmp_path / "data", stranger)
    (tmp_path / "data" / "found.json").write_text('[{"image_id": 1, "cat')
    with pytest.raises(InputError, match="no detections of"):
        read_matches(str(tmp_path / "data/truth.json"), str(tmp_path / "data/found.json"))


def box(name: str, score: float | None, *, hit: bool) -> Box:
    return Box(name, (1.0, 2.0, 3.0, 4.0), score, hit)


def test_judging_an_image() -> None:
    image = Image(
        "a.png",
        10,
        10,
        objects=(
            box("cat", 0.9, hit=True),
            box("cat", 0.2, hit=True),
            box("dog", None, hit=False),
        ),
        detections=(
            box("cat", 0.9, hit=True),
            box("owl", 0.6, hit=False),
            box("cat", 0.2, hit=True),
        ),
    )
    judged = judge(image, 0.5)
    assert len(judged.found) == 1 and len(judged.missed) == 2
    assert len(judged.right) == 1 and len(judged.wrong) == 1
    assert judged.f1 == pytest.approx(2 / (2 + 2 + 1))
    assert judged.sentence == "1 of 3 objects found; missed: cat, dog; wrong: owl"


def test_the_threshold_is_the_best_f1_of_all_scores(truth: dict[str, Any], tmp_path: Path) -> None:
    matches = matches_of(tmp_path / "data", detections(truth, 3))

    def f1(threshold: float) -> float:
        judged = [judge(image, threshold) for image in matches.images]
        right, wrong = (sum(len(getattr(j, k)) for j in judged) for k in ("right", "wrong"))
        missed = sum(len(j.missed) for j in judged)
        return 2 * right / (2 * right + wrong + missed)

    best = max(np.arange(0, 1.01, 0.1), key=lambda t: f1(round(float(t), 1)))
    assert f1(matches.threshold()) == pytest.approx(f1(round(float(best), 1)))


def test_worst_images_come_first_and_become_small_pictures(
    truth: dict[str, Any], tmp_path: Path
) -> None:
    matches = matches_of(tmp_path / "data", detections(truth, 3))
    worst = worst_images(matches.images, 0.3, count=4)
    assert len(worst) == 4
    assert [j.f1 for j in worst] == sorted(j.f1 for j in worst)
    rest = {j.image.file for j in worst}
    assert all(judge(i, 0.3).f1 >= worst[-1].f1 for i in matches.images if i.file not in rest)
    shown = picture(worst[0])
    assert shown.data.startswith("data:image/jpeg;base64,") and len(shown.data) < 20_000
    assert (shown.width, shown.height) in ((80, 60), (60, 80))
