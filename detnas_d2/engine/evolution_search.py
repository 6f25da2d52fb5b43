"""The search for the best path of a trained supernet (DetNAS section 3.1, step 3)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from detnas_d2.config.tools import short_yaml
from detnas_d2.data import data_state, drop_cache
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.inherited import (
    INHERITED_CONFIG,
    INHERITED_FILE,
    member_file,
    remove_members,
    write_inherited,
)
from detnas_d2.engine.keeping_time import Late, Watch, current_watch
from detnas_d2.engine.plan import BEST_FILE, SearchPlan
from detnas_d2.engine.proposals import Proposals
from detnas_d2.engine.scripted import plain_torchscript
from detnas_d2.engine.telling import outlook_text, tell, tell_part
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.evaluation import CandidateRecord
from detnas_d2.evaluation.build import candidate_evaluator, resized_evaluator
from detnas_d2.evaluation.intervals import Interval, fitness_intervals
from detnas_d2.evaluation.resized import PathEvaluator
from detnas_d2.modeling import find_supernet
from detnas_d2.search import History, Progress, open_history, run_search
from detnas_d2.search.build import search_fingerprint
from detnas_d2.search.driver import OnProgress
from detnas_d2.search.events import SearchEvents
from detnas_d2.search.front_file import FRONT_FILE, front_text, has_front, read_front
from detnas_d2.search.known_scores import KnownScores, known_scores
from detnas_d2.search.objectives import Objectives
from detnas_d2.search.searcher import GenerationSearcher
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import sha256_of, write_text

logger = logging.getLogger("detnas_d2.search")

OnFinish = Callable[[CandidateRecord, Sequence[CandidateRecord], PathEvaluator], None]
"""Called with the best candidate, the front (empty of one objective) and the evaluator, which still
remembers statistics of what it scored."""


@plain_torchscript()
def search(
    cfg: CfgNode,
    *,
    resume: bool,
    config_dir: str = "",
    retrain_opts: Sequence[str] = (),
    known: Sequence[str] = (),
) -> CandidateRecord:
    """Runs or resumes a search in ``OUTPUT_DIR``.

    Files there: ``history.jsonl`` (every candidate), ``search.json`` (what determines them),
    ``generations.json`` (summaries), ``best.yaml`` (a config for ``train_net.py``),
    ``best_inherited.pth`` and ``best_inherited.yaml`` (the same network with the supernet's
    weights, to be evaluated or fine-tuned); with several objectives ``front.yaml`` (the front, and
    what is recommended of it) and the same two files for each member in ``front``; while it runs,
    the images (``SEARCH.IMAGE_CACHE_GIB``).

    Args:
        config_dir, retrain_opts: see :func:`detnas_d2.engine.plan.retrain_config`.
        known: folders of other searches. What those that score as this one does have evaluated is
            not evaluated again: fitness is a function of path, weights and data alone.

    Raises:
        InputError: no weights, no supernet, limits that no path satisfies, or validation images on
            which no score is defined; before anything is computed.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is empty: the search needs the weights of a supernet")
    plan = SearchPlan.from_config(cfg, config_dir, retrain_opts)
    plan.check()
    plan = plan.measured()
    plan.proposals.check_limits()
    for warning in plan.warnings():
        logger.warning(warning)
    model = load_supernet(cfg)
    evaluation = {
        "checkpoint_sha256": sha256_of(plan.weights),
        "data": data_state(plan.evaluation.datasets) if comm.is_main_process() else {},
        **plan.evaluation.fingerprint(),
    }
    evaluator: Callable[[], AbstractContextManager[PathEvaluator]]
    evaluator = partial(candidate_evaluator, plan.evaluation, model)
    if plan.resized:
        evaluator = partial(resized_evaluator, plan.resized, model)
    folder, candidates = plan.proposals.output_dir, plan.proposals.candidates
    text_of = partial(best_yaml, metric=plan.evaluation.metric, counted=candidates.space.counted)

    def finish(
        best: CandidateRecord, front: Sequence[CandidateRecord], evaluates: PathEvaluator
    ) -> None:
        files = {INHERITED_CONFIG: (best, INHERITED_FILE, "inherited")}
        for number, record in enumerate(front, start=1):
            weights = member_file(number)
            place = os.path.splitext(weights)[0]
            files[f"{place}.yaml"] = (record, weights, place)
        networks = {
            file: (plan.inherited(record.path, os.path.join(folder, weights), place), record)
            for file, (record, weights, place) in files.items()
        }
        if comm.is_main_process():
            text = text_of(plan.completed(best.path), best)
            write_text(os.path.join(folder, BEST_FILE), text)
            remove_members(folder, len(front) + 1)
        if write_inherited(folder, list(networks.values()), candidates, evaluates):
            for file, (cfg, record) in networks.items():
                write_text(os.path.join(folder, file), text_of(cfg, record))

    best = search_candidates(
        plan.proposals, evaluator, evaluation, resume=resume, finish=finish, known=known
    )
    comm.synchronize()
    logger.info("Best path (fitness %.3f): %s; written to %s", best.fitness, best.path, folder)
    drop_cache(folder)
    return best


