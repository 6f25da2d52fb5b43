"""The notebook runs from top to bottom, with small sizes in the place of its parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.search import History

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "SCENES": 24,
    "TEST_SCENES": 4,
    "SUPERNET_ITERATIONS": 4,
    "NETWORK_ITERATIONS": 4,
    "POPULATION": 2,
    "GENERATIONS": 2,
    "CALIBRATION_IMAGES": 16,
}


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def registered() -> Any:
    before = dict(DatasetCatalog), dict(MetadataCatalog)
    yield
    for registry, content in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.mark.usefixtures("registered")
def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    monkeypatch.chdir(ROOT / "docs")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in code_cells():
        exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert namespace.keys() >= SMALL.keys()
            namespace |= SMALL | {"OUTPUT": str(tmp_path)}
    assert len(History.read(tmp_path / "search")) == 4
    assert (tmp_path / "searched" / "model_final.pth").exists()
    assert namespace["best"].macs <= 48_000_000


def test_outputs_are_of_one_run_from_top_to_bottom() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
