"""The garbage collector is what it was after a block, also one that failed."""

from __future__ import annotations

import gc

import pytest

from detnas_d2.utils.garbage import seldom_collected


def test_only_in_the_block() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), seldom_collected():
        assert gc.isenabled() and gc.get_threshold()[0] > 10 * before[0]
        raise KeyError
    assert gc.get_threshold() == before
