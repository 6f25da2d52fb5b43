"""Finds the mistakes of every stage of a pipeline before the first one starts.

What a stage will get from those before it is not there yet. In its place stand a path, a genotype
or a sub-space of the same space, and the shapes of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from detnas_d2.config.tools import load_config
from detnas_d2.data import register_datasets
from detnas_d2.engine.architectures import fix_path, searched_space
from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.engine.data_checks import check_classes, take_class_number
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.evolution_search import check_search, retrain_config
from detnas_d2.engine.gradient_search import (
    check_gradient_search,
    check_screening,
    hit_retrain_config,
)
from detnas_d2.engine.model_checks import Models, check_names, check_training, told
from detnas_d2.evaluation.build import check_validation
from detnas_d2.modeling import adapt_state_dict, find_supernet
from detnas_d2.modeling.detnas.backbone import SearchedBackbone
from detnas_d2.modeling.detnas.relaxed import RELAXED_DETNAS, RelaxedShuffleNet
from detnas_d2.modeling.hit.build import candidate_ops, part_specs
from detnas_d2.modeling.searchable_layers import relaxed_parts
from detnas_d2.modeling.weights_fit import check_fit, check_numbers, strip_shared_prefixes
from detnas_d2.pipeline.definition import FRAGMENTS, Pipeline, PipelineError, Stage
from detnas_d2.pipeline.disk import Need, need_of
from detnas_d2.search_space import get_space
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_network import get_hit_network
from detnas_d2.utils.errors import InputError


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
    plan = _Plan(pipeline)
    for stage in pipeline.stages:
        with _named(pipeline, stage):
            plan.check(stage, finished=stage.name in done)
            images = plan.config_of(stage).SOLVER.IMS_PER_BATCH
            if stage.kind != "search" and images % processes:
                raise InputError(
                    f"SOLVER.IMS_PER_BATCH is {images}: expected a multiple of the {processes} "
                    "processes (--num-gpus, --num-machines)"
                )
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
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.models = Models()
        self.needs: dict[str, Need] = {}
        self._configs: dict[str, CfgNode] = {}

    def check(self, stage: Stage, *, finished: bool) -> None:
        cfg = self.config_of(stage)
        fall_back_to_cpu(cfg)
        check_names(cfg)
        model = self.models.of(cfg)
        self._check_path(stage, cfg, model)
        self.needs[stage.name] = need_of(stage.kind, cfg, model)
        if not finished:
            register_datasets(cfg)
            if check_classes(cfg):
                model = self.models.of(cfg)
        else:
            take_class_number(cfg, self.pipeline.folder(stage.name))
        if stage.kind == "search":
            self._check_search(stage, cfg, model, finished=finished)
        else:
            check_training(cfg, model, evaluation=not finished)
        folder = os.path.dirname(self.pipeline.file_of(stage))
        if stage.kind == "screen":
            check_screening(cfg)
        elif stage.kind == "gradient":
            check_gradient_search(cfg)
            retrain = hit_retrain_config(cfg, folder)
            retrain.merge_from_list(_decoded(cfg, model))
            self.models.of(retrain)
        elif cfg.HIT_SEARCH.ARCH_START_ITER >= 0 and relaxed_parts(model):
            raise PipelineError(
                f"{self.pipeline.file}: stage {stage.name!r}: HIT_SEARCH.ARCH_START_ITER is "
                f"{cfg.HIT_SEARCH.ARCH_START_ITER}: expected -1, or KIND screen or gradient"
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
            source = self.pipeline.stage(name)
            fragment = os.path.join(self.pipeline.folder(name), FRAGMENTS[source.kind])
            if os.path.isfile(fragment):
                fragments.append(fragment)
            else:
                standins += self._result_of(source)
        cfg = load_config(
            self.pipeline.file_of(stage),
            [*standins, *stage.opts, *self.pipeline.opts],
            fragments=fragments,
            place="OPTS or command line",
        )
        if stage.path:
            space = get_space(cfg.MODEL.DETNAS.SPACE)
            cfg.MODEL.DETNAS.PATH = str(space.uniform_path(space.ops[0]))
        cfg.OUTPUT_DIR = self.pipeline.folder(stage.name)
        self.pipeline.share_cache(cfg)
        self._configs[stage.name] = cfg
        return cfg

    def _result_of(self, source: Stage) -> list[Any]:
        """KEY, VALUE that a screening or gradient search might find."""
        cfg = self.config_of(source)
        if source.kind == "gradient":
            return _decoded(cfg, self.models.of(cfg))
        (part,) = cfg.MODEL.HIT.SEARCHED_PARTS
        kept = list(candidate_ops(cfg, part))[: cfg.HIT_SEARCH.SCREENING.KEEP]
        return [f"MODEL.HIT.OPS.{part.upper()}", kept]

    def _check_path(self, stage: Stage, cfg: CfgNode, model: nn.Module) -> None:
        if stage.path and not any(isinstance(m, SearchedBackbone) for m in model.modules()):
            kind = "a supernet" if find_supernet(model) is not None else "a backbone without path"
            raise PipelineError(
                f"{self.pipeline.file}: stage {stage.name!r}: PATH {stage.path!r}, but "
                f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is {kind}; expected a searched "
                "backbone, e.g. build_detnas_fpn_backbone"
            )

    def _check_search(
        self, stage: Stage, cfg: CfgNode, model: nn.Module, *, finished: bool
    ) -> None:
        folder = os.path.dirname(self.pipeline.file_of(stage))
        if find_supernet(model) is None:
            raise PipelineError(
                f"{self.pipeline.file}: stage {stage.name!r}: MODEL.BACKBONE.NAME "
                f"{cfg.MODEL.BACKBONE.NAME} holds no supernet to search"
            )
        if not (stage.weights or cfg.MODEL.WEIGHTS):
            raise PipelineError(
                f"{self.pipeline.file}: stage {stage.name!r}: no WEIGHTS: expected the stage that "
                "trains the supernet, or a file"
            )
        check_search(cfg, folder, self.pipeline.opts)
        retrain = retrain_config(cfg, folder, self.pipeline.opts)
        space = searched_space(cfg)
        fix_path(retrain, space, str(space.path((0,) * len(space.cardinalities))))
        with told("SEARCH.RETRAIN_CONFIG"):
            check_names(retrain)
            self.models.of(retrain)
        if not finished:
            check_validation(cfg)

    def _check_weights(self, stage: Stage, cfg: CfgNode, model: nn.Module) -> None:
        source = self.pipeline.stage(stage.weights)
        name = stage.weights or cfg.MODEL.WEIGHTS
        if source is None and not name:
            return
        if source is None:
            name = _local(name)
            if name.endswith((".pkl", ".pyth")):  # matched by name when they are loaded
                return
        with told(f"WEIGHTS {name!r}"):
            if source is not None:
                state = self.models.of(self.config_of(source)).state_dict()
            else:
                state = _weights_in(name, model)
            try:
                check_fit(adapt_state_dict(state, model), model, whole=stage.kind == "search")
            except ValueError as error:
                raise PipelineError(
                    f"{self.pipeline.file}: stage {stage.name!r}: WEIGHTS {name!r}: {error}"
                ) from error


def _local(name: str) -> str:
    """The file of weights, fetched if it is an address."""
    try:
        file = PathManager.get_local_path(name)
    except Exception as error:  # of the many that handlers of addresses raise
        raise InputError(f"WEIGHTS {name!r} cannot be fetched: {error}") from error
    if not os.path.isfile(file):
        raise InputError(f"WEIGHTS {name!r}: no such file")
    return file


def _weights_in(file: str, model: nn.Module) -> dict[str, Tensor]:
    state = read_checkpoint(file)["model"]
    check_numbers(state)
    return strip_shared_prefixes(state, model)


def _decoded(cfg: CfgNode, model: nn.Module) -> list[Any]:
    """KEY, VALUE of a network that a gradient search over ``cfg`` might find."""
    network = get_hit_network(cfg.MODEL.HIT.NETWORK)
    searched = set(cfg.MODEL.HIT.SEARCHED_PARTS)
    specs = part_specs(cfg)
    parts = {part: tuple(layer.ops[0] for layer in specs[part]) for part in searched & set(specs)}
    genotype = Genotype(network, **parts, levels=len(cfg.MODEL.FPN.IN_FEATURES))
    opts: list[Any] = ["MODEL.HIT.NETWORK", network.name, "MODEL.HIT.SEARCHED_PARTS", []]
    for part in genotype.parts:
        opts += [f"MODEL.HIT.GENOTYPE.{part.upper()}", genotype.part_text(part)]
    relaxed = next((m for m in model.modules() if isinstance(m, RelaxedShuffleNet)), None)
    if relaxed is not None:
        opts += ["MODEL.DETNAS.PATH", str(relaxed.space.uniform_path(relaxed.space.ops[0]))]
        at = "BACKBONE.NAME" if cfg.MODEL.BACKBONE.NAME == RELAXED_DETNAS else "HIT.BOTTOM_UP"
        opts += [f"MODEL.{at}", "build_detnas_backbone"]
    return opts
