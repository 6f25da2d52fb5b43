"""Does the fitness of a supernet rank networks as their own trainings do?

Networks of the search's space are trained alone, several times each: the truth set. Then they are
scored by the supernet and by what any search has to beat, and compared. What is finished is kept;
the same command, or one for more networks, seeds or supernets, goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from importlib.util import find_spec

from detnas_d2.analysis.variance import Spread
from detnas_d2.engine.architectures import searched_space
from detnas_d2.pipeline.certificate import SHORT, UNTRAINED, certify
from detnas_d2.pipeline.truth_log import TruthLog, keep_plan, read_plan
from detnas_d2.pipeline.truth_plan import DrawSettings, TruthPlan, make_plan, plan_warnings
from detnas_d2.pipeline.truth_run import Pair, Runner, all_pairs, pilot_pairs
from detnas_d2.pipeline.truth_scores import ScoreLog, untrained_scores
from detnas_d2.pipeline.truth_set import (
    SHORT_SEED,
    assembled,
    short_folder,
    shortened,
    with_score,
    with_supernets,
)
from detnas_d2.pipeline.truth_source import TruthSource, read_source
from detnas_d2.programs.fidelity_report import draw, markdown, numbers, record
from detnas_d2.programs.numbers import write_numbers
from detnas_d2.search.cost_draws import BAND, BINS
from detnas_d2.search.truth import TruthSet, read_truth, write_truth
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text
from detnas_d2.utils.locks import exclusive
from detnas_d2.utils.screen import duration

TRUTH_FILE = "truth.json"
LEAST_RATIO = 1.5
"""Of the spread between networks and that between seeds, for a pilot to go on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``diagnose.py fidelity``."""
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="of a pipeline, or of a search")
    add("--output", required=True, metavar="FOLDER", help="truth set and report")
    add("--networks", type=int, default=50, help="over the range of costs (default: 50)")
    add("--band", type=int, default=20, help="more, around one cost (default: 20)")
    add("--band-macs", type=int, metavar="MACS", help="that cost (default: the others' median)")
    add("--seeds", type=int, default=3, help="trainings of each network (default: 3)")
    add("--processes", type=int, default=2, help="trainings at a time (default: 2)")
    add("--draw-seed", type=int, default=0, help="chooses the networks (default: 0)")
    add("--truth-stage", default="", metavar="NAME", help="stage of the pipeline to train with")
    add("--test-set", default="", metavar="NAME", help="in place of DATASETS.TEST")
    add("--no-limits", action="store_true", help="draw without the limits of the search")
    add("--dry-run", action="store_true", help="print networks and estimate, and stop")
    add("--no-training", action="store_true", help="report on what is finished")
    add("--force", action="store_true", help="go on after a pilot whose networks hardly differ")
    add("--short", action="store_true", help="train each a share of the supernet's cost as well")
    add("--truth", default="", metavar="FILE", help="truth set that is there: train nothing")
    help_ = "weights to compare; the pipeline's by default; again for more"
    add("--supernet", action="append", default=[], metavar="FILE", help=help_)
    add("--record", default="", metavar="FILE", help="write the main numbers as JSON")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of all configs")


def fidelity(args: argparse.Namespace) -> None:
    """``diagnose.py fidelity``.

    Raises:
        InputError: a wrong option or config, or a pilot whose networks differ too little.
    """
    _check_arguments(args)
    source = read_source(args.config_file, args.opts, args.truth_stage)
    with exclusive(args.output):
        if args.truth:
            truth = read_truth(args.truth)
            truth.check_space(searched_space(source.search))
        else:
            made = _make(args, source)
            if made is None:
                return
            truth = made
        own = source.search.MODEL.WEIGHTS
        weights = args.supernet or [own] * bool(own and os.path.isfile(own))
        if weights:
            space = searched_space(source.search)
            truth = with_supernets(truth, space, source.search, weights, args.output, _tell)
        _keep(args, truth)
        _report(args, truth, source)


def _check_arguments(args: argparse.Namespace) -> None:
    lacking = [name for name in ("matplotlib", "scipy") if find_spec(name) is None]
    if lacking:
        raise InputError(f"{' and '.join(lacking)}: not installed, expected for the report")
    least = {"networks": 3, "band": 0, "seeds": 1, "processes": 1, "draw_seed": 0}
    for name, value in least.items():
        if getattr(args, name) < value:
            option = name.replace("_", "-")
            raise InputError(f"--{option} {getattr(args, name)}: expected {value} or more")
    if len(args.opts) % 2:
        raise InputError(f"overrides are KEY VALUE pairs, the last word is {args.opts[-1]!r}")
    for file in args.supernet:
        if not os.path.isfile(file):
            raise InputError(f"--supernet {file}: no such file")


def _tell(text: str) -> None:
    print(text, flush=True)


def _make(args: argparse.Namespace, source: TruthSource) -> TruthSet | None:
    """Trains what is missing; the truth set with its scores without supernet, None if it is not
    wanted or nothing is finished.
    """
    limited = not args.no_limits
    settings = DrawSettings(args.networks, args.band, args.band_macs, args.draw_seed, limited)
    log = TruthLog(args.output)
    before = read_plan(args.output) if log.trained else {}
    plan = make_plan(source, settings, args.output, test_set=args.test_set, before=before)
    for warning in plan_warnings(plan, source):
        _tell(f"WARNING: {warning}")
    keep_plan(args.output, plan.described(), log)
    failures = source.search.SEARCH.MAX_FAILURES
    command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])

    def told(line: str) -> None:
        _tell(line)
        _keep(args, assembled(plan, log, args.seeds, command))

    runner = Runner(plan, log, args.output, args.processes, told, failures)
    pairs = all_pairs(plan.networks, args.seeds)
    _tell_plan(args, runner, pairs, source.name)
    if args.dry_run:
        return None
    if not args.no_training:
        _train(args, runner, pairs)
    truth = assembled(plan, log, args.seeds, command)
    if not truth.networks:
        raise InputError(f"{args.output}: no training is finished, nothing to report")
    paths = [plan.space.path(network.path) for network in truth.networks]
    scores = untrained_scores(plan.trainings[-1], plan.space, paths, ScoreLog(args.output))
    truth = with_score(truth, UNTRAINED, scores)
    return _with_short(args, runner, source, truth) if args.short else truth


def _keep(args: argparse.Namespace, truth: TruthSet) -> None:
    if truth.networks:
        write_truth(os.path.join(args.output, TRUTH_FILE), truth)


def _tell_plan(args: argparse.Namespace, runner: Runner, pairs: list[Pair], name: str) -> None:
    plan = runner.plan
    ranged = [network for network in plan.networks if not network.band]
    missing = len(runner.missing(pairs))
    _tell(
        f"{len(ranged)} networks of space {plan.space.name} over {plan.low / 1e6:.1f}M to "
        f"{plan.high / 1e6:.1f}M multiply-adds ({plan.limits}): in turn from {BINS} bins of equal "
        f"width, uniform in each; {len(plan.networks) - len(ranged)} more within {BAND:.0%} of "
        f"{plan.band_macs / 1e6:.1f}M"
    )
    if args.dry_run:
        for network in plan.networks:
            part = "band" if network.band else "range"
            cost = f"{network.macs / 1e6:.1f}M {network.params / 1e6:.3f}M"
            _tell(f"{part:6}{cost:>16}  {network.name}")
    _tell(
        f"Each is trained by {name} with {args.seeds} seeds and scored by {plan.metric} on "
        f"{plan.dataset}: {len(pairs)} trainings, {missing} to do"
    )
    if not missing or args.no_training:
        return
    known = runner.seconds()
    seconds = runner.measured_seconds() if known is None else known
    by = "a few steps of one, alone on the machine" if known is None else "those that are finished"
    _tell(
        f"One takes about {duration(seconds)} (by {by}): "
        f"{duration(seconds * missing / args.processes)} with {args.processes} at a time"
    )


def _train(args: argparse.Namespace, runner: Runner, pairs: list[Pair]) -> None:
    pilot = pilot_pairs(runner.plan.networks, args.seeds)
    runner.run(pilot)
    _judge(runner.plan, runner.log, pilot, stops=bool(runner.missing(pairs)) and not args.force)
    runner.run([pair for pair in pairs if pair not in set(pilot)])
    missing = len(runner.missing(pairs))
    if missing:
        _tell(f"{missing} of {len(pairs)} trainings failed; the next start tries again")


def _judge(plan: TruthPlan, log: TruthLog, pilot: list[Pair], *, stops: bool) -> None:
    """Raises InputError if networks differ too little to be told apart and it ``stops``."""
    seeds = sorted({seed for _, seed in pilot})
    scores = [
        row
        for network in dict.fromkeys(network for network, _ in pilot)
        if None not in (row := [log.score(network.name, s, plan.metric) for s in seeds])
    ]
    if len(scores) < 2 or len(seeds) < 2:
        _tell("Pilot: fewer than two networks with two seeds, the spread is not judged")
        return
    spread = Spread.of(scores)  # type: ignore[arg-type]  # no None is left
    _tell(
        f"Pilot: {spread.networks} networks x {spread.seeds} seeds differ by {spread.between:.2f}, "
        f"trainings of one network by {spread.within:.2f} {plan.metric} (standard deviations): "
        f"ratio {spread.ratio:.2f}, a perfect ranker's tau against 3 seeds {spread.ceiling(3):.2f}"
    )
    if spread.ratio < LEAST_RATIO and stops:
        raise InputError(
            f"the pilot's ratio {spread.ratio:.2f} is below {LEAST_RATIO}: noise would hide the "
            "ranking. Widen the space (depth by skip, width by expansions), raise the resolution, "
            "score on more test images, or train longer; --force goes on all the same"
        )


def _with_short(
    args: argparse.Namespace, runner: Runner, source: TruthSource, truth: TruthSet
) -> TruthSet:
    """The set with the score of one training each that together cost what the supernet does."""
    share = source.supernet_cost() / len(truth.ranged)
    plan, folder = shortened(runner.plan, share), short_folder(args.output)
    log = TruthLog(folder)
    keep_plan(folder, plan.described(), log)
    pairs = [(network, SHORT_SEED) for network in plan.networks]
    if not args.no_training:
        iterations = [cfg.SOLVER.MAX_ITER for cfg in plan.trainings]
        _tell(f"Short trainings of {' and '.join(map(str, iterations))} iterations")
        Runner(plan, log, folder, args.processes, _tell, runner.max_failures).run(pairs)
    found = {network.name: log.score(network.name, seed, plan.metric) for network, seed in pairs}
    return with_score(truth, SHORT, {path: s for path, s in found.items() if s is not None})


def _report(args: argparse.Namespace, truth: TruthSet, source: TruthSource) -> None:
    cost = source.supernet_cost() + source.search_cost()
    certificate = certify(truth, best_of=cost)
    text = markdown(certificate, truth)
    _tell(f"\n{text}")
    write_text(os.path.join(args.output, "report.md"), text)
    write_numbers(os.path.join(args.output, "report.json"), numbers(certificate, truth))
    draw(certificate, truth, os.path.join(args.output, "report.svg"))
    if args.record:
        write_numbers(args.record, record(certificate))
