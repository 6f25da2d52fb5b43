"""How the processes of a search agree.

All ranks run the same loop and take the same decisions; rank 0 alone reads and writes files, and
its word counts. This file is all that the search needs of torch.distributed.
"""

from __future__ import annotations

from typing import Any


class Ranks:
    """The processes of Detectron2's `launch`; a single process is a group of one."""

    @property
    def is_main(self) -> bool:
        from detectron2.utils import comm  # here, so that the search logic works without torch

        return comm.is_main_process()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in order of rank, on every rank (a collective call)."""
        from detectron2.utils import comm

        return comm.all_gather(value)

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value` on every rank (a collective call)."""
        return self.gather(value if self.is_main else None)[0]


class SingleProcess(Ranks):
    """A group of one that needs neither torch nor Detectron2."""

    is_main = True

    def gather(self, value: Any) -> list[Any]:
        return [value]
