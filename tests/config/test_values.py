"""Values that make no sense are named with place, key and what was expected."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from detnas_d2.config.reading import ConfigError
from detnas_d2.config.tools import base_config, flatten, load_config
from detnas_d2.config.values import RULES, check_values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", "-1"),
        ("SOLVER.BASE_LR", "-0.1"),
        ("SOLVER.BASE_LR", "1e999"),
        ("SOLVER.BASE_LR", "1e30"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.STEPS", "(5, 2)"),
        ("SOLVER.STEPS", "(True,)"),
        ("SOLVER.GAMMA", "-1.0"),
        ("SOLVER.MOMENTUM", "2.0"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "'x'"),
        ("MODEL.DEVICE", "tpu"),
        ("MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]"),
        ("MODEL.PIXEL_MEAN", "[0.0]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[]]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[-12]]"),
        ("INPUT.MIN_SIZE_TRAIN", "(0,)"),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.FORMAT", "XYZ"),
        ("TEST.AUG.ENABLED", "True"),
        ("SEARCH.POPULATION", "-1"),
        ("SEARCH.GENERATIONS", "-3"),
        ("SEARCH.MUTATION_PROB", "1.5"),
        ("SEARCH.MUTATION_PROB", "-0.5"),
        ("SEARCH.MAX_MACS_INPUT", "[0, 0]"),
        ("SEARCH.MAX_MACS_INPUT", "[64]"),
        ("SEARCH.MAX_MACS_INPUT", "[64.0, 64.0]"),
        ("SEARCH.IMAGE_CACHE_GIB", "-1.0"),
        ("HIT_SEARCH.ARCH_BETAS", "[2.0, 3.0]"),
        ("OUTPUT_DIR", " "),
    ],
)
def test_senseless_values_are_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"command line: {key} is .*expected|PIXEL_MEAN has 1"):
        load_config("", [key, value])


def test_the_line_that_set_a_value_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER:\n  BASE_LR: .nan\n")
    (tmp_path / "a.yaml").write_text("_BASE_: base.yaml\nVERSION: 2\n")
    with pytest.raises(ConfigError, match=r"base\.yaml:2: SOLVER.BASE_LR is nan: expected finite"):
        load_config(str(tmp_path / "a.yaml"))
    load_config(str(tmp_path / "a.yaml"), ["SOLVER.BASE_LR", "0.1"])  # what counts is the last


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["SEED"], "command line: overrides are KEY VALUE pairs, got 1 words; the last is 'SEED'"),
        (["SEEED", "1"], "command line: SEEED: no such key; did you mean SEED"),
        (["solver.max_iter", "3"], "no such key; did you mean SOLVER.MAX_ITER"),
        (["SEED.X", "3"], "command line: SEED.X: SEED is a value"),
        (["SOLVER", "3"], "command line: SOLVER is '3': expected a mapping of keys"),
        (["SEED", "x"], "command line: SEED is 'x': expected an integer like 0"),
        (["SEED", "None"], "command line: SEED is None: expected an integer"),
        (["SEED", "True"], "command line: SEED is True: expected an integer"),
        (["SOLVER.BASE_LR", "1"], "SOLVER.BASE_LR is 1: expected a number like 0.001"),
        (["SOLVER.STEPS", "[" * 300 + "]" * 300], "command line: SOLVER.STEPS is"),
    ],
)
def test_overrides_are_named(opts: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config("", opts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "SEARCH:\n  POPULATON: 3\n",
            r":2: SEARCH\.POPULATON: no such key; did you mean SEARCH.POP",
        ),
        ("MODEL:\n", r":1: MODEL is None: expected a mapping"),
        ("SOLVER: []\n", r":1: SOLVER is \[\]: expected a mapping"),
        ("SEED: {A: 1}\n", r":1: SEED\.A: SEED is a value"),
        ("SOLVER: {MAX_ITER: 2.5}\n", r":1: SOLVER\.MAX_ITER is 2\.5: expected an integer"),
    ],
)
def test_keys_of_files_are_named(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text + "VERSION: 2\n")
    with pytest.raises(ConfigError, match=rf"a\.yaml{expected}"):
        load_config(str(file))


@pytest.mark.parametrize("version", ["two", "99", "0", "true"])
def test_unknown_versions_are_named(tmp_path: Path, version: str) -> None:
    (tmp_path / "a.yaml").write_text(f"VERSION: {version}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: VERSION is .*expected 2"):
        load_config(str(tmp_path / "a.yaml"))


def test_rules_are_of_existing_keys_and_allow_the_defaults() -> None:
    cfg = base_config()
    assert set(RULES) <= set(flatten(cfg))
    check_values(cfg, {}, "")
    cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = math.inf  # a key without a rule
    with pytest.raises(ConfigError, match="SMOOTH_L1_BETA is inf"):
        check_values(cfg, {}, "here")
