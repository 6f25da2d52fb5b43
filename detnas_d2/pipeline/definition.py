"""All stages of an experiment from one YAML file; finished stages are skipped.

.. code-block:: yaml

    OUTPUT_DIR: ./output/demo
    STAGES:
      - {NAME: supernet, KIND: train, CONFIG: supernet.yaml}
      - {NAME: search, KIND: search, CONFIG: search.yaml, WEIGHTS: supernet}
      - {NAME: searched, KIND: train, CONFIG: retrain.yaml, WEIGHTS: supernet, PATH: search}
      - {NAME: shufflenet, KIND: train, CONFIG: retrain.yaml, PATH: "uniform 3x3"}
      - {NAME: random, KIND: train, CONFIG: retrain.yaml, PATH: random, REPEAT: 5}
    TABLE: [searched, shufflenet, random]

CONFIG is relative to the file. WEIGHTS is an earlier stage (its final weights) or a file. PATH is
an earlier search stage (its best path), ``uniform OP``, ``random NUMBER`` (the first random path
that keeps the limits of the first search stage; another one for another SEED of the config) or the
path itself. OPTS is a list of KEY, VALUE. REPEAT: n means n stages, NAME_1 to NAME_n, of one ROW,
which start from the stage of their own number where WEIGHTS, PATH or MERGE name a repeated one.
With PATH random they are n networks (``random 1`` to ``random n``); otherwise they differ in their
SEED (the config's, and a hundred more each time), and random networks (PATH, RANDOM) with it.
Stages with the same ROW share a row of the table (mean and spread). FOLDER, relative to OUTPUT_DIR,
is where a stage works, instead of OUTPUT_DIR/NAME: pipelines that name the same folder for the same
stage share its result, and the first one to need it runs it. It lies below OUTPUT_DIR or next to it
(``../NAME``): a pipeline writes nowhere else.

Hit-Detector has two more kinds, ``screen`` and ``gradient`` (search). MERGE lists earlier stages
of these kinds whose result (sub-space, genotype) is merged into the config. RANDOM is a seed: in
the place of the merged genotype stands a random one of the same sub-spaces and cost.

TABLE lists rows of the table printed at the end; TABLES, with the numbers of a paper next to those
measured, are described in :mod:`tables`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.reading import read_yaml
from detnas_d2.config.tools import load_config
from detnas_d2.data.datasets.registration import CACHE_FOLDER
from detnas_d2.engine.architectures import genotype_of, random_genotype
from detnas_d2.engine.gradient_search import GENOTYPE_FILE, SUB_SPACE_FILE
from detnas_d2.engine.plan import GradientPlan, SearchPlan
from detnas_d2.engine.proposals import Proposals
from detnas_d2.pipeline.entry import entry_problem
from detnas_d2.search.history import History
from detnas_d2.search_space import Path, PathError, get_space
from detnas_d2.utils.errors import InputError

FRAGMENTS = {"screen": SUB_SPACE_FILE, "gradient": GENOTYPE_FILE}
"""Kind of a stage -> its result as a config fragment."""
KINDS = ("train", "search", "screen", "gradient")
SEED_STEP = 100
"""Between the seeds of repeated stages: the seeds of a table lie between them."""


class PipelineError(InputError):
    """A pipeline file that does not say what it should, or disagrees with what is on disk."""


@dataclass(frozen=True)
class Stage:
    """One stage; see the module's description of the keys."""

    name: str
    kind: str
    config: str
    weights: str = ""
    path: str = ""
    row: str = ""
    opts: tuple[str, ...] = ()
    merge: tuple[str, ...] = ()
    random: int | None = None
    folder: str = ""
    number: int = 0
    """Of a repeated stage, from 0: so many steps lie between its seed and the config's."""


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline file."""

    file: str
    output_dir: str
    stages: tuple[Stage, ...]
    table: tuple[str, ...] = ()
    opts: tuple[str, ...] = field(default=())

    def known_stage(self, name: str) -> Stage:
        """The stage of a name that was checked when the pipeline was read."""
        stage = self.stage(name)
        assert stage is not None
        return stage

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)

    def stages_of(self, row: str) -> list[Stage]:
        """The stages of a row of the table."""
        return [stage for stage in self.stages if (stage.row or stage.name) == row]

    def folder(self, name: str) -> str:
        """Folder of the stage ``name``."""
        stage = self.stage(name)
        return os.path.normpath(os.path.join(self.output_dir, _place(stage) if stage else name))

    def file_of(self, stage: Stage) -> str:
        """Config file of a stage."""
        return os.path.join(os.path.dirname(self.file), stage.config)

    def sources_of(self, stage: Stage) -> list[Stage]:
        """The stages whose results a stage starts from."""
        names = dict.fromkeys((stage.weights, stage.path, *stage.merge))
        return [source for name in names if (source := self.stage(name)) is not None]

    def config_of(self, stage: Stage) -> CfgNode:
        """The stage's config, its file and all overrides merged, paths and weights filled in."""
        fragments = [
            os.path.join(self.folder(name), FRAGMENTS[self.known_stage(name).kind])
            for name in stage.merge
        ]
        place = f"{self.file}: stage {stage.name!r}: OPTS or command line"
        cfg = self.merged(stage, fragments, place=place)
        if stage.random is not None:
            self._draw_genotype(stage, cfg)
        if stage.weights:
            known = self.stage(stage.weights)
            weights = os.path.join(self.folder(stage.weights), "model_final.pth")
            cfg.MODEL.WEIGHTS = weights if known else stage.weights
        if stage.path:
            cfg.MODEL.DETNAS.PATH = str(self.path_of(stage, cfg))
        return cfg

    def merged(
        self, stage: Stage, fragments: list[str], standins: Sequence[Any] = (), *, place: str
    ) -> CfgNode:
        """The stage's file with ``fragments``, KEY, VALUE ``standins`` and all overrides, its seed
        and folders; ``place`` names the overrides in errors. All stages share derived data.
        """
        opts = [*standins, *stage.opts, *self.opts]
        cfg = load_config(self.file_of(stage), opts, fragments=fragments, place=place)
        cfg.SEED += SEED_STEP * stage.number
        cfg.OUTPUT_DIR = self.folder(stage.name)
        if not cfg.DATASETS.CACHE_DIR:
            cfg.DATASETS.CACHE_DIR = os.path.join(self.output_dir, CACHE_FOLDER)
        return cfg

    def _draw_genotype(self, stage: Stage, cfg: CfgNode) -> None:
        sources = [self.known_stage(name) for name in stage.merge]
        (source,) = [source for source in sources if source.kind == "gradient"]
        assert stage.random is not None
        seed = stage.random + SEED_STEP * stage.number
        genotype = random_genotype(self.config_of(source), seed, genotype_of(cfg).parts)
        for part in genotype.parts:
            cfg.MODEL.HIT.GENOTYPE[part.upper()] = genotype.part_text(part)

    def limits_for(self, cfg: CfgNode) -> CfgNode:
        """The config whose SEARCH node limits and counts costs: the first search's, or ``cfg``."""
        searching = next((stage for stage in self.stages if stage.kind == "search"), None)
        return self.config_of(searching) if searching else cfg

    def path_of(self, stage: Stage, cfg: CfgNode) -> Path:
        """The path of a training stage."""
        space = get_space(cfg.MODEL.DETNAS.SPACE)
        source = self.stage(stage.path)
        if source is not None:
            best = History.read(self.folder(source.name)).best()
            if not best:
                folder = self.folder(source.name)
                raise PipelineError(f"stage {stage.name}: the search in {folder} has no candidate")
            return space.path(best[0].choices)
        word, _, argument = stage.path.partition(" ")
        if word == "uniform":
            return space.uniform_path(argument)
        if word != "random":
            return space.path(stage.path)
        if not argument.isdecimal():
            raise PathError(
                f"PATH {stage.path!r}: expected random NUMBER, e.g. random 1, or REPEAT beside it"
            )
        proposals = Proposals.from_config(self.limits_for(cfg), space)
        proposals.check_limits()
        constraint, attempts = proposals.constraint, proposals.searcher.evolution.attempts
        if constraint.limits != proposals.limits:
            raise PipelineError(
                f"stage {stage.name}: PATH {stage.path!r}: SEARCH.MAX_LATENCY_MS limits random "
                "paths by a table: expected SEARCH.LATENCY_TABLE to name it"
            )
        number = f"{cfg.SEED}/{argument}" if cfg.SEED else argument
        rng = random.Random(f"pipeline/{number}")
        draws = (space.random_path(rng) for _ in range(attempts))
        found = next((path for path in draws if constraint(path.choices)), None)
        if found is None:
            raise PipelineError(f"stage {stage.name}: no random path keeps {constraint}")
        return found


