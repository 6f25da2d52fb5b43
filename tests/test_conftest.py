"""What all tests are given is what they would have without it."""

from __future__ import annotations

from detnas_d2.config.tools import base_config
from tests import conftest


def test_keys_are_those_that_detectron2_reads() -> None:
    cfg = base_config()
    cfg.SEED, cfg.OUTPUT_DIR = 7, "out"
    for keys in (("SEED", "train.seed"), ("OUTPUT_DIR", "output_dir"), ("CUDNN_BENCHMARK", "x")):
        found = conftest.ask(cfg, *keys, default=-1)
        assert found == conftest.of_detectron2(cfg, *keys, default=-1)
    assert conftest.ask(cfg, "NOTHING", default=5) == 5
    assert conftest.defaults._try_get_key is conftest.ask
