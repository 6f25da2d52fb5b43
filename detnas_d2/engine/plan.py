"""Plans of searches: all that a config says of one, read once and checked before it starts."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.resolutions import check_resizable
from detnas_d2.config.tools import base_config, load_config
from detnas_d2.engine.architectures import (
    decode_backbones,
    fix_path,
    is_relaxed,
    searchable_backbone,
)
from detnas_d2.engine.checks.data import sharing_images
from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation.settings import EvaluationSettings, resized_settings
from detnas_d2.search_space import space_of
from detnas_d2.utils.errors import InputError

BEST_FILE = "best.yaml"
"""The network that a search found, a config for ``train_net.py``."""


@dataclass(frozen=True)
class SearchPlan:
    """Search for the best path of a trained supernet.

    Attributes:
        proposals: which candidates there are.
        evaluation: how they are scored.
        resized: the same at each resolution, if they are searched.
        trained_on: datasets that the supernet was trained on.
        weights: file of the supernet's.
    """

    proposals: Proposals
    evaluation: EvaluationSettings
    resized: Mapping[int, EvaluationSettings]
    trained_on: tuple[str, ...]
    weights: str
    _retrain: CfgNode
    _decoded: CfgNode

    @classmethod
    def from_config(
        cls, cfg: CfgNode, config_dir: str = "", opts: Sequence[str] = ()
    ) -> SearchPlan:
        """The plan of a config; its datasets need not be registered.

        Args:
            config_dir, opts: see :func:`retrain_config`.

        Raises:
            InputError: a key is wrong, naming it.
        """
        return cls(
            proposals=Proposals.from_config(cfg),
            evaluation=EvaluationSettings.from_config(cfg),
            resized=resized_settings(cfg),
            trained_on=tuple(cfg.DATASETS.TRAIN),
            weights=cfg.MODEL.WEIGHTS,
            _retrain=retrain_config(cfg, config_dir, opts),
            _decoded=decoded_config(cfg),
        )

    def measured(self) -> SearchPlan:
        """The same with the latencies that are limited (collective)."""
        return replace(self, proposals=self.proposals.measured())

    def check(self, *, data: bool = True) -> None:
        """Compares limits, numbers and, with ``data``, the datasets with each other.

        A latency that is not measured yet is not compared with its limit.

        Raises:
            InputError: naming what cannot be satisfied, or on what no score is defined.
        """
        self.proposals.check()
        if data:
            self.evaluation.check()

    def warnings(self) -> list[str]:
        """A text for each limit that excludes nothing, and for each dataset that the candidates'
        scores must not share images with, but do.
        """
        validation = self.evaluation.validation
        return self.proposals.warnings() + [
            f"Candidates are scored on {validation!r}, of which images are in {name!r}, {why}"
            for names, why in (
                (
                    self.trained_on,
                    "which the supernet is trained on: scores favour what it memorised",
                ),
                (
                    self._retrain.DATASETS.TEST,
                    "the test set: the searched network's results are biased",
                ),
            )
            for name, _ in sharing_images(names, [validation])
        ]

    def completed(self, path: str) -> CfgNode:
        """The config of the network of one path, for ``train_net.py``."""
        retrain = self._retrain.clone()
        fix_path(retrain, self.proposals.space, path)
        return retrain

    def inherited(self, path: str, weights: str, folder: str = "inherited") -> CfgNode:
        """The config of the network of one path with its ``weights`` out of the supernet.

        Neck, heads and test-time settings are the search's, so that evaluating it as it stands
        gives the path's fitness.

        Args:
            folder: OUTPUT_DIR, relative to the search's.
        """
        decoded = self._decoded.clone()
        fix_path(decoded, self.proposals.space, path)
        decoded.DATASETS.TEST = (self.evaluation.validation,)
        decoded.MODEL.WEIGHTS = weights
        decoded.OUTPUT_DIR = os.path.join(self.proposals.output_dir, folder)
        return decoded


@dataclass(frozen=True)
class GradientPlan:
    """Search of a relaxed model by gradient, which GradientSearchTrainer trains.

    Attributes:
        arch_start: iteration from which architecture parameters learn.
        max_iter: iterations of the training.
        learned: datasets that weights and architecture parameters learn from.
    """

    arch_start: int
    max_iter: int
    learned: tuple[str, ...]
    _retrain: CfgNode

    @classmethod
    def from_config(
        cls, cfg: CfgNode, config_dir: str = "", opts: Sequence[str] = ()
    ) -> GradientPlan:
        """The plan of a config; see :func:`retrain_config` for arguments and errors.

        Raises:
            InputError: see :func:`check_one_size`.
        """
        check_one_size(cfg)
        return cls(
            arch_start=cfg.HIT_SEARCH.ARCH_START_ITER,
            max_iter=cfg.SOLVER.MAX_ITER,
            learned=(*cfg.DATASETS.TRAIN, *cfg.HIT_SEARCH.ARCH_TRAIN),
            _retrain=retrain_config(cfg, config_dir, opts),
        )

    def check(self) -> None:
        """Raises InputError if architecture parameters never learn."""
        if not 0 <= self.arch_start < self.max_iter:
            raise InputError(
                f"HIT_SEARCH.ARCH_START_ITER {self.arch_start}: a search needs one from 0 to "
                f"SOLVER.MAX_ITER {self.max_iter}"
            )

    def warnings(self) -> list[str]:
        """A text for each test set that the search learns from."""
        tested = sharing_images(self._retrain.DATASETS.TEST, self.learned)
        return [
            f"The search learns from images of {name!r}, the test set: the searched network's "
            "results are biased"
            for name in dict.fromkeys(name for name, _ in tested)
        ]

    def completed(self, opts: Sequence[Any]) -> CfgNode:
        """The config of the network that KEY, VALUE of ``opts`` decode, for ``train_net.py``."""
        retrain = self._retrain.clone()
        retrain.merge_from_list(list(opts))
        return retrain


def check_one_size(cfg: CfgNode) -> None:
    """Raises InputError if sizes of images are to be searched, which relaxed models do not."""
    if cfg.SEARCH.RESOLUTIONS:
        raise InputError(
            f"SEARCH.RESOLUTIONS {list(cfg.SEARCH.RESOLUTIONS)}: searches by gradient, and "
            "screenings, have images of one size; expected [], or MODEL.HIT.STRATEGY sampling, in "
            "a pipeline in the OPTS of its supernet and its search"
        )


def retrain_config(cfg: CfgNode, config_dir: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config that ``best.yaml`` is made of: ``RETRAIN_CONFIG`` of ``SEARCH`` (of ``HIT_SEARCH``
    for a relaxed model), or the search's own with a decoded backbone for the searched one.

    Args:
        config_dir: folder that ``RETRAIN_CONFIG`` is relative to.
        opts: KEY, VALUE overrides of the file.

    Raises:
        InputError: the file does not exist, or builds another space or a supernet.
    """
    node = "HIT_SEARCH" if is_relaxed(cfg) else "SEARCH"
    file = cfg[node].RETRAIN_CONFIG
    if not file:
        retrain = decoded_config(cfg)
        retrain.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "best")
        return retrain
    retrain = load_config(os.path.join(config_dir, file), opts)
    if node == "SEARCH" and cfg.SEARCH.RESOLUTIONS:
        check_resizable(retrain, f"SEARCH.RESOLUTIONS, and {file} that it completes")
    if retrain.MODEL.DETNAS.SPACE != cfg.MODEL.DETNAS.SPACE:
        raise InputError(
            f"{node}.RETRAIN_CONFIG has MODEL.DETNAS.SPACE {retrain.MODEL.DETNAS.SPACE}, the "
            f"search {cfg.MODEL.DETNAS.SPACE}"
        )
    if not retrain.MODEL.DETNAS.SPACES:  # declared once, for the search
        retrain.MODEL.DETNAS.SPACES = copy.deepcopy(cfg.MODEL.DETNAS.SPACES)
    if space_of(retrain) != space_of(cfg):
        raise InputError(
            f"{node}.RETRAIN_CONFIG declares MODEL.DETNAS.SPACE {cfg.MODEL.DETNAS.SPACE} otherwise "
            "than the search: expected the same MODEL.DETNAS.SPACES, or none"
        )
    if searchable_backbone(retrain) and not is_relaxed(cfg):  # which decodes that too
        raise InputError(
            f"{node}.RETRAIN_CONFIG has the backbone {searchable_backbone(retrain)}, expected a "
            "decoded backbone, e.g. build_detnas_fpn_backbone"
        )
    return retrain


def decoded_config(cfg: CfgNode) -> CfgNode:
    """The config of a search with a decoded backbone for the searched one, and no weights."""
    decoded = cfg.clone()
    decoded.defrost()
    decode_backbones(decoded)
    decoded.MODEL.WEIGHTS = ""
    decoded.MODEL.DEVICE = base_config().MODEL.DEVICE  # not that of this machine
    return decoded
