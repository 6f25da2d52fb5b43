"""How many stages of single networks a run has at a time, by ``--jobs``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from detnas_d2.engine.launching import check_launch
from detnas_d2.pipeline.side_by_side import AUTO, jobs_of
from detnas_d2.recipe.choice import LARGE
from detnas_d2.recipe.record import Record


def jobs_asked(args: argparse.Namespace) -> int:
    """Stages that may run at a time, as many as the machine serves if nothing is asked for.

    Args:
        args: ``jobs``, "" for no number, and ``num_gpus``.

    Raises:
        InputError: see :func:`check_launch`, :func:`jobs_of`.
    """
    alone = {"num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    asked = argparse.Namespace(jobs=args.jobs or AUTO, num_gpus=args.num_gpus, **alone)
    check_launch(asked)
    return jobs_of(asked)


def with_jobs(record: Record, args: argparse.Namespace) -> Record:
    """The record of a run that goes on, with as many jobs as are asked for now, see
    :func:`jobs_asked`; if nothing is, with those that it was begun with, or that GPUs serve.
    """
    plan, most = record.plan, jobs_asked(args)
    if args.jobs:
        jobs = min(most, plan.usual_networks(record.seconds))
    else:
        jobs = min(most, plan.jobs) if plan.recipe.pattern == LARGE else plan.jobs
    return record if jobs == plan.jobs else replace(record, plan=plan.with_jobs(jobs))