def read_pipeline(file: str, opts: tuple[str, ...] = ()) -> Pipeline:
    """Parses and checks a pipeline file.

    Args:
        opts: KEY VALUE overrides for every stage; OUTPUT_DIR is the pipeline's own.

    Raises:
        PipelineError: naming the file, the stage and the key.
    """
    data = read_yaml(file).data
    if not isinstance(data, dict) or not isinstance(data.get("STAGES"), list) or not data["STAGES"]:
        raise PipelineError(f"{file}: expected a mapping with OUTPUT_DIR and a list STAGES")
    unknown = set(data) - {"OUTPUT_DIR", "STAGES", "TABLE", "TABLES"}
    if unknown:
        raise PipelineError(f"{file}: unknown keys {sorted(unknown)}")
    stages: list[Stage] = []
    for entry in data["STAGES"]:
        for number, single in _repeats(file, entry, stages):
            stages.append(_stage(file, single, number, stages))
    asked, rest = split_output(file, opts)
    output = data.get("OUTPUT_DIR", "./output/pipeline") if asked is None else asked
    if not isinstance(output, str) or not output.strip() or "\0" in output:
        raise PipelineError(f"{file}: OUTPUT_DIR is {output!r}: expected the name of a folder")
    table = data.get("TABLE", ())
    if not isinstance(table, (list, tuple)) or not all(isinstance(row, str) for row in table):
        raise PipelineError(f"{file}: TABLE is {table!r}: expected a list of rows")
    table = tuple(table)
    rows = {stage.row or stage.name for stage in stages}
    if set(table) - rows:
        raise PipelineError(f"{file}: TABLE names {sorted(set(table) - rows)}, no stage has it")
    pipeline = Pipeline(file, output, tuple(stages), table, rest)
    for stage in stages:
        _check_config(pipeline, stage)
    return pipeline


