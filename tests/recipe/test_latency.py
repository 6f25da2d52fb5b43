"""A budget in milliseconds as a limit of the search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from detnas_d2.config.tools import base_config, load_config
from detnas_d2.data import register_datasets
from detnas_d2.engine.runtimes import ONNXRUNTIME, PYTORCH, RUNTIMES
from detnas_d2.recipe import latency
from detnas_d2.recipe.choice import Recipe, choose
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.latency import measured, with_limit, within
from detnas_d2.recipe.writing import texts_of, write_files
from detnas_d2.search.build import limits_from_config
from detnas_d2.search_space import LatencyTable
from detnas_d2.search_space.space import SPACES
from detnas_d2.utils.errors import InputError
from tests.catalogs import own_names
from tests.recipe.values import CELLS, CPU, DATA, SCHEDULE, plan

RECIPES = [
    replace(choose(CELLS, CPU, "detnas", space=name), max_macs=0)
    for name in ("detnas_demo", "detnas_small")
]


def table(name: str, block: float) -> LatencyTable:
    """5 ms of all detectors, ``block`` of each first operation, twice that of the others."""
    entries = tuple((block, *[2 * block] * (n - 1)) for n in SPACES[name].cardinalities)
    return LatencyTable(5.0, entries, name, (192, 256), 1, "cpu", detector={"runtime": "PyTorch"})


def test_the_limit_is_one_of_the_whole_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = {"detnas_demo": 0.5, "detnas_small": 2.0}  # 10 blocks, and 20
    monkeypatch.setattr(
        latency,
        "measured",
        lambda recipe, *_: table(recipe.space, blocks[recipe.space]),
    )
    settings = Settings(str(tmp_path))

    def spaces(milliseconds: float, recipes: list[Recipe] = RECIPES) -> list[str]:
        found = within(milliseconds, recipes, CELLS, DATA, settings)
        return [recipe.space for recipe, _ in found]

    # detnas_demo: 5 + 10 * 0.5 = 10 to 15 ms; detnas_small: 45 to 85 ms. "At most" so many.
    assert spaces(12.0) == spaces(20.0) == ["detnas_demo"]
    assert spaces(50.0) == spaces(90.0) == ["detnas_small", "detnas_demo"]
    turned = RECIPES[::-1]  # spaces are in no order of cost on GPUs
    assert spaces(90.0, turned) == ["detnas_small", "detnas_demo"]
    assert spaces(50.0, turned) == ["detnas_small"] and spaces(20.0, turned) == ["detnas_demo"]
    with pytest.raises(InputError, match="9ms: less than any .* detnas_demo 10 to 15 ms, detnas_s"):
        spaces(9.0)
    ((recipe, found),) = within(12.0, RECIPES, CELLS, DATA, settings)
    own = with_limit(12.0, found, settings, str(tmp_path))
    assert recipe.space == "detnas_demo" and own.max_ms == 12.0
    texts = texts_of(replace(plan(), recipe=recipe), SCHEDULE, DATA, own)
    write_files(str(tmp_path), texts)
    cfg = load_config(str(tmp_path / "search.yaml"))
    assert limits_from_config(cfg).max_latency_ms == 12.0 and cfg.SEARCH.MAX_MACS == 0
    read = LatencyTable.from_json(Path(own.latency_table).read_text(), SPACES["detnas_demo"])
    assert read == table("detnas_demo", 0.5)


@pytest.fixture
def cells(tmp_path: Path) -> Iterator[Data]:
    """A test image as it is decoded, registered."""
    Image.new("RGB", (640, 480)).save(tmp_path / "cell.png")
    names = [{"id": i, "name": name} for i, name in enumerate(DATA.classes)]
    image = {"id": 1, "file_name": "cell.png", "width": 640, "height": 480}
    content = {"images": [image], "annotations": [], "categories": names}
    file = tmp_path / "cells.json"
    file.write_text(json.dumps(content))
    entries = [
        {"NAME": name, "FORMAT": "coco", "IMAGES": str(tmp_path), "ANNOTATIONS": str(file)}
        | {"CLASSES": list(DATA.classes)}
        for name in (DATA.train, DATA.test)
    ]
    data = replace(DATA, declarations=entries)
    with own_names():
        cfg = base_config()
        cfg.DATASETS.REGISTER = entries
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (DATA.test,)
        register_datasets(cfg)
        yield data


@pytest.mark.parametrize("runtime", [PYTORCH, ONNXRUNTIME])
def test_latencies_are_those_of_this_machine(runtime: str, cells: Data, tmp_path: Path) -> None:
    recipe = replace(choose(CELLS, CPU, "detnas", side=128), max_macs=0)
    found = measured(recipe, CELLS, cells, Settings(str(tmp_path / "run"), runtime=runtime))
    assert 0 < found.cheapest() < found.most_expensive() and found.space == "detnas_demo"
    # As backbones see the image, resized to 128 x 171 pixels.
    assert found.input_size == (128, 192) and found.detector["image"] == [480, 640]
    title = RUNTIMES[runtime].title
    assert f"whole detectors in {title}" in found.about and found.about.endswith("not checked")
