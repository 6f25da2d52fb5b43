"""Spaces that a config declares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from detnas_d2.config.tools import base_config, load_config, short_yaml
from detnas_d2.search_space import SPACES, PathError, SearchSpace, build_cost_table, space_of
from detnas_d2.search_space.declared import declaration, parse_space, scaled
from detnas_d2.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    {"CHANNELS": 24, "DEPTH": 2, "OPS": ["3x3", "skip"]},
    {"CHANNELS": 48, "DEPTH": 1},
    {"CHANNELS": 48, "DEPTH": 2, "OPS": ["ir_k3_e3_d1", "conv_k3"]},
]
MINE = {"NAME": "mine", "STEM": 8, "LAST": 63, "OPS": ["5x5", "xception_e2"], "STAGES": STAGES}


def config(*entries: Any, name: str = "mine") -> CfgNode:
    cfg = base_config()
    cfg.MODEL.DETNAS.SPACES, cfg.MODEL.DETNAS.SPACE = list(entries), name
    return cfg


def test_a_declaration_is_the_space_it_describes(tmp_path: Path) -> None:
    expected = SearchSpace(
        "mine",
        8,
        (24, 48, 48),
        (2, 1, 2),
        63,
        (("3x3", "skip"), ("5x5", "xception_e2"), ("ir_k3_e3_d1", "conv_k3")),
    )
    cfg = config({**MINE, "NAME": "other"}, MINE)
    assert space_of(cfg) == expected
    # It travels with the config, through files and on the command line.
    file = tmp_path / "mine.yaml"
    file.write_text(short_yaml(cfg))
    assert space_of(load_config(str(file))) == expected
    opts = ("MODEL.DETNAS.SPACES", str([MINE]), "MODEL.DETNAS.SPACE", "mine")
    assert space_of(load_config("", opts)) == expected


def test_the_papers_spaces_need_no_declaration() -> None:
    assert space_of(config(MINE, name="detnas_large")) is SPACES["detnas_large"]
    with pytest.raises(PathError, match="SPACE is 'yours': expected one of .*detnas_tiny.*, mine"):
        space_of(config(MINE, name="yours"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mine", r"SPACES\[0\] is 'mine': expected a mapping of NAME, STEM"),
        ({"STEMS": 8}, r"SPACES\[0\]: unknown key 'STEMS'"),
        ({"STEM": None}, r"\('mine'\).STEM is None: expected an integer"),
        ({"STEM": 7}, r"STEM is 7: expected an even number"),
        ({"LAST": True}, "LAST is True: expected an integer"),
        ({"NAME": ""}, r"NAME is '': expected a text"),
        ({"NAME": "detnas_tiny"}, "'detnas_tiny' is built in"),
        ({"STAGES": []}, "STAGES is .*: expected a list of stages, not empty"),
        ({"STAGES": [{"CHANNELS": 24}]}, r"STAGES\[0\]: key DEPTH is missing"),
        ({"STAGES": [{"CHANNELS": 25, "DEPTH": 1}]}, r"STAGES\[0\].CHANNELS is 25: .* even"),
        ({"STAGES": [{"CHANNELS": 24, "DEPTH": 0}]}, r"STAGES\[0\].DEPTH is 0"),
        ({"STAGES": [{"CHANNELS": 8, "DEPTH": 1}]}, "CHANNELS is 8: expected more than the 8"),
        ({"STAGES": [{"CHANNELS": 24, "DEPTH": 1, "KIND": 1}]}, "unknown key 'KIND'"),
        ({"STAGES": [24]}, r"STAGES\[0\] is 24: expected a mapping"),
        ({"OPS": []}, "OPS is .*: expected a list of operations, not empty"),
        ({"OPS": ["3x3", "9x9"]}, r"\('mine'\).OPS: no operation '9x9'; expected 3x3, 5x5"),
        ({"OPS": ["3x3", "3x3_e1"]}, "no operation '3x3_e1'"),
        ({"OPS": ["3x3", "ir_k3_e9_d1"]}, "no operation 'ir_k3_e9_d1'"),
        ({"OPS": ["3x3", 5]}, "OPS: 5: expected the name"),
        ({"OPS": ["3x3", "3x3"]}, "an operation is named twice"),
        ({"OPS": ["skip"]}, "expected an operation besides 'skip'"),
    ],
)
def test_wrong_declarations_are_named_in_one_line(change: Any, message: str) -> None:
    entry = {**MINE, **change} if isinstance(change, dict) else change
    with pytest.raises(InputError, match=message) as error:
        space_of(config(entry))
    assert "\n" not in str(error.value)


def test_names_are_given_once_and_every_stage_has_operations() -> None:
    with pytest.raises(InputError, match=r"SPACES\[1\].NAME: 'mine' is declared before"):
        space_of(config(MINE, MINE))
    with pytest.raises(InputError, match=r"STAGES\[1\]: key OPS is missing, here or once in"):
        space_of(config({key: value for key, value in MINE.items() if key != "OPS"}))


def test_the_documented_space_loads(tmp_path: Path) -> None:
    text = (ROOT / "projects" / "DetNAS" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(block)
    space = space_of(load_config(str(file)))
    assert (space.stage_channels, space.stage_depths) == ((64, 160, 320, 640), (4, 6, 8, 3))
    assert space.cardinalities == (4, 5, 5, 5, 4, *[5] * 5, 4, *[5] * 7, 3, 4, 4)
    assert build_cost_table(space).macs.cheapest() > 10_000_000


@pytest.mark.parametrize("name", list(SPACES))
def test_a_space_is_what_its_declaration_describes(name: str) -> None:
    read = parse_space(declaration(SPACES[name]), 0)
    assert read.layers == SPACES[name].layers
    assert (read.name, read.last_channels) == (name, SPACES[name].last_channels)


def test_hand_made_networks_of_other_widths() -> None:
    space = scaled(SPACES["detnas_demo"], 1.3, "3x3")
    assert space.name == "detnas_demo_3x3_x1.3" and space.stem_channels == 16
    assert space.stage_channels == (32, 52, 84, 124)  # of 31.2, 52, 83.2 and 124.8
    assert [layer.ops for layer in space.layers] == [("3x3",)] * 10
    same = scaled(SPACES["detnas_demo"], 1, "3x3")
    costs = [
        build_cost_table(s, (224, 224)).cost(s.uniform_path("3x3"))
        for s in (same, SPACES["detnas_demo"])
    ]
    assert costs[0] == costs[1]
