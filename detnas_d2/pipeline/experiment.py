"""Experiment of a file: its stages, or several pipelines for each of its seeds; its tables.

.. code-block:: yaml

    OUTPUT_DIR: ./output/table4
    SEEDS: [0, 1, 2]
    PIPELINES:
      fpn: ../fpn_coco/pipeline.yaml
      retinanet: ../retinanet_coco/pipeline.yaml
    TABLES: [...]

PIPELINES stands in the place of STAGES (:mod:`definition`). With SEEDS, every pipeline runs once
for each of them (``SEED`` and ``SEARCH.SEED``), in ``OUTPUT_DIR/seed<SEED>/<name>``; without, once
and in the pipeline's own OUTPUT_DIR, or in ``<name>`` of the one that the command line gives.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from detnas_d2.config.reading import read_yaml
from detnas_d2.pipeline.definition import Pipeline, read_pipeline, split_output
from detnas_d2.pipeline.stages import PipelineError, Stage
from detnas_d2.pipeline.tables import Pipelines, Table, read_tables

_KEYS = {"OUTPUT_DIR", "SEEDS", "PIPELINES", "TABLES"}


@dataclass(frozen=True)
class Run:
    """A stage of an experiment; stages that several pipelines share are one run."""

    name: str
    pipeline: Pipeline
    stage: Stage

    @property
    def folder(self) -> str:
        return self.pipeline.folder(self.stage.name)


@dataclass(frozen=True)
class Experiment:
    """A parsed file with its pipelines and tables."""

    file: str
    output_dir: str
    pipelines: Pipelines
    tables: tuple[Table, ...]

    @property
    def single(self) -> Pipeline | None:
        """The pipeline of a file that is one; None for several."""
        return self.pipelines.get(None, {}).get("")

    def runs(self) -> list[Run]:
        """Every stage once, each after those that it starts from."""
        found: dict[str, Run] = {}
        for seed, pipelines in self.pipelines.items():
            for name, pipeline in pipelines.items():
                of = name if seed is None else f"seed {seed}, {name}"
                for stage in pipeline.stages:
                    run = Run(f"{of}: {stage.name}" if of else stage.name, pipeline, stage)
                    found.setdefault(run.folder, run)
        return list(found.values())


def read_experiment(file: str, opts: tuple[str, ...] = ()) -> Experiment:
    """Parses and checks a file, and those that it names.

    Args:
        opts: KEY VALUE overrides for every stage; OUTPUT_DIR is the experiment's own.

    Raises:
        PipelineError, TableError: naming the file and the key.
    """
    data = read_yaml(file).data
    if not isinstance(data, dict) or "PIPELINES" not in data:
        alone = read_pipeline(file, opts)
        pipelines: dict[int | None, dict[str, Pipeline]] = {None: {"": alone}}
        tables = read_tables(file, data.get("TABLES", []), pipelines)
        return Experiment(file, alone.output_dir, pipelines, tables)
    files = _files(file, data)
    asked, rest = split_output(file, opts)
    output = asked or data.get("OUTPUT_DIR", "./output/experiment")
    pipelines = {}
    for seed in _seeds(file, data):
        seeds = () if seed is None else ("SEED", str(seed), "SEARCH.SEED", str(seed))
        place = output if seed is None else os.path.join(output, f"seed{seed}")
        pipelines[seed] = {}
        for name, path in files.items():
            own = seed is None and asked is None
            folder = () if own else ("OUTPUT_DIR", os.path.join(place, name))
            pipelines[seed][name] = read_pipeline(path, (*rest, *seeds, *folder))
    return Experiment(file, output, pipelines, read_tables(file, data.get("TABLES", []), pipelines))


def _files(file: str, data: dict[str, Any]) -> dict[str, str]:
    """Name -> file of the pipelines that a file names."""
    names, unknown = data["PIPELINES"], set(data) - _KEYS
    if unknown:
        raise PipelineError(f"{file}: unknown keys {sorted(unknown)} next to PIPELINES")
    if not isinstance(names, dict) or not names:
        raise PipelineError(f"{file}: PIPELINES: expected NAME: file")
    if not all(isinstance(text, str) and text for text in (*names, *names.values())):
        raise PipelineError(f"{file}: PIPELINES: {names!r}: expected names and files")
    return {name: os.path.join(os.path.dirname(file), path) for name, path in names.items()}


def _seeds(file: str, data: dict[str, Any]) -> list[int | None]:
    if "SEEDS" not in data:
        return [None]
    seeds = data["SEEDS"]
    good = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not good or not seeds or len(set(seeds)) < len(seeds):
        raise PipelineError(f"{file}: SEEDS is {seeds!r}: expected different numbers, 0 or more")
    return seeds
