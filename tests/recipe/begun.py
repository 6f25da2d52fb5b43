"""Stages of a run that has begun, as files alone."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import yaml

from detnas_d2.pipeline import stage_time
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.state import DONE_FILE, running
from detnas_d2.pipeline.status import products, stage_fingerprint, stage_state
from detnas_d2.recipe.record import Record
from detnas_d2.search import History
from detnas_d2.search_space.space import SPACES
from tests.helpers import candidate_record

SEARCHER = {"searcher": {"settings": {"generations": 6}}}


def begin(record: Record, name: str, *, worked: float = 100.0, files: tuple[str, ...] = ()) -> Path:
    """Makes a stage one that was stopped after some seconds; returns its folder."""
    pipeline = read_pipeline(record.pipeline_file)
    stage = pipeline.known_stage(name)
    folder = Path(pipeline.folder(name))
    with running(str(folder), stage_fingerprint(pipeline, stage)):
        stage_time.start(str(folder))
        for file in ("model_0000119.pth", *files):
            write_product(folder / file)
    last = max(file.stat().st_mtime for file in folder.iterdir())
    (folder / "started.json").write_text(json.dumps({"time": last - worked, "seconds": 0.0}))
    os.utime(folder / "started.json", (last, last))
    return folder


def finish(record: Record, name: str, seconds: float) -> None:
    pipeline = read_pipeline(record.pipeline_file)
    stage = pipeline.known_stage(name)
    folder = Path(pipeline.folder(name))
    folder.mkdir(parents=True, exist_ok=True)
    if name == "search":
        path = SPACES["detnas_demo"].uniform_path("3x3")
        History.open(folder, SEARCHER, resume=False).append(
            candidate_record(path=str(path), choices=path.choices)
        )
    for file in products(pipeline, stage):
        if not (folder / file).exists():
            write_product(folder / file)
    mark = stage_fingerprint(pipeline, stage)
    done = {"fingerprint": mark, "results": {}, "path": "", "seconds": seconds}
    (folder / DONE_FILE).write_text(json.dumps(done))


def write_product(file: Path) -> None:
    if file.suffix == ".pth":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("weights", "0")
    else:
        file.write_text("{}")


def state(record: Record, name: str) -> str:
    pipeline = read_pipeline(record.pipeline_file)
    return stage_state(pipeline, pipeline.known_stage(name))


def config(record: Record, name: str) -> dict:
    return yaml.safe_load(Path(record.folder, name).read_text())
