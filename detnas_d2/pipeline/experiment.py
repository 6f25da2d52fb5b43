"""Experiment of a file: its stages or several pipelines, for each of its seeds; its tables.

SEEDS, in a file or among the overrides (``SEEDS 0,1,2``), runs everything once for each of them,
from the first stage on: they are ``SEED`` and ``SEARCH.SEED`` of all stages. A seed of a stage's
own, in its OPTS or its RANDOM, grows by a thousand times the seed. A file of STAGES works in
``OUTPUT_DIR/seed<SEED>`` then, and one table at the end is of all seeds.

.. code-block:: yaml

    OUTPUT_DIR: ./output/table4
    SEEDS: [0, 1, 2]
    PIPELINES:
      fpn: ../fpn_coco/pipeline.yaml
      retinanet: ../retinanet_coco/pipeline.yaml
    TABLES: [...]

PIPELINES stands in the place of STAGES (:mod:`definition`). With SEEDS, a pipeline runs in
``OUTPUT_DIR/seed<SEED>/<name>``; without, in its own OUTPUT_DIR, or in ``<name>`` of the one that
the command line gives.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from detnas_d2.config.reading import read_yaml
from detnas_d2.pipeline.definition import Pipeline, read_pipeline
from detnas_d2.pipeline.stages import PipelineError, Stage, split_override
from detnas_d2.pipeline.table_reading import read_tables
from detnas_d2.pipeline.tables import Pipelines, Table

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
    """A parsed file with its pipelines and tables; ``opts`` are overrides of all stages."""

    file: str
    output_dir: str
    pipelines: Pipelines
    tables: tuple[Table, ...]
    opts: tuple[str, ...] = ()

    @property
    def runs_of_stages(self) -> list[Pipeline]:
        """The pipelines of a file of STAGES, one for each seed; none of a file of PIPELINES."""
        return [of_seed[""] for of_seed in self.pipelines.values() if "" in of_seed]

    @property
    def folders(self) -> dict[str, list[Pipeline]]:
        """Output folder -> its pipelines: those of all seeds of a file of STAGES, else one each."""
        if self.runs_of_stages:
            return {self.output_dir: self.runs_of_stages}
        found = [pipeline for of_seed in self.pipelines.values() for pipeline in of_seed.values()]
        return {pipeline.output_dir: [pipeline] for pipeline in found}

    @property
    def several(self) -> bool:
        """Whether there is more than one pipeline."""
        return len(self.runs_of_stages) != 1

    def runs(self) -> list[Run]:
        """Every stage once, each after those that it starts from."""
        found: dict[str, Run] = {}
        for seed, pipelines in self.pipelines.items():
            for name, pipeline in pipelines.items():
                of = ", ".join(text for text in (_seed_text(seed), name) if text)
                for stage in pipeline.stages:
                    run = Run(f"{of}: {stage.name}" if of else stage.name, pipeline, stage)
                    found.setdefault(run.folder, run)
        return list(found.values())


def _seed_text(seed: int | None) -> str:
    return "" if seed is None else f"seed {seed}"


def read_experiment(file: str, opts: tuple[str, ...] = ()) -> Experiment:
    """Parses and checks a file, and those that it names.

    Args:
        opts: KEY VALUE overrides for every stage; OUTPUT_DIR and SEEDS are the experiment's own.

    Raises:
        PipelineError, TableError: naming the file and the key.
    """
    data = read_yaml(file).data
    asked_seeds, opts = split_override(file, opts, "SEEDS")
    seeds = _seeds(file, data, asked_seeds)
    given = {"SEED", "SEARCH.SEED"}.intersection(opts[::2]) if seeds != [None] else ()
    for key in given:
        raise PipelineError(f"{file}: {key} among the overrides, which SEEDS gives; leave one out")
    several = isinstance(data, dict) and "PIPELINES" in data
    read = _read_several if several else _read_stages
    output, pipelines = read(file, data, opts, seeds)
    tables = read_tables(file, data.get("TABLES", []), pipelines)
    opts = split_override(file, opts, "OUTPUT_DIR")[1]
    return Experiment(file, output, pipelines, tables, opts)


def _read_stages(
    file: str, data: Any, opts: tuple[str, ...], seeds: list[int | None]
) -> tuple[str, dict[int | None, dict[str, Pipeline]]]:
    alone = read_pipeline(file, opts)
    output = alone.output_dir
    if seeds == [None]:
        return output, {None: {"": alone}}
    outside = [stage.name for stage in alone.stages if stage.folder.startswith("..")]
    if outside:
        raise PipelineError(
            f"{file}: stage {outside[0]!r}: FOLDER lies next to OUTPUT_DIR, where the SEEDS would "
            f"share it; run a file with PIPELINES: {{NAME: {os.path.basename(file)}}} and SEEDS"
        )
    pipelines: dict[int | None, dict[str, Pipeline]] = {}
    for seed in seeds:
        place = ("OUTPUT_DIR", os.path.join(output, f"seed{seed}"))
        pipelines[seed] = {"": read_pipeline(file, (*opts, *place), seed=seed, data_dir=output)}
    return output, pipelines


def _read_several(
    file: str, data: Any, opts: tuple[str, ...], seeds: list[int | None]
) -> tuple[str, dict[int | None, dict[str, Pipeline]]]:
    files = _files(file, data)
    asked, rest = split_override(file, opts, "OUTPUT_DIR")
    output = asked or data.get("OUTPUT_DIR", "./output/experiment")
    pipelines: dict[int | None, dict[str, Pipeline]] = {}
    for seed in seeds:
        place = output if seed is None else os.path.join(output, f"seed{seed}")
        pipelines[seed] = {}
        for name, path in files.items():
            own = seed is None and asked is None
            folder = () if own else ("OUTPUT_DIR", os.path.join(place, name))
            pipelines[seed][name] = read_pipeline(path, (*rest, *folder), seed=seed)
    return output, pipelines


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


def _seeds(file: str, data: Any, asked: str | None) -> list[int | None]:
    """Those of SEEDS, ``asked`` ("0,1,2" or "[0, 1, 2]") before the file's; [None] without."""
    seeds: Any = data.get("SEEDS") if isinstance(data, dict) else None
    if asked is not None:
        words = asked.strip("[]() ").split(",")
        seeds = [int(word) if word.strip().isdigit() else word for word in words]
    elif not isinstance(data, dict) or "SEEDS" not in data:
        return [None]
    good = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not good or not seeds or len(set(seeds)) < len(seeds):
        found = seeds if asked is None else asked
        raise PipelineError(
            f"{file}: SEEDS is {found!r}: expected different numbers, 0 or more, e.g. 0,1,2"
        )
    return seeds
