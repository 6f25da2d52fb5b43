"""The networks of a truth set and the configs that train them, checked before any is trained."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.tools import FREE_KEYS, changed_keys, is_under
from detnas_d2.data import data_state, register_datasets
from detnas_d2.data.datasets.registration import CACHE_FOLDER
from detnas_d2.engine.architectures import fix_path
from detnas_d2.engine.checkpoint import weights_of
from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.engine.checks.data import check_classes, sharing_images, training_images_tested
from detnas_d2.engine.checks.models import Models, check_names
from detnas_d2.engine.checks.run import check_run, check_weights
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation.scoring import DEFAULT_METRICS, evaluator_type, known_metrics
from detnas_d2.modeling import is_supernet
from detnas_d2.pipeline.truth_source import TruthSource
from detnas_d2.search.constraints import Constraint, Limits
from detnas_d2.search.cost_draws import CostSampler, in_band, over_costs
from detnas_d2.search_space import CostTable
from detnas_d2.search_space.space import Path, PathSpace, space_digest
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import sha256_of

_NOT_THE_TRUTH = (*FREE_KEYS, "SEED", "SEARCH", "SUPERNET", "MODEL.WEIGHTS", "MODEL.DETNAS.PATH")


@dataclass(frozen=True)
class DrawSettings:
    """Which networks of a space are drawn.

    Attributes:
        networks: over the range of costs.
        band: more, around one cost.
        band_macs: that cost; None: the median of the first networks.
        seed: of the draws.
        limited: whether the limits of the search hold.
    """

    networks: int
    band: int
    band_macs: int | None = None
    seed: int = 0
    limited: bool = True


@dataclass(frozen=True)
class Network:
    """A network of a truth set; ``band``: drawn around one cost, not over the range."""

    path: Path
    macs: int
    params: int
    band: bool

    @property
    def name(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class TruthPlan:
    """What is trained and how it is scored.

    Attributes:
        networks: those over the range of costs first, in the order of their draw.
        low, high: the range of costs that they were drawn from.
        band_macs: the middle of the band.
        limits: that they keep, as text.
        seed: of their draws.
        metric: "task/name".
        dataset: that networks are scored on.
        trainings: see :class:`TruthSource`; with CACHE_DIR and DATASETS.TEST.
    """

    space: PathSpace
    networks: tuple[Network, ...]
    low: int
    high: int
    band_macs: int
    limits: str
    seed: int
    metric: str
    dataset: str
    trainings: tuple[CfgNode, ...]

    def configs(self, network: Network, seed: int, folder: str) -> tuple[CfgNode, ...]:
        """The configs that train a network in a folder, each from the weights of the one before."""
        configs: list[CfgNode] = []
        for number, training in enumerate(self.trainings):
            cfg = training.clone()
            fix_path(cfg, self.space, network.name)
            cfg.SEED = seed
            cfg.OUTPUT_DIR = os.path.join(folder, str(number)) if number else folder
            if configs:
                cfg.MODEL.WEIGHTS = os.path.join(configs[-1].OUTPUT_DIR, "model_final.pth")
            configs.append(cfg)
        return tuple(configs)

    def described(self) -> dict[str, Any]:
        """All that decides networks and scores, as JSON values."""
        return {
            "space": {"name": self.space.name, "digest": space_digest(self.space)},
            "draws": {"seed": self.seed, "limits": self.limits, "range": [self.low, self.high]},
            "band_macs": self.band_macs,
            "metric": self.metric,
            "dataset": self.dataset,
            "trainings": [_described(cfg) for cfg in self.trainings],
            "data": data_state(
                name for cfg in self.trainings for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
            ),
        }


def _described(cfg: CfgNode) -> dict[str, Any]:
    changed = changed_keys(cfg).items()
    weights = cfg.MODEL.WEIGHTS
    return {
        **{key: value for key, value in changed if not is_under(key, _NOT_THE_TRUTH)},
        "MODEL.WEIGHTS": sha256_of(weights) if os.path.isfile(weights) else weights,
    }


def make_plan(
    source: TruthSource,
    settings: DrawSettings,
    folder: str,
    *,
    test_set: str = "",
    before: Mapping[str, Any] | None = None,
) -> TruthPlan:
    """Draws the networks, registers the datasets and looks at all that a training needs.

    Args:
        test_set: dataset that networks are scored on; "": that of the last training.
        before: what :meth:`TruthPlan.described` gave before; its band is kept.

    Raises:
        InputError: naming the key, option or dataset at fault.
    """
    trainings = tuple(_ready(cfg, folder) for cfg in source.trainings)
    for cfg in trainings[:-1]:
        cfg.DATASETS.TEST = ()
    last = trainings[-1]
    if test_set:
        last.DATASETS.TEST = (test_set,)
    if len(last.DATASETS.TEST) != 1:
        raise InputError(
            f"DATASETS.TEST of {source.name} is {list(last.DATASETS.TEST)}: expected one dataset, "
            "or --test-set NAME"
        )
    search = source.search.clone()
    search.OUTPUT_DIR = folder
    proposals = Proposals.from_config(search).measured()
    proposals.check_limits()
    networks, low, high, band_macs = _draw(proposals, settings, before or {})
    for cfg in trainings:
        _check(cfg, proposals.space, networks[0])
    metric = search.SEARCH.METRIC or DEFAULT_METRICS[evaluator_type(last.DATASETS.TEST[0])]
    known = known_metrics(
        last.DATASETS.TEST[0], masks=last.MODEL.MASK_ON, keypoints=last.MODEL.KEYPOINT_ON
    )
    if metric not in known:
        raise InputError(
            f"SEARCH.METRIC {metric!r}: dataset {last.DATASETS.TEST[0]!r} is scored by "
            f"{', '.join(known)}"
        )
    return TruthPlan(
        proposals.space,
        networks,
        low,
        high,
        band_macs,
        str(proposals.limits if settings.limited else Limits()),
        settings.seed,
        metric,
        last.DATASETS.TEST[0],
        trainings,
    )


def _ready(cfg: CfgNode, folder: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    fall_back_to_cpu(cfg)
    if not cfg.DATASETS.CACHE_DIR:
        cfg.DATASETS.CACHE_DIR = os.path.join(folder, CACHE_FOLDER)
    return cfg


def _check(cfg: CfgNode, space: PathSpace, network: Network) -> None:
    """Raises InputError if the training cannot run, or starts from a supernet."""
    models, example = Models(), cfg.clone()
    fix_path(example, space, network.name)
    check_names(example)
    models.of(example)
    register_datasets(example)
    check_classes(example)
    check_run(example, "train", models, config_dir="")
    weights, model = example.MODEL.WEIGHTS, models.of(example)
    if not weights:
        return
    check_weights("MODEL.WEIGHTS", weights, model, whole=False)
    if os.path.isfile(weights) and is_supernet(weights_of(read_checkpoint(weights), model)):
        raise InputError(
            f"MODEL.WEIGHTS {weights}: a supernet's; a truth set needs trainings from the weights "
            "that users start from"
        )


def _draw(
    proposals: Proposals, settings: DrawSettings, before: Mapping[str, Any]
) -> tuple[tuple[Network, ...], int, int, int]:
    """Networks, the range of costs they are drawn from, and the middle of the band."""
    costs, limits = proposals.costs, proposals.limits
    if not isinstance(costs, CostTable):
        raise InputError(
            f"space {proposals.space.name!r}: networks of a truth set are drawn by costs that are "
            "sums over layers; expected one number in MODEL.HIT.NECK_CHANNELS, or []"
        )
    feasible = proposals.constraint if settings.limited else Constraint(Limits(), costs)
    low, high = costs.macs.cheapest(), costs.macs.most_expensive()
    if settings.limited:
        low, high = max(low, limits.min_macs or low), min(high, limits.max_macs or high)
    sampler = CostSampler(costs.macs)
    drawn = over_costs(
        sampler, feasible, count=settings.networks, low=low, high=high, seed=settings.seed
    )
    middle = settings.band_macs or before.get("band_macs")
    if not middle:
        middle = round(statistics.median(costs.macs.total(choices) for choices in drawn))
    around = in_band(sampler, feasible, count=settings.band, middle=middle, seed=settings.seed)
    networks = [
        Network(Path(proposals.space, choices), cost.macs, cost.params, band)
        for part, band in ((drawn, False), (around, True))
        for choices in part
        if not (band and choices in drawn)
        for cost in [costs.cost(choices)]
    ]
    return tuple(networks), low, high, int(middle)


def plan_warnings(plan: TruthPlan, source: TruthSource) -> list[str]:
    """A text for each way in which the truth would say less than it seems to."""
    last = plan.trainings[-1]
    validation = source.search.SEARCH.VAL or (*source.search.DATASETS.TEST, "")[0]
    texts = training_images_tested(last)
    if validation:
        texts += [
            f"Networks are scored on {one!r}, which shares images with {other!r}, on which the "
            "search scores them: they agree for that reason too"
            for one, other in sharing_images([plan.dataset], [validation])
        ]
    return texts