def split_output(file: str, opts: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The OUTPUT_DIR among KEY, VALUE overrides, None without one; and the others."""
    if len(opts) % 2:
        raise PipelineError(f"{file}: overrides are KEY VALUE pairs, the last word is {opts[-1]!r}")
    pairs = list(zip(opts[::2], opts[1::2], strict=True))
    rest = tuple(word for pair in pairs if pair[0] != "OUTPUT_DIR" for word in pair)
    return dict(pairs).get("OUTPUT_DIR"), rest


def _check_config(pipeline: Pipeline, stage: Stage) -> None:
    """Finds errors in the config of a stage before the first stage has run for days."""
    name = pipeline.file_of(stage)
    try:
        cfg = load_config(name, [*stage.opts, *pipeline.opts], place="OPTS or command line")
        if stage.path and pipeline.stage(stage.path) is None:
            pipeline.path_of(stage, cfg)
        retrain = os.path.dirname(name), pipeline.opts
        if stage.kind == "search" and not stage.merge:
            SearchPlan.from_config(cfg, *retrain).check(data=False)
        if stage.kind == "gradient":
            GradientPlan.from_config(cfg, *retrain)
    except (KeyError, ValueError, OSError) as error:
        raise PipelineError(f"{pipeline.file}: stage {stage.name!r}: {error}") from error


def _repeats(file: str, entry: Any, before: list[Stage]) -> list[tuple[int, Any]]:
    """(Stage.number, entry) of the stages that an entry with REPEAT stands for."""
    if not isinstance(entry, dict) or "REPEAT" not in entry:
        return [(0, entry)]
    count, name = entry["REPEAT"], entry.get("NAME")
    if type(count) is not int or count < 1:
        raise PipelineError(f"{file}: stage {name!r}: REPEAT {count!r}, expected 1 or more")
    known = {stage.name for stage in before}

    def numbered(text: Any, number: int) -> Any:
        own = f"{text}_{number}"
        return own if text not in known and own in known else text

    entries = []
    for number in range(1, count + 1):
        single = {key: value for key, value in entry.items() if key != "REPEAT"}
        single["NAME"], single["ROW"] = f"{name}_{number}", entry.get("ROW", name)
        for key in {"WEIGHTS", "PATH"} & set(entry):
            single[key] = numbered(entry[key], number)
        if "MERGE" in entry:
            single["MERGE"] = [numbered(source, number) for source in entry["MERGE"]]
        if "FOLDER" in entry:
            single["FOLDER"] = f"{entry['FOLDER']}_{number}"
        networks = entry.get("PATH") == "random"
        if networks:
            single["PATH"] = f"random {number}"
        entries.append((0 if networks else number - 1, single))
    return entries


def _stage(file: str, entry: Any, number: int, before: list[Stage]) -> Stage:
    required = {"NAME", "KIND", "CONFIG"}
    optional = ("WEIGHTS", "PATH", "ROW", "OPTS", "MERGE", "RANDOM", "FOLDER")
    if not isinstance(entry, dict) or not required <= set(entry) <= required.union(optional):
        raise PipelineError(
            f"{file}: stage {repr(entry)[:200]}: expected NAME, KIND, CONFIG and optionally "
            f"{', '.join((*optional, 'REPEAT'))}"
        )
    problem = entry_problem(entry)
    if problem:
        raise PipelineError(f"{file}: stage {repr(entry['NAME'])[:60]}: {problem}")
    values = {"number": number, **{key.lower(): entry[key] for key in entry}}
    values["opts"] = tuple(str(o) for o in entry.get("OPTS", ()))
    values["merge"] = tuple(entry.get("MERGE", ()))
    stage = Stage(**values)
    where = f"{file}: stage {stage.name!r}"
    if stage.kind not in KINDS:
        raise PipelineError(f"{where}: KIND {stage.kind!r}, expected one of {', '.join(KINDS)}")
    kinds = {other.name: other.kind for other in before}
    if stage.name in (stage.weights, stage.path):
        raise PipelineError(f"{where}: WEIGHTS or PATH is the stage itself")
    if stage.weights and not _is_weights(stage.weights, kinds):
        raise PipelineError(
            f"{where}: WEIGHTS {stage.weights!r} is neither an earlier training stage nor a file"
        )
    if kinds.get(stage.path, "search") != "search":
        raise PipelineError(f"{where}: PATH {stage.path!r} is a {kinds[stage.path]} stage")
    wrong = [name for name in stage.merge if kinds.get(name) not in FRAGMENTS]
    if wrong:
        raise PipelineError(f"{where}: MERGE {wrong}, expected earlier screen or gradient stages")
    if stage.random is not None and [kinds[n] for n in stage.merge].count("gradient") != 1:
        raise PipelineError(f"{where}: RANDOM needs one gradient stage in MERGE")
    if any(stage.name == other.name for other in before):
        raise PipelineError(f"{where}: NAME is used twice")
    for other in before:
        if _place(other) == _place(stage):
            raise PipelineError(
                f"{where}: works in the folder {_place(stage)!r} of stage {other.name!r}; give it "
                "another NAME or FOLDER"
            )
    if not os.path.isfile(os.path.join(os.path.dirname(file), stage.config)):
        raise PipelineError(f"{where}: CONFIG {stage.config!r} does not exist next to the file")
    return stage


def _place(stage: Stage) -> str:
    """Folder of a stage, relative to OUTPUT_DIR."""
    return os.path.normpath(stage.folder or stage.name)


def _is_weights(text: str, kinds: dict[str, str]) -> bool:
    if text in kinds:
        return kinds[text] != "search"
    return "://" in text or os.path.isfile(text)
