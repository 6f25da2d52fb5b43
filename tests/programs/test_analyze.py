"""analyze_net.py: counts by kernel, pictures of configs, folders and texts."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from detectron2.config import CfgNode

from detnas_d2.config.tools import short_yaml
from detnas_d2.programs.analyze import main
from detnas_d2.search.history import History
from detnas_d2.utils.errors import InputError
from tests.helpers import candidate_record, detector_config

CONFIGS = Path(__file__).parents[2] / "configs"
RELEASED = str(CONFIGS / "DetNAS" / "released" / "detnasnet_300M_fpn_coco.yaml")
SEARCH = str(CONFIGS / "DetNAS" / "fpn_coco" / "search.yaml")
HIT = str(CONFIGS / "HitDetector" / "released" / "coco.yaml")
HIT_SEARCH = str(CONFIGS / "HitDetector" / "search" / "search.yaml")
TINY = ("--input-size", "64", "64", "--proposals", "2")


def drawn(file: Path) -> tuple[int, list[str]]:
    """Number of blocks of a picture, and its texts."""
    root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    classes = [element.get("class", "").split() for element in root.iter()]
    texts = [e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}text")]
    return sum("detnas-block" in names for names in classes), texts


def detector(path: str = "") -> CfgNode:
    """A config with a supernet, or with the network of a path."""
    cfg = detector_config("faster")
    if path:
        cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
        cfg.MODEL.DETNAS.PATH = path
    return cfg


def run_folder(folder: Path, path: str = "") -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(detector(path).dump(), encoding="utf-8")
    return folder


def test_released_network_is_told_and_drawn(tmp_path: Path, capsys) -> None:
    file = tmp_path / "new" / "out.svg"
    main(["--config-file", RELEASED, *TINY, "--picture", str(file)])
    out = capsys.readouterr().out
    assert "backbone                 1,849,680" in out
    assert "  stages 1 and 2: 1 of 3x3, 3 of 5x5, 4 of 7x7\n" in out
    assert "  stages 3 and 4: 8 of 3x3 (6 Xception), 3 of 5x5, 1 of 7x7\n" in out
    blocks, texts = drawn(file)
    assert blocks == 20
    assert "288.1M multiply-adds, 1.85M parameters, backbone at 224x224" in texts
    assert any("20.73M parameters, whole detector at 64x64" in text for text in texts)


def test_json(capsys) -> None:
    main(["--config-file", RELEASED, *TINY, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["backbone"]["params"] == 1_849_680
    (network,) = found["networks"]
    assert network["deep"] == {"3x3": 8, "5x5": 3, "7x7": 1, "xception": 6, "skipped": 0}
    assert len(network["stages"]) == 4 and network["architecture"].startswith("7x7 5x5 7x7 3x3 /")


def test_several_sources_in_one_picture(tmp_path: Path, capsys) -> None:
    found = run_folder(tmp_path / "search")
    history = History.open(found, {}, resume=False)
    for index, (ops, fitness) in enumerate(
        [("3x3 / 3x3 / 3x3 3x3 / 3x3", 1.0), ("7x7 / 5x5 / xception 7x7 / 5x5", 2.0)]
    ):
        choices = (0,) * 5 if index == 0 else (2, 1, 3, 2, 1)
        record = candidate_record(index, path=ops, choices=choices, fitness=fitness)
        history.append(record)
    trained = run_folder(tmp_path / "trained", "5x5 5x5 5x5 5x5 3x3")
    file = tmp_path / "out.svg"
    sources = [f"found={found}", str(trained), "hand made=3x3", "all=2 1 2 0 2 1 1 2 " + "3 " * 12]
    options = [word for source in sources for word in ("--network", source)]
    main(["--config-file", SEARCH, *TINY, "--picture", str(file), *options])
    blocks, texts = drawn(file)
    assert blocks == 5 + 5 + 20 + 20
    where = f"{tmp_path.name}/trained"
    assert [t for t in texts if t in ("found", where, "hand made", "all")] == [
        *("found", where, "hand made", "all")
    ]
    out = capsys.readouterr().out
    assert "found:\n  stage 1: 1 of 7x7\n" in out  # the fittest so far
    assert "total" not in out  # of a supernet there are no costs


def test_picture_of_the_documents(tmp_path: Path) -> None:
    """docs/experiments.md shows it, with the command."""
    names = ("ShuffleNetV2-20, hand-made=3x3", f"DetNAS 300M with FPN on COCO, released={RELEASED}")
    networks = [word for name in names for word in ("--network", name)]
    main(["--config-file", SEARCH, "--picture", str(tmp_path / "out.svg"), *networks])
    shown = CONFIGS.parent / "docs" / "architectures.svg"
    assert (tmp_path / "out.svg").read_bytes() == shown.read_bytes()


def test_best_network_of_a_finished_search(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "search")
    best = short_yaml(detector("xception 3x3 3x3 3x3 3x3"))
    (folder / "best.yaml").write_text(best, encoding="utf-8")
    main([*TINY, "--picture", str(tmp_path / "out.svg"), "--network", str(folder)])
    blocks, texts = drawn(tmp_path / "out.svg")
    assert blocks == 5 and texts.count("X") == 2  # block and legend


def test_genotype(tmp_path: Path, capsys) -> None:
    file = tmp_path / "out.svg"
    text = "head=head: ir_k3_e3_d1 conv_k3 skip ir_k7_e6"
    main(["--config-file", HIT, *TINY, "--picture", str(file), "--network", text])
    blocks, texts = drawn(file)
    assert blocks == 4 and "ir k7 e6" in texts
    assert "head: head: ir_k3_e3_d1 conv_k3 skip ir_k7_e6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config-file or --network"),
        (["--network", "3x3 3x3"], "'3x3 3x3': no such file or folder; .* --config-file"),
        (["--network", "gone/best.yaml"], "gone/best.yaml: no such config"),
        (["--network", "title="], "no such config"),
        (["--config-file", SEARCH], "search.yaml: a supernet has the costs of no single network"),
        (["--config-file", HIT_SEARCH], "search.yaml: a supernet has the costs of no single"),
        (["--config-file", SEARCH, "--picture", "x.svg"], "neither a path .* nor a genotype"),
        (
            ["--config-file", SEARCH, "--network", "3x3", "--picture", "x.png"],
            "--picture x.png: expected a name that ends with .svg",
        ),
        (["--config-file", SEARCH, "--network", "3x3 9x9"], "as a path: .* has 20 layers"),
        (["--config-file", SEARCH, "--network", "9x9"], "9x9.*expected one of 3x3, 5x5"),
        (["--config-file", HIT, "--network", "neck: sep_k3_d1"], "has 8 layers"),
    ],
)
def test_wrong_source_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


def test_folder_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no best.yaml and no config.yaml"):
        main(["--network", str(tmp_path)])
    folder = run_folder(tmp_path / "search")
    History.open(folder, {}, resume=False)
    with pytest.raises(InputError, match="no candidate has a fitness yet"):
        main(["--network", str(folder)])
