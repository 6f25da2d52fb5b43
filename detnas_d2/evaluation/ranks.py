"""Agreement between the processes of a search.

All ranks run the same loop and take the same decisions; rank 0 alone reads and writes files, and
its word counts. This file is all that the search needs of torch.distributed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.utils import comm

from detnas_d2.utils.errors import CANDIDATE_FAILURES, CandidateFailed


class Ranks:
    """The processes of Detectron2's `launch`; a single process is a group of one."""

    @property
    def is_main(self) -> bool:
        return bool(comm.is_main_process())

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in order of rank, on every rank (a collective call)."""
        return list(comm.all_gather(value))

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value` on every rank (a collective call)."""
        return self.gather(value if self.is_main else None)[0]


class SingleProcess(Ranks):
    """A group of one, whatever processes there are."""

    is_main = True

    def gather(self, value: Any) -> list[Any]:
        return [value]


@contextmanager
def all_or_none() -> Iterator[None]:
    """A block without collective calls that succeeds on all ranks or fails on all (collective).

    Without it, a rank whose candidate fails would leave the others waiting in the next collective
    call. Where the block itself did not fail, a RuntimeError names the rank where it did.
    """
    failure = None
    try:
        yield
    except CANDIDATE_FAILURES as error:
        failure = error
    text = None if failure is None else str(CandidateFailed.because(failure))
    texts = Ranks().gather(text)
    if failure is not None:
        raise failure
    for rank, text in enumerate(texts):
        if text is not None:
            raise RuntimeError(f"rank {rank}: {text}")
