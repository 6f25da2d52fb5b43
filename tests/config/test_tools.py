"""What a config changes, as a fingerprint."""

from __future__ import annotations

import detnas_d2.config.tools as tools
from detnas_d2.config.tools import base_config, changed_keys, fingerprint


def test_fingerprint_is_of_what_differs_from_the_defaults(monkeypatch):
    cfg = base_config()
    assert changed_keys(cfg) == {}
    empty = fingerprint(cfg)
    cfg.merge_from_list(["SEED", 5, "SOLVER.MAX_ITER", 7])
    assert changed_keys(cfg) == {"SEED": 5, "SOLVER.MAX_ITER": 7}
    assert fingerprint(cfg) != empty
    assert fingerprint(cfg, ["SEED", "SOLVER.MAX_ITER"]) == empty

    # A later version has one more key.
    before = fingerprint(cfg)

    def later():
        base = base_config()
        base.SEARCH.NEW_KEY = 1
        return base

    newer = later()
    newer.merge_from_list(["SEED", 5, "SOLVER.MAX_ITER", 7])
    monkeypatch.setattr(tools, "base_config", later)
    assert fingerprint(newer) == before
    newer.SEARCH.NEW_KEY = 2
    assert fingerprint(newer) != before
