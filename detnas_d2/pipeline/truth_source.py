"""What is trained alone for a truth set, from a pipeline's file or from the config of a search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode

from detnas_d2.config.reading import read_yaml
from detnas_d2.config.resolutions import at_own_resolution
from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import is_relaxed, searchable_backbone
from detnas_d2.engine.outlook import work_of, works_of
from detnas_d2.engine.plan import retrain_config
from detnas_d2.pipeline.definition import Pipeline, read_pipeline
from detnas_d2.pipeline.stages import FRAGMENTS, PipelineError, Stage
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class TruthSource:
    """Configs of a truth set.

    Attributes:
        name: of the stage or file that trains a network, for people.
        search: config of the search: its space, limits and metric, its supernet's weights; for
            images of one size, INPUT.MIN_SIZE_TEST.
        trainings: of a network, one after the other: each starts from the weights of the one
            before, the last one is evaluated. Without path; OUTPUT_DIR is not theirs.
        supernets: configs that train the supernet, one after the other.
    """

    name: str
    search: CfgNode
    trainings: tuple[CfgNode, ...]
    supernets: tuple[CfgNode, ...]

    def supernet_cost(self) -> float:
        """What the supernet's training costs, in trainings of one network (megapixels)."""
        return sum(works_of(cfg, "train")[0] for cfg in self.supernets) / self._training()

    def search_cost(self) -> float:
        """What the search costs, likewise."""
        return work_of(self.search, "search") / self._training()

    def _training(self) -> float:
        return sum(work_of(cfg, "train") for cfg in self.trainings)


def read_source(file: str, opts: Sequence[str] = (), truth_stage: str = "") -> TruthSource:
    """The source that a file names: a pipeline, or a search, whose RETRAIN_CONFIG is trained.

    Of a pipeline it is the first search, and the first training that the search's path feeds and
    that does not start from a supernet, or the stage ``truth_stage``. A stage that starts from
    another one's training of the same path (a pre-training) is preceded by it.

    Args:
        opts: KEY, VALUE overrides of every config.

    Raises:
        InputError: there is no such stage, or it starts from a supernet.
    """
    content = read_yaml(file).data
    if isinstance(content, dict) and "STAGES" in content:
        return _of_pipeline(read_pipeline(file, tuple(opts)), truth_stage)
    if truth_stage:
        raise InputError(
            f"--truth-stage {truth_stage!r}: {file} has no STAGES; expected a pipeline"
        )
    search = at_own_resolution(load_config(file, opts))
    training = retrain_config(search, os.path.dirname(file), opts)
    return TruthSource(search.SEARCH.RETRAIN_CONFIG or file, search, (training,), (search,))


def _of_pipeline(pipeline: Pipeline, truth_stage: str) -> TruthSource:
    search = next((stage for stage in pipeline.stages if stage.kind == "search"), None)
    if search is None:
        raise PipelineError(f"{pipeline.file}: no stage of KIND search, whose space is sampled")
    stage = _named(pipeline, truth_stage) if truth_stage else _fed(pipeline, search)
    cfg = at_own_resolution(pipeline.config_of(search))
    chain = [_config(pipeline, link) for link in _chain(pipeline, stage)]
    for training in chain:
        if training.MODEL.DETNAS.SPACE != cfg.MODEL.DETNAS.SPACE:
            raise PipelineError(
                f"{pipeline.file}: stage {stage.name!r} has MODEL.DETNAS.SPACE "
                f"{training.MODEL.DETNAS.SPACE}, the search {search.name!r} "
                f"{cfg.MODEL.DETNAS.SPACE}"
            )
    supernets = tuple(pipeline.begin_of(link) for link in _below(pipeline, search))
    return TruthSource(stage.name, cfg, tuple(chain), supernets)


def _below(pipeline: Pipeline, stage: Stage) -> list[Stage]:
    """The training stages whose weights a stage starts from, first one first."""
    source = pipeline.stage(stage.weights)
    if source is None or source.kind != "train":
        return []
    return [*_below(pipeline, source), source]


def _named(pipeline: Pipeline, name: str) -> Stage:
    stage = pipeline.stage(name)
    if stage is None or stage.kind != "train" or holds_supernet(pipeline.begin_of(stage)):
        names = [s.name for s in pipeline.stages if s.kind == "train"]
        raise PipelineError(
            f"{pipeline.file}: --truth-stage {name!r}: expected a stage that trains a network, one "
            f"of {', '.join(names)}"
        )
    return stage


def _fed(pipeline: Pipeline, search: Stage) -> Stage:
    fed = [s for s in pipeline.stages if s.kind == "train" and s.path == search.name]
    alone = [stage for stage in fed if _supernet_below(pipeline, stage) is None]
    feeding = {stage.weights for stage in alone}
    alone = [stage for stage in alone if stage.name not in feeding]  # a pre-training is no end
    if not alone:
        names = ", ".join(stage.name for stage in fed) or "none"
        raise PipelineError(
            f"{pipeline.file}: no stage trains the path of {search.name!r} from weights of its own "
            f"(with PATH {search.name}: {names}, from a supernet's), as users will train what is "
            "found; add a stage without WEIGHTS, or name one by --truth-stage"
        )
    return alone[0]


def _supernet_below(pipeline: Pipeline, stage: Stage) -> str | None:
    """The stage of a supernet, or of a search, that a stage's weights come from."""
    source = pipeline.stage(stage.weights)
    if source is None:
        return None
    if source.kind != "train" or holds_supernet(pipeline.begin_of(source)):
        return source.name
    return _supernet_below(pipeline, source)


def holds_supernet(cfg: CfgNode) -> bool:
    """Whether a config builds all candidates at once."""
    sampled = bool(cfg.MODEL.HIT.SEARCHABLE_PARTS)
    return bool(searchable_backbone(cfg)) or is_relaxed(cfg) or sampled


def _chain(pipeline: Pipeline, stage: Stage) -> list[Stage]:
    """The stages that train a network of one path, the given one last."""
    supernet = _supernet_below(pipeline, stage)
    if supernet is not None:
        raise PipelineError(
            f"{pipeline.file}: stage {stage.name!r} starts from the weights of {supernet!r}, a "
            "supernet: a truth set needs trainings from the weights that users start from; name "
            "another by --truth-stage"
        )
    return [*_below(pipeline, stage), stage]


def _config(pipeline: Pipeline, stage: Stage) -> CfgNode:
    """The config of a training stage without path, and without weights of another stage."""
    place = f"{pipeline.file}: stage {stage.name!r}: OPTS or command line"
    fragments = [
        os.path.join(pipeline.folder(name), FRAGMENTS[pipeline.known_stage(name).kind])
        for name in stage.merge
    ]
    cfg = pipeline.merged(stage, fragments, place=place)
    if pipeline.stage(stage.weights) is not None:
        cfg.MODEL.WEIGHTS = ""
    elif stage.weights:
        cfg.MODEL.WEIGHTS = stage.weights
    return cfg
