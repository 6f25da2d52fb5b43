"""Recalibration of a whole population in one pass over the calibration images.

What :func:`detnas_d2.evaluation.recalibration.recalibrate` computes path by path, computed once per
node of the trie of the paths: the statistics of layer l depend on the choices of layers 0 to l
alone. Those of neck and head belong to a whole path.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from detnas_d2.evaluation.calibration_steps import CalibrationStep, CalibrationSteps
from detnas_d2.evaluation.graphed_supernet import Reports, graphed
from detnas_d2.evaluation.graphs import GraphedCalls
from detnas_d2.evaluation.moments import Moments, moments_of, pool
from detnas_d2.evaluation.ranks import all_or_none
from detnas_d2.evaluation.recalibration import (
    BNStatistics,
    calibrating,
    calibration_part,
)
from detnas_d2.layers.batch_norm_mode import batch_norms
from detnas_d2.modeling import PrefixWalk, activate, find_supernet, walking
from detnas_d2.ops import BNStats
from detnas_d2.search_space import Choices, Path
from detnas_d2.utils.errors import CANDIDATE_FAILURES, CandidateFailed

logger = logging.getLogger("detnas_d2.search")

Nodes = dict[Choices, BNStatistics]
"""Statistics of the modules that a node of the trie owns, by the choices that lead to it."""


class StatisticsMemory:
    """Statistics of prefixes, valid for one supernet and one set of calibration batches.

    Held in memory only. :meth:`use` has to be called before every pass.
    """

    def __init__(self) -> None:
        self.nodes: Nodes = {}
        self._fingerprint: str | None = None

    def use(self, model: nn.Module, calibration_key: str) -> None:
        """Forgets everything, with a warning, unless weights and calibration are those known.

        Args:
            model: its parameters and buffers are compared by content.
            calibration_key: text that names the calibration images, their batches and how they
                are preprocessed.
        """
        fingerprint = weights_digest(model) + calibration_key
        if self.nodes and fingerprint != self._fingerprint:
            logger.warning(
                "weights or calibration set changed: %d remembered nodes dropped", len(self.nodes)
            )
            self.nodes.clear()
        self._fingerprint = fingerprint


def weights_digest(model: nn.Module) -> str:
    """A hash of all parameters and buffers, names included."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        if value.numel():
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def recalibrate_population(
    model: nn.Module,
    paths: Sequence[Path],
    batches: Iterable[tuple[int, list[dict[str, Any]]]],
    *,
    seed: int = 0,
    known: Nodes | None = None,
    together: int = 0,
    graphs: GraphedCalls | None = None,
) -> dict[Path, BNStatistics | CandidateFailed]:
    """Statistics of every path, as recalibrating it alone gives them.

    Collective. A path whose forward pass fails, or whose statistics are not finite, gets a
    :class:`CandidateFailed`; the others are not touched by it.

    Args:
        batches: this rank's share, see :func:`recalibrate`.
        known: nodes of earlier passes, not measured again; completed in place.
        together: batches that run together at most, with the same results; 0: what fits the
            device, see :class:`~detnas_d2.evaluation.calibration_steps.CalibrationSteps`.
        graphs: replay paths whose batches have sizes that come again, to the bit; None: none do.

    Raises:
        ValueError: no batch on any rank.
    """
    if not batch_norms(model):
        return {path: BNStatistics() for path in paths}
    known = {} if known is None else known
    # Everything that a path needs is known once its last node is.
    missing = [path for path in paths if path.choices not in known]
    collector = _NodeCollector(_owners(model), known)
    failures: dict[Path, CandidateFailed] = {}
    if missing:
        with all_or_none():
            failures = _run(model, missing, batches, collector, seed, together, graphs)
        failures = agree_on_failures(failures)
        known.update(_merged(collector.nodes_of(path for path in missing if path not in failures)))
        if len(failures) < len(missing) and not known:
            raise ValueError("no calibration batch: the calibration dataset is empty")
        for path in missing:  # a last layer without BatchNorm has no node of its own
            if path not in failures:
                known.setdefault(path.choices, BNStatistics())
    found: dict[Path, BNStatistics | CandidateFailed] = {}
    for path in paths:
        found[path] = failures[path] if path in failures else _statistics_of(path, known)
    return found


def _run(
    model: nn.Module,
    paths: list[Path],
    batches: Iterable[tuple[int, list[dict[str, Any]]]],
    collector: _NodeCollector,
    seed: int,
    together: int,
    graphs: GraphedCalls | None,
) -> dict[Path, CandidateFailed]:
    walk = PrefixWalk(paths)
    on_device = ((number, to_device(batch, model)) for number, batch in batches)
    steps = CalibrationSteps(model, on_device, together)
    failures: dict[Path, CandidateFailed] = {}
    reports = Reports(collector.add)
    with (
        walking(model, walk),
        shared_preprocessing(model),
        calibrating(model, reports, training=calibration_part(model) is None),
        graphed(model, graphs, "recalibration", reports),
    ):
        for step in steps:
            begin = partial(walk.clear, len(step.numbers))
            begin()
            collector.begin_step()
            for path in walk.paths:
                if path in failures:
                    continue

                def run(path: Path = path, step: CalibrationStep = step) -> None:
                    collector.enter(path)
                    with activate(model, path):
                        step.run(seed)
                    collector.commit()

                def run_one_by_one(path: Path = path, step: CalibrationStep = step) -> None:
                    steps.most = 1  # of the steps that follow
                    collector.enter(path)
                    with activate(model, path):
                        step.run_one_by_one(seed, walk.clear)
                    collector.commit()

                failure = attempt(run, walk, run_one_by_one)
                if walk.batches != len(step.numbers):
                    begin()
                if failure is not None:
                    failures[path] = failure
    return failures


