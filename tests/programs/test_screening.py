"""diagnose.py screening: figure 4 of Hit-Detector."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from detnas_d2.config.tools import base_config
from detnas_d2.programs import screening
from detnas_d2.programs.diagnose import main
from detnas_d2.report.found import Found, FoundStage
from detnas_d2.report.searches import gradient_part
from detnas_d2.utils.errors import InputError

REPORT = {
    "part": "neck",
    "kept": ["conv_k3", "ir_k3_e3_d1"],
    "removed": [{"op": "sep_k3_d1", "iteration": 15}],
    "iterations": [0, 10, 20],
    "scores": {
        "sep_k3_d1": [0.3, 0.2],
        "ir_k3_e3_d1": [0.3, 0.35, 0.4],
        "conv_k3": [0.4, 0.45, 0.6],
    },
}


def folder(path: Path, mu: float = 0.1, **changes: object) -> str:
    cfg = base_config()
    cfg.HIT_SEARCH.SCREENING.GROUP_SPARSITY = mu
    path.mkdir()
    (path / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    (path / "screening.yaml").write_text(yaml.safe_dump({**REPORT, **changes}), encoding="utf-8")
    return str(path)


def test_scores_are_told_and_drawn(tmp_path: Path, capsys, monkeypatch) -> None:
    figures: list = []
    monkeypatch.setattr(screening, "save_figure", lambda figure, file: figures.append(figure))
    folders = [folder(tmp_path / "a", 0.0), folder(tmp_path / "b", 0.1)]
    json_file = tmp_path / "out.json"
    plot = ["--plot", str(tmp_path / "out.svg"), "--json", str(json_file)]
    main(["screening", *folders, "--operations", "conv_k3", "sep_k3_d1", *plot])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[-1].strip() == "neck, mu 0.1" and "neck, mu 0" in head
    cells = {line.split()[0]: line.split()[1:] for line in lines}
    assert cells == {
        "sep_k3_d1": ["(0.2000)"] * 2,
        "ir_k3_e3_d1": ["0.4000"] * 2,
        "conv_k3": ["0.6000"] * 2,
    }
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ["neck, mu 0", "neck, mu 0.1"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes[1].lines}
    assert lines["conv_k3"] == [[0, 0.4], [10, 0.45], [20, 0.6]]
    assert lines["sep_k3_d1"] == [[0, 0.3], [10, 0.2]]  # removed at 15
    assert len(axes[1].lines) == 3 and "ir_k3_e3_d1" not in lines  # in grey, without a name
    assert json.loads(json_file.read_text())[1]["mu"] == 0.1


def test_file_is_written(tmp_path: Path) -> None:
    file = tmp_path / "figure4.svg"
    main(["screening", folder(tmp_path / "a"), "--plot", str(file)])
    assert "conv_k3" in file.read_text() and "neck, mu 0.1" in file.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scores": 3},
            r"yaml:\d+: scores is 3, expected operations, each with a list of at most 3",
        ),
        ({"scores": {}}, r"yaml:\d+: scores is {}, expected operations"),
        ({"scores": {"conv_k3": [0.1, ".nan"]}}, r"scores is {'conv_k3': \[0.1, '.nan'\]}"),
        ({"iterations": ["x"]}, r"yaml:\d+: iterations is \['x'\], expected a list of whole"),
        ({"iterations": [0, 10]}, "scores is .*, expected .* at most 2 numbers"),
        ({"kept": ["conv_k9"]}, r"kept is \['conv_k9'\], expected .* operations that have scores"),
        ({"removed": [{"op": "x"}]}, r"removed is .*, expected a list of {op: NAME, iteration: "),
        ({"part": None}, "part is None, expected the name of the part"),
    ],
)
def test_wrong_file(tmp_path: Path, changes: dict, message: str) -> None:
    place = folder(tmp_path / "a", **changes)
    with pytest.raises(InputError, match=message) as error:
        main(["screening", place, "--plot", str(tmp_path / "figure.svg")])
    assert str(error.value).startswith(f"{place}/screening.yaml:")


def test_key_that_is_missing(tmp_path: Path) -> None:
    place = folder(tmp_path / "a")
    (tmp_path / "a" / "screening.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="screening.yaml: part is missing, expected the name"):
        main(["screening", place])


def test_the_page_shows_and_refuses_the_same(tmp_path: Path) -> None:
    def part_of(place: str):
        stage = FoundStage("screen", "screen", "screen", "given", None, place)
        return gradient_part(Found(str(tmp_path), (stage,)), None)

    found = part_of(folder(tmp_path / "a"))
    assert found is not None and len(found.figures) == 1
    (told,) = found.screenings
    assert told["kept"] == ("conv_k3", "ir_k3_e3_d1") and told["removed"] == (("sep_k3_d1", 15),)
    with pytest.raises(InputError, match="b/screening.yaml:.* scores is {}"):
        part_of(folder(tmp_path / "b", scores={}))
    (tmp_path / "b" / "screening.yaml").unlink()  # of a screening that runs
    assert part_of(str(tmp_path / "b")).screenings == []


def test_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="screening.yaml is missing: expected the output folder"):
        main(["screening", str(tmp_path / "empty")])
    with pytest.raises(InputError, match="--operations conv_k9: expected some of conv_k3, "):
        main(["screening", folder(tmp_path / "a"), "--operations", "conv_k9"])
    with pytest.raises(InputError, match=r"x.gif: expected a file name that ends in one of .svg"):
        main(["screening", str(tmp_path / "gone"), "--plot", "x.gif"])
