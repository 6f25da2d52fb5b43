"""Does the fitness of a supernet rank networks as their own trainings do? The truth set.

Networks of the search's space are trained alone, several times each; what is finished is kept, and
the same command, or one for more networks or seeds, goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

import detectron2
import torch

from detnas_d2 import __version__
from detnas_d2.analysis.variance import Spread
from detnas_d2.pipeline.truth_log import TruthLog, keep_plan, read_plan
from detnas_d2.pipeline.truth_plan import DrawSettings, TruthPlan, make_plan, plan_warnings
from detnas_d2.pipeline.truth_run import Pair, Runner, all_pairs, duration, pilot_pairs
from detnas_d2.pipeline.truth_source import read_source
from detnas_d2.search.cost_draws import BAND, BINS
from detnas_d2.search.truth import TruthNetwork, TruthSet, write_truth
from detnas_d2.search_space.space import space_digest
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.locks import exclusive

TRUTH_FILE = "truth.json"
LEAST_RATIO = 1.5
"""Of the spread between networks and that between seeds, for a pilot to go on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``diagnose.py fidelity``."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="pipeline, or search")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="of the truth set")
    parser.add_argument("--networks", type=int, default=50, help="over the range of costs")
    parser.add_argument("--band", type=int, default=20, help="more, around one cost")
    parser.add_argument("--band-macs", type=int, metavar="MACS", help="that cost (the median)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each network")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time")
    parser.add_argument("--draw-seed", type=int, default=0, help="chooses the networks")
    parser.add_argument("--truth-stage", default="", metavar="NAME", help="stage to train with")
    parser.add_argument("--test-set", default="", metavar="NAME", help="in place of DATASETS.TEST")
    parser.add_argument("--no-limits", action="store_true", help="draw without the search's limits")
    parser.add_argument("--dry-run", action="store_true", help="print plan and estimate, and stop")
    parser.add_argument("--force", action="store_true", help="go on after a pilot with no spread")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of all configs")


def fidelity(args: argparse.Namespace) -> None:
    """``diagnose.py fidelity``.

    Raises:
        InputError: a wrong option or config, or a pilot whose networks differ too little.
    """
    _check_arguments(args)
    with exclusive(args.output):
        source = read_source(args.config_file, args.opts, args.truth_stage)
        settings = DrawSettings(
            args.networks, args.band, args.band_macs, args.draw_seed, not args.no_limits
        )
        before = read_plan(args.output)
        plan = make_plan(source, settings, args.output, test_set=args.test_set, before=before)
        for warning in plan_warnings(plan, source):
            print(f"WARNING: {warning}", flush=True)
        keep_plan(args.output, plan.described())
        failures = source.search.SEARCH.MAX_FAILURES
        log = TruthLog(args.output)
        runner = Runner(plan, log, args.output, args.processes, _tell, failures)
        pairs = all_pairs(plan.networks, args.seeds)
        _tell_plan(args, runner, pairs, source.name)
        if args.dry_run:
            return
        try:
            pilot = pilot_pairs(plan.networks, args.seeds)
            runner.run(pilot)
            _judge_pilot(plan, log, pilot, stops=bool(runner.missing(pairs)) and not args.force)
            runner.run([pair for pair in pairs if pair not in set(pilot)])
        finally:
            _write(args, plan, log)
        missing = runner.missing(pairs)
        if missing:
            _tell(f"{len(missing)} of {len(pairs)} trainings failed; the next start tries again")


def _check_arguments(args: argparse.Namespace) -> None:
    least = {"networks": 2, "band": 0, "seeds": 1, "processes": 1, "draw_seed": 0}
    for name, value in least.items():
        if getattr(args, name) < value:
            option = name.replace("_", "-")
            raise InputError(f"--{option} {getattr(args, name)}: expected {value} or more")
    if len(args.opts) % 2:
        raise InputError(f"overrides are KEY VALUE pairs, the last word is {args.opts[-1]!r}")


def _tell(text: str) -> None:
    print(text, flush=True)


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
    if not missing:
        return
    known = runner.seconds()
    seconds = runner.measured_seconds() if known is None else known
    by = "a few steps of one, alone on the machine" if known is None else "those that are finished"
    _tell(
        f"One takes about {duration(seconds)} (by {by}): "
        f"{duration(seconds * missing / args.processes)} with {args.processes} at a time"
    )


def _judge_pilot(plan: TruthPlan, log: TruthLog, pilot: list[Pair], *, stops: bool) -> None:
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
    text = (
        f"Pilot: {spread.networks} networks x {spread.seeds} seeds differ by {spread.between:.2f}, "
        f"trainings of one network by {spread.within:.2f} {plan.metric} (standard deviations): "
        f"ratio {spread.ratio:.2f}, a perfect ranker's tau against 3 seeds {spread.ceiling(3):.2f}"
    )
    _tell(text)
    if spread.ratio < LEAST_RATIO and stops:
        raise InputError(
            f"the pilot's ratio {spread.ratio:.2f} is below {LEAST_RATIO}: noise would hide the "
            "ranking. Widen the space (depth by skip, width by expansions), raise the resolution, "
            "score on more test images, or train longer; --force goes on all the same"
        )


def _write(args: argparse.Namespace, plan: TruthPlan, log: TruthLog) -> None:
    """Writes what is finished as a truth set."""
    networks = []
    for network in plan.networks:
        found = (log.score(network.name, seed, plan.metric) for seed in range(args.seeds))
        scores = tuple(score for score in found if score is not None)
        if scores:
            networks.append(
                TruthNetwork(
                    network.name,
                    network.path.choices,
                    network.macs,
                    network.params,
                    scores,
                    network.band,
                )
            )
    if networks:
        truth = TruthSet(
            space=plan.space.name,
            space_digest=space_digest(plan.space),
            metric=plan.metric,
            dataset=plan.dataset,
            seeds=tuple(range(args.seeds)),
            command=shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
            versions={
                "detnas_d2": __version__,
                "detectron2": detectron2.__version__,
                "torch": str(torch.__version__),
            },
            networks=tuple(networks),
        )
        file = os.path.join(args.output, TRUTH_FILE)
        write_truth(file, truth)
        _tell(f"{len(networks)} networks in {file}")
