"""Starting a main function on one or several processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm


def call_and_leave(main: Callable[..., Any], *args: Any) -> None:
    """Calls ``main(*args)``, then leaves the process group, all ranks together.

    A process that ends while gloo's threads still run is aborted at times.
    """
    main(*args)
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Calls ``main(args)`` on ``--num-gpus`` processes of each machine.

    On a machine without GPU they are CPU processes that talk through gloo. On one machine they
    meet at a free port unless ``--dist-url`` names another: Detectron2's default is the same for
    all runs of a user, of which then only one can start.
    """
    url = args.dist_url
    if args.num_machines == 1 and url == default_argument_parser().get_default("dist_url"):
        url = "auto"
    launch(
        call_and_leave,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=url,
        args=(main, args),
    )