def search_candidates(
    proposals: Proposals,
    evaluator: Callable[[], AbstractContextManager[PathEvaluator]],
    evaluation: Mapping[str, Any],
    *,
    resume: bool,
    finish: OnFinish | None = None,
    known: Sequence[str] = (),
) -> CandidateRecord:
    """Searches in the output folder, or goes on; returns the best candidate: with several
    objectives the one that is recommended, see :meth:`Objectives.best`.

    Args:
        proposals: measured.
        evaluator: gives the evaluator of candidates.
        evaluation: what decides a candidate's fitness, "metric" and weights included; JSON values.
        finish: see :data:`OnFinish`.
        known: see :func:`search`.
    """
    searcher, constraint = proposals.build_searcher(), proposals.constraint
    objectives, resolutions = proposals.objectives, proposals.candidates.resolutions
    if resolutions:
        evaluation = {**evaluation, "resolutions": list(resolutions)}
    fingerprint = search_fingerprint(
        space=proposals.space,
        searcher=searcher,
        limits=constraint.limits,
        latency_table_sha256=proposals.latency_sha256,
        **evaluation,
    )
    history = open_history(proposals.output_dir, fingerprint, resume=resume)
    scores = comm.all_gather(known_scores(known, fingerprint) if comm.is_main_process() else {})[0]
    listeners: list[OnProgress] = []
    with ExitStack() as stack:
        evaluates = stack.enter_context(evaluator())
        if comm.is_main_process():
            folder = proposals.output_dir
            progress = Progress(
                searcher,
                folder,
                outlook=outlook_text,
                tell=_tell_candidates,
                objectives=objectives,
            )
            events = stack.enter_context(closing(SearchEvents(folder, objectives)))
            evaluates.on_pass = progress.passed
            listeners += [progress, events]
        best = run_search(
            searcher,
            KnownScores(evaluates, scores),
            history,
            space=proposals.candidates,
            limits=constraint,
            max_failures=proposals.max_failures,
            on_progress=partial(_tell_all, listeners),
            after_generation=_looks(current_watch(), searcher, history),
        )
        evaluates.on_pass = _tell_pass  # what comes now are no candidates
        front: list[CandidateRecord] = []
        if objectives is not None:
            front = objectives.front(history)
            intervals = _intervals_of(front, history, proposals, evaluates)
            best = _tell_front(objectives, front, intervals, history, str(evaluation["metric"]))
        if finish is not None:
            finish(best, front, evaluates)
    return best


def _intervals_of(
    front: Sequence[CandidateRecord],
    history: History,
    proposals: Proposals,
    evaluates: PathEvaluator,
) -> dict[str, Interval]:
    """Path -> interval of the fitness of a front's members (collective); those that ``front.yaml``
    has from an earlier end of the same search are kept.
    """
    kept: dict[str, Interval] = {}
    if history.directory is not None and has_front(str(history.directory)):
        with suppress(InputError):  # damaged: it is written again
            before = read_front(str(history.directory), history)
            kept = {before.members[n - 1].path: told for n, told in before.intervals.items()}
    kept = comm.all_gather(kept)[0]
    known = {record.path: kept[record.path] for record in front if record.path in kept}
    missing = [proposals.candidates.path(r.choices) for r in front if r.path not in known]
    if missing:
        found = fitness_intervals(evaluates, missing)
        known |= {str(path): interval for path, interval in found.items()}
    return known


def _tell_front(
    objectives: Objectives,
    front: Sequence[CandidateRecord],
    intervals: Mapping[str, Interval],
    history: History,
    metric: str,
) -> CandidateRecord:
    """Writes ``front.yaml`` beside the history; returns the member that is recommended."""
    if history.directory is not None:  # rank 0's
        write_text(history.directory / FRONT_FILE, front_text(objectives, front, metric, intervals))
    for budget, record in objectives.recommended(front):
        if record is None:
            logger.warning("SEARCH.BUDGETS %g: no candidate is within it", budget)
    return objectives.best(front)


def _looks(
    watch: Watch | None, searcher: GenerationSearcher, history: History
) -> Callable[[], None] | None:
    """What looks after a generation whether the search will be late; None without a limit."""
    if watch is None:
        return None
    before, start, expected = len(history), time.monotonic(), searcher.expected
    watch.begin(before / expected)

    def look() -> None:
        candidate = (time.monotonic() - start) / (len(history) - before)
        slowness = candidate * expected / watch.allowance.expected.loop
        watch.look(len(history) / expected, Late(searcher.generation - 1, slowness))

    return look


def _tell_all(listeners: Sequence[OnProgress], record: CandidateRecord, **about: Any) -> None:
    for listener in listeners:
        listener(record, **about)


def _tell_candidates(done: float, total: int, eta: float | None, best: str) -> None:
    tell("candidates", done, total, eta=eta, note=best)


def _tell_pass(stage: str, candidates: int, done: int, total: int) -> None:
    tell_part(f"{stage} of {candidates} found", done, total)


def load_supernet(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` with the weights ``MODEL.WEIGHTS``, in eval mode.

    Raises:
        ValueError: it holds no supernet.
        WeightsError: the weights are not those of the whole model, e.g. a classifier's.
    """
    model = Trainer.build_model(cfg)
    if find_supernet(model) is None:
        raise InputError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}: no supernet to search")
    DetNASCheckpointer(model).load_all(cfg.MODEL.WEIGHTS)
    return model.eval()


def best_yaml(network: CfgNode, found: CandidateRecord, metric: str, counted: str) -> str:
    """Text of ``best.yaml``, ``best_inherited.yaml`` and of a member's config.

    Args:
        counted: what its costs are of, in words.
    """
    assert found.macs is not None and found.params is not None
    images = "" if found.resolution is None else f", for images of shortest side {found.resolution}"
    return (
        f"# Found by a search: supernet {metric} {found.fitness:.3f}, "
        f"{found.macs / 1e6:.1f}M multiply-adds and {found.params / 1e6:.3f}M parameters of "
        f"{counted}{images}.\n{short_yaml(network)}"
    )
