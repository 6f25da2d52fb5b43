"""Starting a main function on one or several processes."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException

from detnas_d2.command import INTERRUPTED, is_expected, log_traceback, text_of
from detnas_d2.files.errors import InputError


def call_and_leave(main: Callable[..., Any], *args: Any) -> None:
    """Calls ``main(*args)``, then leaves the process group, all ranks together.

    A process that ends while gloo's threads still run is aborted at times.
    """
    main(*args)
    if dist.is_initialized():
        comm.synchronize()
        dist.destroy_process_group()


def _call_and_report(reports: str, main: Callable[..., Any], args: argparse.Namespace) -> None:
    """In a process that was started for a rank, an expected error is left in the folder
    ``reports`` and Ctrl-C says nothing: the process that started it tells both.
    """
    try:
        call_and_leave(main, args)
    except KeyboardInterrupt:
        if dist.is_initialized():
            os._exit(INTERRUPTED)
        raise
    except Exception as error:
        if dist.is_initialized() and is_expected(error):
            log_traceback(error)
            _report(reports, text_of(error))
        raise


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Calls ``main(args)`` on ``--num-gpus`` processes of each machine.

    On a machine without GPU they are CPU processes that talk through gloo. On one machine they
    meet at a free port unless ``--dist-url`` names another: Detectron2's default is the same for
    all runs of a user, of which then only one can start.

    Raises:
        InputError: see :func:`check_launch`; or of a rank that failed for a reason that it told.
    """
    check_launch(args)
    url = args.dist_url
    if args.num_machines == 1 and url == default_argument_parser().get_default("dist_url"):
        url = "auto"
    with tempfile.TemporaryDirectory(prefix="detnas_d2-") as reports:
        try:
            launch(
                _call_and_report,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=url,
                args=(reports, main, args),
            )
        except ProcessException as error:
            told = _read_reports(reports)
            if not told:
                raise
            raise InputError(told) from error


def check_launch(args: argparse.Namespace) -> None:
    """Compares the numbers of processes and machines with each other and with the GPUs there are.

    Raises:
        InputError: naming the option and what was expected.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else None
    if args.num_gpus < 1 or (gpus is not None and args.num_gpus > gpus):
        limit = "1 or more" if gpus is None else f"1 to {gpus}, the GPUs of this machine"
        raise InputError(f"--num-gpus {args.num_gpus}: expected {limit}")
    if args.num_machines < 1:
        raise InputError(f"--num-machines {args.num_machines}: expected 1 or more")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--machine-rank {args.machine_rank}: expected 0 to {args.num_machines - 1}, below "
            f"--num-machines {args.num_machines}"
        )
    if args.num_machines * args.num_gpus > 1 and not _is_meeting_point(args):
        raise InputError(
            f"--dist-url {args.dist_url}: expected tcp://HOST:PORT of the first machine, the same "
            "on all machines"
        )


def _is_meeting_point(args: argparse.Namespace) -> bool:
    if args.dist_url == "auto":
        return args.num_machines == 1
    try:
        url = urlparse(args.dist_url)
        return url.scheme in ("file", "env") or bool(
            url.scheme == "tcp" and url.hostname and url.port
        )
    except ValueError:  # a port that is no number
        return False


def _report(folder: str, text: str) -> None:
    with open(os.path.join(folder, f"{comm.get_rank():05d}"), "w", encoding="utf-8") as file:
        file.write(text)


def _read_reports(folder: str) -> str:
    """What the first rank that failed for an expected reason told; "" if none did."""
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            if text := file.read():
                return text
    return ""
