"""The truth set of a folder: trainings that are finished, and the scores to compare them with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import detectron2
import torch
from detectron2.config import CfgNode

from detnas_d2 import __version__
from detnas_d2.engine.trainers.schedule import shorten
from detnas_d2.pipeline.certificate import SUPERNET
from detnas_d2.pipeline.truth_log import TruthLog
from detnas_d2.pipeline.truth_plan import Network, TruthPlan
from detnas_d2.pipeline.truth_scores import ScoreLog, Tell, supernet_fitness
from detnas_d2.search.truth import TruthNetwork, TruthSet
from detnas_d2.search_space.space import PathSpace, space_digest

SHORT_SEED = 1000
"""Of short trainings: none of the truth's."""


def assembled(plan: TruthPlan, log: TruthLog, seeds: int, command: str) -> TruthSet:
    """The networks with a finished training, without other scores."""
    networks = []
    for network in plan.networks:
        found = (log.score(network.name, seed, plan.metric) for seed in range(seeds))
        scores = tuple(score for score in found if score is not None)
        if scores:
            networks.append(_of(network, scores))
    return TruthSet(
        space=plan.space.name,
        space_digest=space_digest(plan.space),
        metric=plan.metric,
        dataset=plan.dataset,
        seeds=tuple(range(seeds)),
        command=command,
        versions={
            "detnas_d2": __version__,
            "detectron2": detectron2.__version__,
            "torch": str(torch.__version__),
        },
        networks=tuple(networks),
        band_macs=plan.band_macs,
    )


def _of(network: Network, scores: tuple[float, ...]) -> TruthNetwork:
    choices = network.path.choices
    return TruthNetwork(network.name, choices, network.macs, network.params, scores, network.band)


def with_score(truth: TruthSet, name: str, scores: Mapping[str, float]) -> TruthSet:
    """The set with one more score, path text -> value; networks without one stay without."""
    networks = (
        replace(network, others={**network.others, name: scores[network.path]})
        if network.path in scores
        else network
        for network in truth.networks
    )
    return replace(truth, networks=tuple(networks))


def with_supernets(
    truth: TruthSet,
    space: PathSpace,
    search: CfgNode,
    weights: Sequence[str],
    folder: str,
    tell: Tell,
) -> TruthSet:
    """The set with the fitness of its networks by supernets, in the place of those it had.

    Args:
        weights: files; the first one's is :attr:`TruthNetwork.supernet`.
        folder: where scores are kept.
    """
    log, paths = ScoreLog(folder), [space.path(network.path) for network in truth.networks]
    first, *rest = (supernet_fitness(search, file, paths, log, tell) for file in weights)
    networks = tuple(
        replace(network, supernet=first.get(network.path), others=_without_supernets(network))
        for network in truth.networks
    )
    truth = replace(truth, networks=networks)
    for file, scores in zip(weights[1:], rest, strict=True):
        truth = with_score(truth, f"{SUPERNET} {file}", scores)
    return truth


def _without_supernets(network: TruthNetwork) -> dict[str, float]:
    return {k: v for k, v in network.others.items() if not k.startswith(SUPERNET)}


def shortened(plan: TruthPlan, share: float) -> TruthPlan:
    """The plan with trainings of a ``share`` of their iterations, 1 at most; steps move along."""
    return replace(
        plan, trainings=tuple(_shortened(cfg, min(share, 1.0)) for cfg in plan.trainings)
    )


def _shortened(cfg: CfgNode, share: float) -> CfgNode:
    cfg = cfg.clone()
    shorten(cfg, max(1, round(cfg.SOLVER.MAX_ITER * share)))
    return cfg


def short_folder(folder: str) -> str:
    """Folder of the short trainings of a truth set."""
    made = os.path.join(folder, "short")
    os.makedirs(made, exist_ok=True)
    return made
