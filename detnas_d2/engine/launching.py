"""Starting a main function on one or several processes."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException

from detnas_d2.command import INTERRUPTED, is_expected, log_traceback, text_of
from detnas_d2.config.tools import load_config
from detnas_d2.utils.compat import signal_at_parents_end
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.locks import exclusive

_STORE = "ranks"


def call_and_leave(main: Callable[..., Any], *args: Any) -> None:
    """Calls ``main(*args)``, then leaves the process group, all ranks together.

    A process that ends while gloo's threads still run is sometimes aborted. A rank does not outlive
    the process that started it and holds the lock of its folder.
    """
    if dist.is_initialized() and signal_at_parents_end is not None:
        signal_at_parents_end(signal.SIGKILL)
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


def run_alone(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """:func:`run` for a program that writes into OUTPUT_DIR; no second one does at a time.

    ``--eval-only`` looks at what is there, also while it is being trained.

    Raises:
        FolderBusy: another program writes into OUTPUT_DIR, naming it.
    """
    alone: contextlib.AbstractContextManager = contextlib.nullcontext()
    if args.machine_rank == 0 and not args.eval_only:
        alone = exclusive(load_config(args.config_file, args.opts).OUTPUT_DIR)
    with alone:
        run(main, args)


def run(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Calls ``main(args)`` on ``--num-gpus`` processes of each machine.

    On a machine without GPU they are CPU processes that talk through gloo. On one machine they
    meet in a file of their own and talk over the loopback interface, so that no other machine can
    reach them and no two runs meet, unless ``--dist-url`` names a place.

    Raises:
        InputError: see :func:`check_launch`; or of a rank that failed for a reason that it told.
    """
    check_launch(args)
    with tempfile.TemporaryDirectory(prefix="detnas_d2-") as folder:
        try:
            with _meeting_place(args, folder) as url:
                launch(
                    _call_and_report,
                    args.num_gpus,
                    num_machines=args.num_machines,
                    machine_rank=args.machine_rank,
                    dist_url=url,
                    args=(folder, main, args),
                )
        except ProcessException as error:
            told = _read_reports(folder)
            if not told:
                raise
            raise InputError(told) from error


@contextlib.contextmanager
def _meeting_place(args: argparse.Namespace, folder: str) -> Iterator[str]:
    """Meeting point of the ranks. Not torch's server, which listens on all interfaces."""
    default = default_argument_parser().get_default("dist_url")
    if args.num_machines > 1 or args.num_gpus == 1 or args.dist_url not in ("auto", default):
        yield args.dist_url
        return
    before = dict(os.environ)
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        yield f"file://{folder}/{_STORE}"
    finally:
        if "GLOO_SOCKET_IFNAME" not in before:
            os.environ.pop("GLOO_SOCKET_IFNAME", None)


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
    """Message of the first rank that failed for an expected reason; "" if none did."""
    for name in sorted(set(os.listdir(folder)) - {_STORE}):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            if text := file.read():
                return text
    return ""
