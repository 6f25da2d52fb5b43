"""Finds the mistakes of every stage of a pipeline before the first one starts.

What a stage will get from those before it is not there yet. In its place stand a path, a genotype
or a sub-space of the same space, and the shapes of the weights.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from detnas_d2.data import register_datasets
from detnas_d2.engine.architectures import decoded_example, fix_path
from detnas_d2.engine.checks.data import (
    ClassList,
    check_classes,
    class_list,
    class_list_problem,
    take_class_number,
)
from detnas_d2.engine.checks.disk import Need, need_of
from detnas_d2.engine.checks.models import Models, check_names, told
from detnas_d2.engine.checks.run import check_run, check_weights, weights_warnings
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.modeling import find_supernet, is_supernet
from detnas_d2.modeling.detnas.backbone import DecodedBackbone
from detnas_d2.modeling.hit.build import candidate_ops
from detnas_d2.modeling.searchable_layers import FixedLayers
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.stage_data import read_classes
from detnas_d2.pipeline.stages import FRAGMENTS, PipelineError, Stage
from detnas_d2.search_space.hit_space import GenotypeSpace
from detnas_d2.search_space.space import PathSpace
from detnas_d2.utils.errors import InputError

logger = logging.getLogger(__name__)


def check_stages(pipeline: Pipeline, done: set[str], *, processes: int = 1) -> dict[str, Need]:
    """Checks every stage: its model, optimizer, schedule, search, data, evaluation, weights.

    Args:
        done: names of stages that are finished, whose data and weights are not looked at again.
        processes: on which stages will run, all machines together.

    Returns:
        name of every stage -> the disk that it needs in all.

    Raises:
        PipelineError: naming the file, the stage, and what is wrong.
    """
    plan = _Plan(pipeline, processes)
    for stage in pipeline.stages:
        with _named(pipeline, stage):
            plan.check(stage, finished=stage.name in done)
    return plan.needs


@contextmanager
def _named(pipeline: Pipeline, stage: Stage) -> Iterator[None]:
    try:
        with told("cannot be planned"):
            yield
    except PipelineError:
        raise
    except ValueError as error:
        raise PipelineError(f"{pipeline.file}: stage {stage.name!r}: {error}") from error


class _Plan:
    def __init__(self, pipeline: Pipeline, processes: int) -> None:
        self.pipeline, self.processes = pipeline, processes
        self.models = Models()
        self.needs: dict[str, Need] = {}
        self._configs: dict[str, CfgNode] = {}
        self._spaces: dict[str, PathSpace] = {}
        self._classes: dict[str, ClassList | None] = {}

    def check(self, stage: Stage, *, finished: bool) -> None:
        cfg = self.config_of(stage)
        fall_back_to_cpu(cfg)
        check_names(cfg)
        self._check_path(stage, cfg, self.models.of(cfg))
        if finished:
            take_class_number(cfg, self.pipeline.folder(stage.name))
            self._classes[stage.name] = read_classes(self.pipeline.folder(stage.name))
        else:
            register_datasets(cfg)
            check_classes(cfg)
            self._classes[stage.name] = class_list(cfg)
            self._compare_classes(stage)
        model = self.models.of(cfg)
        self.needs[stage.name] = need_of(stage.kind, cfg, model)
        if stage.kind == "search" and not (stage.weights or cfg.MODEL.WEIGHTS):
            raise InputError("no WEIGHTS: expected the stage that trains the supernet, or a file")
        check_run(
            cfg,
            stage.kind,
            self.models,
            config_dir=os.path.dirname(self.pipeline.file_of(stage)),
            opts=self.pipeline.opts,
            data=not finished,
            processes=self.processes,
        )
        if not finished:
            self._check_weights(stage, cfg, model)

    def config_of(self, stage: Stage) -> CfgNode:
        """:meth:`Pipeline.config_of` with stand-ins for what is not there yet."""
        if stage.name in self._configs:
            return self._configs[stage.name]
        fragments: list[str] = []
        standins: list[Any] = []
        for name in stage.merge:
            source = self.pipeline.known_stage(name)
            if fragment := self._fragment_of(source):
                fragments.append(fragment)
            else:
                standins += self._result_of(source)
        place = "OPTS or command line"
        cfg = self.pipeline.merged(stage, fragments, standins, place=place)
        if stage.path:
            self._fix_path(stage, cfg)
        self._configs[stage.name] = cfg
        return cfg

    def _fix_path(self, stage: Stage, cfg: CfgNode) -> None:
        """As :func:`fix_path` does, with an example of a path that is not known yet."""
        pipeline, search = self.pipeline, self.pipeline.search_for(stage)
        space = pipeline.space_of(stage, cfg, None if search is None else self.config_of(search))
        made_of = [one for one in pipeline.sources_of(stage) if one.kind in FRAGMENTS]
        known = not stage.like and pipeline.stage(stage.path) is None
        if known and all(map(self._fragment_of, made_of)):
            path = pipeline.path_of(stage, cfg)
        else:
            path = space.first_path()
        fix_path(cfg, space, str(path))
        self._spaces[stage.name] = space

    def _fragment_of(self, source: Stage) -> str:
        """File of what a source found, for the configs of stages after it; "" if it is missing."""
        file = os.path.join(self.pipeline.folder(source.name), FRAGMENTS[source.kind])
        return file if os.path.isfile(file) else ""

    def _result_of(self, source: Stage) -> list[Any]:
        """KEY, VALUE that a screening or gradient search might find."""
        cfg = self.config_of(source)
        if source.kind == "gradient":
            return decoded_example(cfg, self.models.of(cfg))
        (part,) = cfg.MODEL.HIT.SEARCHABLE_PARTS
        kept = list(candidate_ops(cfg, part))[: cfg.HIT_SEARCH.SCREENING.KEEP]
        return [f"MODEL.HIT.OPS.{part.upper()}", kept]

    def _check_path(self, stage: Stage, cfg: CfgNode, model: nn.Module) -> None:
        if not stage.path:
            return
        where = f"{self.pipeline.file}: stage {stage.name!r}: PATH {stage.path!r}, but "
        space = self._spaces[stage.name]
        if isinstance(space, GenotypeSpace):
            parts = {m.part for m in model.modules() if isinstance(m, FixedLayers)}
            missing = [part for part in space.split(space.first_path()) if part not in parts]
            if missing:
                raise PipelineError(
                    f"{where}{stage.config} has no {' and no '.join(missing)} of a Hit-Detector; "
                    f"expected the model of the search, whose space is {space.name!r}"
                )
        elif not any(isinstance(m, DecodedBackbone) for m in model.modules()):
            kind = "a supernet" if find_supernet(model) is not None else "a backbone without path"
            raise PipelineError(
                f"{where}MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is {kind}; expected a "
                "searched backbone, e.g. build_detnas_fpn_backbone"
            )

    def _compare_classes(self, stage: Stage) -> None:
        """A search scores with what the last layers of its supernet have learned. Other stages may
        start from other classes on purpose, so that a warning has to do.
        """
        own = self._classes[stage.name]
        for source in self.pipeline.sources_of(stage):
            problem = class_list_problem(own, self._classes.get(source.name))
            if not problem:
                continue
            other = f"{source.config} of stage {source.name!r}, which it starts from"
            text = f"{stage.config}: {problem[0]}, but {other}: {problem[1]}"
            remedy = "write the same CLASSES into DATASETS.REGISTER of both files"
            if stage.kind == "search" and source.name == stage.weights:
                raise InputError(f"{text}; {remedy}")
            logger.warning(
                "%s: stage %r: %s; unless other classes are meant, %s",
                self.pipeline.file,
                stage.name,
                text,
                remedy,
            )
            return

    def _check_weights(self, stage: Stage, cfg: CfgNode, model: nn.Module) -> None:
        source = self.pipeline.stage(stage.weights)
        name = stage.weights or cfg.MODEL.WEIGHTS
        if not name:
            return
        state = None
        if source is not None:
            state = self.models.of(self.config_of(source)).state_dict()
        whole = stage.kind in ("search", "evaluate")
        found = check_weights("WEIGHTS", name, model, whole=whole, state=state)
        for text in weights_warnings(cfg, found):
            logger.warning("%s: stage %r: %s", self.pipeline.file, stage.name, text)
        inherits = source is not None and source.kind == "search"
        if stage.kind == "evaluate" and not inherits and is_supernet(found):
            raise InputError(
                f"WEIGHTS {name!r} are a supernet's, whose BatchNorm statistics mix all paths; "
                "expected those of a search (its best path's) or of a trained network"
            )