def attempt(
    step: Callable[[], None], walk: PrefixWalk, again: Callable[[], None] | None = None
) -> CandidateFailed | None:
    """Runs one candidate on one input; returns why it failed.

    What the walk holds may be what memory was short of: then the candidate runs alone, by ``again``
    if it is given.
    """
    for last in (False, True):
        try:
            (again or step)() if last else step()
            return None
        except CANDIDATE_FAILURES as error:
            failure = CandidateFailed.because(error)
            short = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        walk.abandon()
        if last or not short:
            return failure
        walk.clear()
        torch.cuda.empty_cache()
    raise AssertionError("unreachable")


class _NodeCollector:
    """Sorts what BatchNorms see by the node of the trie that they belong to.

    Args:
        owners: depth of the prefix that a module's statistics depend on; missing: the whole path.
        known: nodes that need no statistics.
    """

    def __init__(self, owners: Mapping[str, int], known: Nodes) -> None:
        self.owners = owners
        self.known = known
        self._moments: dict[tuple[Choices, str], Moments] = {}
        self._choices: Choices = ()
        self._pending: list[tuple[tuple[Choices, str], BNStats]] = []
        self._committed: set[Choices] = set()

    def begin_step(self) -> None:
        self._committed.clear()

    def enter(self, path: Path) -> None:
        self._choices = path.choices
        self._pending.clear()

    def add(self, name: str, stats: BNStats) -> None:
        node = self._choices[: self.owners.get(name)]
        if node not in self.known:
            self._pending.append(((node, name), stats))

    def nodes_of(self, paths: Iterable[Path]) -> Nodes:
        """The nodes on these paths; those of a failed path alone lack its last batches."""
        prefixes = {p.choices[:depth] for p in paths for depth in range(len(p.choices) + 1)}
        nodes: Nodes = {}
        for (node, name), moments in self._moments.items():
            if node in prefixes:
                nodes.setdefault(node, BNStatistics()).moments[name] = moments
        return nodes

    def commit(self) -> None:
        """Adds what the forward pass of the entered path saw; after a failure, nothing is."""
        # A node that had to be computed again, after a failure, has been counted.
        new = [(key, stats) for key, stats in self._pending if key[0] not in self._committed]
        pool(self._moments, moments_of(new))
        self._committed.update(node for (node, _), _ in self._pending)
        self._pending.clear()


def _owners(model: nn.Module) -> dict[str, int]:
    supernet = find_supernet(model)
    prefix = next((name for name, module in model.named_modules() if module is supernet), None)
    if prefix is None:  # the choices are spread over the model
        return {}
    prefix = f"{prefix}." if prefix else ""
    owners: dict[str, int] = {}
    for name in batch_norms(model):
        parts = name.removeprefix(prefix).split(".")
        if not name.startswith(prefix):
            continue
        if parts[0] == "stem":
            owners[name] = 0
        elif parts[0] == "blocks":
            owners[name] = int(parts[1]) + 1
    return owners


def _merged(nodes: Nodes) -> Nodes:
    """The ranks' statistics merged in rank order (Chan); the same on every rank."""
    if comm.get_world_size() == 1:
        return nodes
    merged: Nodes = {}
    payload = {node: statistics.cpu().moments for node, statistics in nodes.items()}
    for part in comm.all_gather(payload):
        for node, moments in part.items():
            merged.setdefault(node, BNStatistics()).merge(BNStatistics(dict(moments)))
    return merged


def _statistics_of(path: Path, nodes: Nodes) -> BNStatistics | CandidateFailed:
    statistics = BNStatistics()
    for depth in range(len(path.choices) + 1):
        node = nodes.get(path.choices[:depth])
        if node is not None:
            statistics.moments.update(node.moments)
    try:
        statistics.check_finite()
    except FloatingPointError as error:
        return CandidateFailed.because(error)
    return statistics


def agree_on_failures(failures: dict[Path, CandidateFailed]) -> dict[Path, CandidateFailed]:
    """The failures of all ranks (collective); the first rank's reason counts."""
    texts = {path: str(error) for path, error in failures.items()}
    merged: dict[Path, CandidateFailed] = {}
    everywhere = comm.all_gather(texts)
    for rank, part in enumerate(everywhere):
        for path, text in part.items():
            where = "" if len(everywhere) == 1 else f"rank {rank}: "
            merged.setdefault(path, CandidateFailed(where + text))
    return merged


def to_device(batch: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The batch with images and targets on the model's device, moved once for all candidates."""
    device = next(model.parameters()).device
    return [
        {key: value.to(device) if hasattr(value, "to") else value for key, value in item.items()}
        for item in batch
    ]


@contextmanager
def shared_preprocessing(model: nn.Module) -> Iterator[None]:
    """Within the block ``model.preprocess_image`` computes once for consecutive calls with the
    same batch; models without that method (they normalise in ``forward``) run as they are."""
    original: Callable[..., Any] | None = getattr(model, "preprocess_image", None)
    if original is None:
        yield
        return
    own = vars(model).get("preprocess_image")
    last: list[Any] = [None, None]

    def once(batch: list[dict[str, Any]]) -> Any:
        if last[0] is not batch:
            last[:] = batch, original(batch)
        return last[1]

    vars(model)["preprocess_image"] = once
    try:
        yield
    finally:
        del vars(model)["preprocess_image"]
        if own is not None:
            vars(model)["preprocess_image"] = own
