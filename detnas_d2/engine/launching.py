"""Starting a main function on one or several processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from detectron2.engine import launch


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Calls ``main(args)`` on ``--num-gpus`` processes of each machine.

    On a machine without GPU they are CPU processes that talk through gloo.
    """
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
