"""All stages of an experiment from one YAML file; finished stages are skipped.

.. code-block:: yaml

    OUTPUT_DIR: ./output/demo
    STAGES:
      - {NAME: supernet, KIND: train, CONFIG: supernet.yaml}
      - {NAME: search, KIND: search, CONFIG: search.yaml, WEIGHTS: supernet}
      - {NAME: inherited, KIND: evaluate, CONFIG: retrain.yaml, WEIGHTS: search, PATH: search}
      - {NAME: searched, KIND: train, CONFIG: retrain.yaml, WEIGHTS: supernet, PATH: search}
      - {NAME: shufflenet, KIND: train, CONFIG: retrain.yaml, PATH: "uniform 3x3"}
      - {NAME: random, KIND: train, CONFIG: retrain.yaml, PATH: random, REPEAT: 5}
    TABLE: [searched, inherited, shufflenet, random]

The keys of a stage are described in :mod:`stages`. TABLE lists rows of the table printed at the
end; COMPARE those of them (the first by default) whose differences to the others stand below it.
TABLES, with a paper's numbers next to those measured, are described in :mod:`tables`, SEEDS, which
runs everything several times, in :mod:`experiment`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.reading import read_yaml
from detnas_d2.config.tools import load_config
from detnas_d2.data.datasets.registration import CACHE_FOLDER
from detnas_d2.engine.architectures import (
    fix_path,
    genotype_of,
    has_detnas_backbone,
    is_sampled,
    random_genotype,
    searched_space,
)
from detnas_d2.engine.checkpoint import FINAL
from detnas_d2.engine.checks.data import take_class_number
from detnas_d2.engine.inherited import INHERITED_FILE, member_file
from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.pipeline.config_checks import check_baselines, check_config
from detnas_d2.pipeline.random_paths import random_path, random_proposals
from detnas_d2.pipeline.stages import (
    FRAGMENTS,
    OWN_SEED_STEP,
    SEED_STEP,
    PipelineError,
    Stage,
    place_of,
    read_stages,
    split_override,
)
from detnas_d2.search.front_file import FRONT_FILE, best_of, read_front
from detnas_d2.search.history import RECORDS_FILE, History
from detnas_d2.search_space import Path, space_of
from detnas_d2.search_space.hit_space import GenotypeSpace
from detnas_d2.search_space.space import PathSpace

RESULTS = {
    **{kind: (file,) for kind, file in FRAGMENTS.items()},
    "search": (RECORDS_FILE, FRONT_FILE),
}
"""Kind of a stage -> the files that configs of later stages take up."""


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline file.

    Attributes:
        table, compare: rows; of the table, and whose differences are printed.
        opts: overrides of every stage.
        seed: one of SEEDS, None without.
        data_dir: where derived data lie.
    """

    file: str
    output_dir: str
    stages: tuple[Stage, ...]
    table: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    opts: tuple[str, ...] = ()
    seed: int | None = None
    data_dir: str = ""
    _begun: dict[str, CfgNode] = field(default_factory=dict, repr=False, compare=False)
    _resolved: dict[str, tuple[Any, CfgNode]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _spaces: dict[str, tuple[Any, PathSpace]] = field(
        default_factory=dict, repr=False, compare=False
    )

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
        return os.path.normpath(os.path.join(self.output_dir, place_of(stage) if stage else name))

    def file_of(self, stage: Stage) -> str:
        """Config file of a stage."""
        return os.path.join(os.path.dirname(self.file), stage.config)

    def sources_of(self, stage: Stage) -> list[Stage]:
        """The stages whose results a stage starts from."""
        names = dict.fromkeys((stage.weights, stage.path, stage.like, *stage.merge))
        if (search := self._search_of_space(stage)) is not None:
            names |= dict.fromkeys(search.merge)  # which its space is made of
        return [source for name in names if (source := self.stage(name)) is not None]

    def search_for(self, stage: Stage) -> Stage | None:
        """The search that a stage's path is of, drawn like or limited by: that of PATH or LIKE, or
        the first one.
        """
        return self.stage(stage.path) or self.stage(stage.like) or self._first_search()

    def _first_search(self) -> Stage | None:
        return next((stage for stage in self.stages if stage.kind == "search"), None)

    def other_searches(self, search: Stage) -> list[Stage]:
        """Searches besides one stage, of whatever supernet."""
        return [stage for stage in self.stages if stage.kind == "search" and stage != search]

    def begin_of(self, stage: Stage) -> CfgNode:
        """The stage's file with all overrides, without what stages before it find."""
        if stage.name not in self._begun:
            opts = self._overrides(stage)
            cfg = load_config(self.file_of(stage), opts, place="OPTS or command line")
            self._begun[stage.name] = cfg
        return self._begun[stage.name].clone()

    def config_of(self, stage: Stage) -> CfgNode:
        """The stage's config, its file and all overrides merged, paths and weights filled in.

        Resolved once, and again when a search or screening of the pipeline has found more.
        """
        found = self._found()
        known = self._resolved.get(stage.name)
        if known is None or known[0] != found:
            known = self._resolved[stage.name] = found, self._resolve(stage)
        return known[1].clone()

    def _found(self) -> list[tuple[int, int] | None]:
        """Time and size of the results that configs of later stages take up."""
        return [
            _stamp(os.path.join(self.folder(stage.name), file))
            for stage in self.stages
            for file in RESULTS.get(stage.kind, ())
        ]

    def _resolve(self, stage: Stage) -> CfgNode:
        fragments = [
            os.path.join(self.folder(name), FRAGMENTS[self.known_stage(name).kind])
            for name in stage.merge
        ]
        place = f"{self.file}: stage {stage.name!r}: OPTS or command line"
        cfg = self.merged(stage, fragments, place=place)
        if stage.random is not None:
            self._draw_genotype(stage, cfg)
        if stage.whole:  # each member has its own
            return cfg
        if stage.weights:
            cfg.MODEL.WEIGHTS = self._weights_of(stage)
        if stage.path:
            path = self.path_of(stage, cfg)
            fix_path(cfg, path.space, str(path))
        return cfg

    def _weights_of(self, stage: Stage) -> str:
        known = self.stage(stage.weights)
        if known is None:
            return stage.weights
        file = f"{FINAL}.pth"
        if known.kind == "search":
            file = self._found_by(known, stage)[1]
        return os.path.join(self.folder(stage.weights), file)

    def merged(
        self, stage: Stage, fragments: list[str], standins: Sequence[Any] = (), *, place: str
    ) -> CfgNode:
        """The stage's file with ``fragments``, KEY, VALUE ``standins`` and all overrides, its seed
        and folders; ``place`` names the overrides in errors. All stages share derived data.
        """
        if fragments or standins:
            opts = [*standins, *self._overrides(stage)]
            cfg = load_config(self.file_of(stage), opts, fragments=fragments, place=place)
        else:
            cfg = self.begin_of(stage)
        cfg.SEED += SEED_STEP * stage.number
        cfg.OUTPUT_DIR = self.folder(stage.name)
        if not cfg.DATASETS.CACHE_DIR:
            cfg.DATASETS.CACHE_DIR = os.path.join(self.data_dir or self.output_dir, CACHE_FOLDER)
        return cfg

    def _overrides(self, stage: Stage) -> list[str]:
        """KEY, VALUE of a stage; seeds of its own differ between the runs of SEEDS too."""
        overrides = [*stage.opts, *self.opts]
        own = dict(zip(stage.opts[::2], stage.opts[1::2], strict=False))
        for key in ("SEED", "SEARCH.SEED"):
            if self.seed is not None and own.get(key, "").isdigit():
                overrides += [key, str(int(own[key]) + OWN_SEED_STEP * self.seed)]
        return overrides

    def _draw_genotype(self, stage: Stage, cfg: CfgNode) -> None:
        sources = [self.known_stage(name) for name in stage.merge]
        (source,) = [source for source in sources if source.kind == "gradient"]
        assert stage.random is not None
        seed = stage.random + SEED_STEP * stage.number + OWN_SEED_STEP * (self.seed or 0)
        genotype = random_genotype(self.config_of(source), seed, genotype_of(cfg).parts)
        for part in genotype.parts:
            cfg.MODEL.HIT.GENOTYPE[part.upper()] = genotype.part_text(part)

    def limits_for(self, cfg: CfgNode) -> CfgNode:
        """The config whose SEARCH node limits and counts costs: the first search's, or ``cfg``."""
        search = self._first_search()
        return cfg if search is None else self.counted(search)

    def space_of(self, stage: Stage, cfg: CfgNode, search_cfg: CfgNode | None = None) -> PathSpace:
        """The space of a stage's path: that of the config, or of the Hit-Detectors of the search
        that the path is of. One that is written out, or random and like no search's, is of
        the config's if that has a backbone of DetNAS.

        Args:
            search_cfg: of :meth:`search_for`; default: as it is on disk.
        """
        search = self._search_of_space(stage)
        if search is None:
            return space_of(cfg)
        space = self._space_of_search(search) if search_cfg is None else searched_space(search_cfg)
        return space if isinstance(space, GenotypeSpace) else space_of(cfg)

    def _search_of_space(self, stage: Stage) -> Stage | None:
        """The search whose space a stage's path may be of, see :meth:`space_of`."""
        search = self.search_for(stage) if stage.path else None
        if search is None or search.name in (stage.path, stage.like):
            return search
        return None if has_detnas_backbone(self.begin_of(stage)) else search

    def _space_of_search(self, search: Stage) -> PathSpace:
        """The searched space, made once: the layers of a Hit-Detector are read off its model."""
        found = self._found()
        known = self._spaces.get(search.name)
        if known is None or known[0] != found:
            known = self._spaces[search.name] = found, searched_space(self.config_of(search))
        return known[1]

    def path_of(self, stage: Stage, cfg: CfgNode) -> Path:
        """The path of a training stage."""
        space = self.space_of(stage, cfg)
        source = self.stage(stage.path)
        if source is not None:
            return space.path(self._found_by(source, stage)[0].path)
        word, _, argument = stage.path.partition(" ")
        if word == "uniform":
            return space.uniform_path(argument)
        if word != "random":
            return space.path(stage.path)
        like = self.stage(stage.like)
        model = None if like is None else space.path(self._found_by(like, stage)[0].path)
        return random_path(stage, self.random_proposals(stage, cfg), cfg.SEED, model)

    def random_proposals(self, stage: Stage, cfg: CfgNode) -> Proposals:
        """See :func:`random_proposals`: limits are those of LIKE, or of the first search."""
        search = self.search_for(stage)
        limits = cfg if search is None else self.counted(search)
        return random_proposals(stage, limits, self.space_of(stage, cfg))

    def counted(self, stage: Stage) -> CfgNode:
        """The config of a stage that costs are counted for. Where they are of whole detectors it
        has the number of classes that its run has found in the data, as soon as it has begun.
        """
        cfg, search = self.config_of(stage), self.search_for(stage)
        if is_sampled(cfg if search is None else self.begin_of(search)):
            take_class_number(cfg, self.folder(stage.name))
        return cfg

    def _found_by(self, search: Stage, stage: Stage) -> tuple[CandidateRecord, str]:
        """What of a search a stage takes, the best path or a member of the front, and the file with
        its weights, relative to the folder of the search.
        """
        folder = self.folder(search.name)
        records = History.read(folder)
        if stage.member is None:
            best = best_of(folder, records)
            if best is None:
                raise PipelineError(f"stage {stage.name}: the search in {folder} has no candidate")
            return best, INHERITED_FILE
        front, (number, count) = read_front(folder, records), stage.member
        if count > len(front.members):
            raise PipelineError(
                f"{self.file}: stage {stage.name!r}: member {number} of {count}, but the front of "
                f"{search.name!r} has {len(front.members)}; set REPEAT to that or less, there and "
                f"wherever 'front {search.name}' stands"
            )
        member = front.spread(count)[number - 1]
        return front.members[member - 1], member_file(member)


def read_pipeline(
    file: str, opts: tuple[str, ...] = (), *, seed: int | None = None, data_dir: str = ""
) -> Pipeline:
    """Parses and checks a pipeline file.

    Args:
        opts: KEY VALUE overrides for every stage; OUTPUT_DIR is the pipeline's own.
        seed: of this run (``SEED`` and ``SEARCH.SEED`` of every stage), if there are several.
        data_dir: where derived data lie; OUTPUT_DIR by default.

    Raises:
        PipelineError: naming the file, the stage and the key.
    """
    data = read_yaml(file).data
    if not isinstance(data, dict) or not isinstance(data.get("STAGES"), list) or not data["STAGES"]:
        raise PipelineError(f"{file}: expected a mapping with OUTPUT_DIR and a list STAGES")
    unknown = set(data) - {"OUTPUT_DIR", "SEEDS", "STAGES", "TABLE", "COMPARE", "TABLES"}
    if unknown:
        raise PipelineError(f"{file}: unknown keys {sorted(unknown)}")
    stages = read_stages(file, data["STAGES"])
    asked, rest = split_override(file, opts, "OUTPUT_DIR")
    output = data.get("OUTPUT_DIR", "./output/pipeline") if asked is None else asked
    if not isinstance(output, str) or not output.strip() or "\0" in output:
        raise PipelineError(f"{file}: OUTPUT_DIR is {output!r}: expected the name of a folder")
    table = _rows(file, data, "TABLE", [])
    rows = {stage.row or stage.name for stage in stages}
    if set(table) - rows:
        raise PipelineError(f"{file}: TABLE names {sorted(set(table) - rows)}, no stage has it")
    compare = _rows(file, data, "COMPARE", list(table[:1]))
    if set(compare) - set(table):
        raise PipelineError(f"{file}: COMPARE is {list(compare)}: expected rows of TABLE")
    if seed is not None:
        rest = (*rest, "SEED", str(seed), "SEARCH.SEED", str(seed))
    pipeline = Pipeline(file, output, stages, table, compare, rest, seed, data_dir)
    for stage in stages:
        check_config(pipeline, stage)
    check_baselines(pipeline)
    return pipeline


def _rows(file: str, data: dict[str, Any], key: str, default: list[str]) -> tuple[str, ...]:
    rows = data.get(key, default)
    rows = [rows] if isinstance(rows, str) else rows
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, str) for row in rows):
        raise PipelineError(f"{file}: {key} is {rows!r}: expected a list of rows")
    return tuple(rows)


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
