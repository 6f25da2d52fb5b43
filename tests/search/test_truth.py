"""Truth sets: written, read again, and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from detnas_d2.search.truth import TruthNetwork, TruthSet, read_truth, write_truth
from detnas_d2.search_space import get_space
from detnas_d2.search_space.space import space_digest
from detnas_d2.utils.errors import InputError

SPACE = get_space("detnas_tiny")


def truth_set() -> TruthSet:
    paths = [SPACE.path(text) for text in ("0 1 2 3 0", "3 2 1 0 3")]
    networks = tuple(
        TruthNetwork(str(path), path.choices, 100, 10, scores, band, supernet, others)
        for path, scores, band, supernet, others in zip(
            paths,
            [(50.5, 51.25), (40.0,)],
            [False, True],
            [33.25, None],
            [{"snip": 1234.5}, {}],
            strict=True,
        )
    )
    return TruthSet(
        SPACE.name,
        space_digest(SPACE),
        "bbox/AP",
        "scenes",
        (0, 1),
        "diagnose.py fidelity",
        {"torch": "2"},
        networks,
        band_macs=100,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = str(tmp_path / "truth.json")
    write_truth(file, truth_set())
    assert read_truth(file) == truth_set()
    assert read_truth(file).networks[0].truth == 50.875
    lines = Path(file).read_text().splitlines()
    assert sum('"path"' in line for line in lines) == 2  # a line each


def test_part_of_a_set_is_balanced() -> None:
    truth, (first, second) = truth_set(), truth_set().networks
    assert truth.balanced().seeds == (0,)
    assert [network.scores for network in truth.balanced().networks] == [(50.5,), (40.0,)]
    others = [dataclasses.replace(first, choices=(i,) * 5) for i in range(9)]
    most = dataclasses.replace(truth, networks=(second, *others, first)).balanced()
    assert most.seeds == (0, 1) and most.networks == (*others, first)


def test_networks_of_range_and_band() -> None:
    truth, (first, second) = truth_set(), truth_set().networks
    cheap, dear = (dataclasses.replace(first, macs=macs) for macs in (94, 105))
    truth = dataclasses.replace(truth, networks=(cheap, dear, second))
    assert truth.ranged == (cheap, dear) and truth.banded == (dear, second)
    assert dataclasses.replace(truth, band_macs=0).banded == ()


def test_spaces_are_told_apart() -> None:
    truth_set().check_space(SPACE)
    wider = dataclasses.replace(SPACE, stage_channels=(24, 48, 96, 194))
    assert space_digest(dataclasses.replace(SPACE, name="other")) == space_digest(SPACE)
    with pytest.raises(InputError, match="another space: of 'detnas_tiny'"):
        truth_set().check_space(wider)


def altered(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    for key, value in values.items():
        (content if key in content else content["networks"][1])[key] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, 'expected a truth set, with "version": 1'),
        ({"seeds": "0"}, "truth.json: seeds is '0'"),
        ({"networks": []}, "networks is "),
        ({"scores": []}, r"network 2: scores is \[\]"),
        ({"scores": [1, 2, 3]}, "network 2: 3 scores for 2 seeds"),
        ({"macs": 1.5}, "network 2: macs is 1.5"),
        ({"choices": [0, 1]}, "network 2: a path of 5 operations, and 2 choices"),
        ({"choices": [0, 1, 2, 3, 0]}, "a network is there twice"),
        ({"seed": 1}, "network 2: .*expected the keys path, choices"),
        ({"supernet": True}, "network 2: supernet is True"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    file = tmp_path / "truth.json"
    write_truth(str(file), truth_set())
    altered(file, **values)
    with pytest.raises(InputError, match=message) as refused:
        read_truth(str(file))
    assert str(refused.value).startswith(str(file))


@pytest.mark.parametrize("text", ["", "[1, 2", '{"version": NaN}', "[]"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "truth.json"
    file.write_text(text)
    with pytest.raises(InputError, match="expected a truth set"):
        read_truth(str(file))
