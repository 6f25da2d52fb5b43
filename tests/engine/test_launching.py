"""Where the processes of a run meet."""

from __future__ import annotations

import argparse

import pytest
import torch.distributed as dist
from detectron2.engine import default_argument_parser

from detnas_d2.engine import launching


@pytest.mark.parametrize(
    ("words", "url"),
    [
        ([], "auto"),  # two runs on a machine do not want the same port
        (["--dist-url", "tcp://127.0.0.1:2345"], "tcp://127.0.0.1:2345"),
        (["--num-machines", "2"], default_argument_parser().get_default("dist_url")),
    ],
)
def test_where_processes_meet(words: list[str], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(launching, "launch", lambda *args, **kwargs: calls.append(kwargs))
    args = default_argument_parser().parse_args(words)
    launching.run(argparse.Namespace, args)
    assert [call["dist_url"] for call in calls] == [url]


def test_process_group_is_left(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    seen = []
    launching.call_and_leave(lambda value: seen.append((value, dist.is_initialized())), 3)
    assert seen == [(3, True)] and not dist.is_initialized()
    launching.call_and_leave(seen.clear)  # one process has no group
    assert not seen
