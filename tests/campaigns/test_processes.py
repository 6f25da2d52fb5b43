"""A slice of the campaign of processes: Ctrl-C ends ranks and their loader workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.campaigns.processes import TRAINING, Runs, interrupt


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_ranks_and_loader_workers(tmp_path: Path) -> None:
    # A training that does not end of itself, however late Ctrl-C comes.
    opts = ("DATALOADER.NUM_WORKERS", "1", "SOLVER.MAX_ITER", "1000000")
    assert not interrupt(Runs(tmp_path), TRAINING, *opts, ranks=2)
    assert (tmp_path / "x" / TRAINING).exists()
