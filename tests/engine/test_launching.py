"""Where the processes of a run meet."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from detectron2.engine import default_argument_parser

from detnas_d2.engine import launching
from detnas_d2.utils.locks import FolderBusy, exclusive, is_held

ROOT = Path(__file__).resolve().parents[2]


def urls(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls = []
    monkeypatch.setattr(launching, "launch", lambda *args, **kwargs: calls.append(kwargs))
    for _ in range(2):
        launching.run(argparse.Namespace, default_argument_parser().parse_args(words))
    return [call["dist_url"] for call in calls]


def test_ranks_of_a_machine_meet_in_a_file_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = urls(["--num-gpus", "2"], monkeypatch)
    assert first.startswith("file:///") and first != second


@pytest.mark.parametrize(
    ("words", "url"),
    [
        (["--num-gpus", "2", "--dist-url", "tcp://127.0.0.1:2345"], "tcp://127.0.0.1:2345"),
        (["--num-machines", "2"], default_argument_parser().get_default("dist_url")),
    ],
)
def test_meeting_place_that_was_chosen(
    words: list[str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert urls(words, monkeypatch) == [url, url]


def listening(pids: list[int]) -> list[str]:
    """Local addresses, as /proc/net has them, on which processes wait for connections."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(link))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def test_ranks_listen_on_the_loopback_interface_alone(tmp_path: Path) -> None:
    args = default_argument_parser().parse_args(["--num-gpus", "2"])
    before = set(listening([os.getpid()]))
    with launching._meeting_place(args, str(tmp_path)) as url:
        dist.init_process_group("gloo", init_method=url, rank=0, world_size=1)
        found = set(listening([os.getpid()])) - before
        dist.destroy_process_group()
    assert found and all(address.startswith("0100007F:") for address in found)
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_one_writer_of_an_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(launching, "launch", lambda *_, **__: seen.append(is_held(str(tmp_path))))
    parse = default_argument_parser().parse_args
    args = parse(["OUTPUT_DIR", str(tmp_path)])
    launching.run_alone(print, args)
    with exclusive(str(tmp_path)):
        with pytest.raises(FolderBusy):
            launching.run_alone(print, args)
        launching.run_alone(print, parse(["--eval-only", "OUTPUT_DIR", str(tmp_path)]))
    assert seen == [True, True]


def test_process_group_is_left(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    seen = []
    launching.call_and_leave(lambda value: seen.append((value, dist.is_initialized())), 3)
    assert seen == [(3, True)] and not dist.is_initialized()
    launching.call_and_leave(seen.clear)  # one process has no group
    assert not seen


def ended_by(rank: str, kind: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.engine.failing_ranks", rank, kind]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_wrong_input_of_a_rank_is_one_line() -> None:
    """Also where the other rank waits for it."""
    run = ended_by("1", "input")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1] == "error: SOLVER.X is 3: expected 4"
    assert "Traceback" not in run.stderr


def test_a_bug_on_a_rank_shows_its_traceback() -> None:
    run = ended_by("0", "bug")
    assert run.returncode == 1
    assert "-- Process 0 terminated with the following error:" in run.stderr
    assert run.stderr.rstrip().endswith("KeyError: 'a bug'")
