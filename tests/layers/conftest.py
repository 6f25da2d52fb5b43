"""What tests of fused operators share."""

from __future__ import annotations

import pytest


@pytest.fixture
def used(monkeypatch) -> list[str]:
    """Names of the chains that ran through the operators."""
    from detnas_d2.layers import fused_shuffle

    names: list[str] = []
    for name in ("run_blocks", "eval_blocks"):
        original = getattr(fused_shuffle, name)

        def wrapper(*args, _name=name, _original=original):
            names.append(_name)
            return _original(*args)

        monkeypatch.setattr(fused_shuffle, name, wrapper)
    return names
