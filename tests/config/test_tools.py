"""What a config changes, as a fingerprint."""

from __future__ import annotations

import detnas_d2.config.tools as tools
from detnas_d2.config.tools import base_config, changed_keys, differing_keys, fingerprint


def test_differing_keys():
    old, new = base_config(), base_config()
    new.merge_from_list(["SEED", 5, "SEARCH.MAX_MACS", 7, "SEARCH.VAL", "x", "MODEL.DEVICE", "cpu"])
    assert differing_keys(old, new, ["MODEL.DEVICE", "SEARCH"]) == ["SEED: 0 -> 5"]
    assert differing_keys(new, old, ["SEARCH.M", "SEARCH.MAX_MACS", "MODEL.DEVICE"]) == [
        "SEARCH.VAL: 'x' -> ''",
        "SEED: 5 -> 0",
    ]
    # What writing and reading a config changes.
    old.DATASETS.REGISTER, old.SOLVER.STEPS = [{"NAME": "a", "FORMAT": "coco"}], (1, 2)
    again = old.clone()
    again.DATASETS.REGISTER, again.SOLVER.STEPS = [{"FORMAT": "coco", "NAME": "a"}], [1, 2]
    assert differing_keys(old, again) == []
    old = base_config()
    # "SEARCH" is the node, not every key that begins so.
    old.SEARCHED = 1
    assert differing_keys(old, new, ["SEARCH", "SEED", "MODEL"]) == ["SEARCHED: 1 -> 'nothing'"]
    assert fingerprint(new, ["SEARCH", "SEED", "MODEL"]) == fingerprint(base_config())


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
