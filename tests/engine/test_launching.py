"""Where the processes of a run meet."""

from __future__ import annotations

import argparse

import pytest
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
