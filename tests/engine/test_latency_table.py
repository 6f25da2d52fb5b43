"""Tables of the latency of whole detectors: fit, check, every part, the command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from detnas_d2.cli import latency as command
from detnas_d2.cli.main import main
from detnas_d2.config.tools import short_yaml
from detnas_d2.engine import latency_table
from detnas_d2.engine.architectures import searched_space
from detnas_d2.engine.latency import Latency, Picture
from detnas_d2.engine.latency_table import Target, detector_table
from detnas_d2.engine.proposals import read_latency
from detnas_d2.engine.runtimes import RUNTIMES
from detnas_d2.layers import ConvNormAct, get_norm
from detnas_d2.search_space import SPACES, LatencyTable, measure_latency
from detnas_d2.search_space.latency import in_pytorch
from detnas_d2.search_space.shuffle_ops import build_block
from detnas_d2.utils.errors import InputError
from tests.engine.hit_runs import scene_config
from tests.helpers import detector_config

TINY = SPACES["detnas_tiny"]


def milliseconds(path: str) -> float:
    """Of a made-up machine: 4 ms, half of what blocks take alone; kernels cost their size."""
    sizes = {"3x3": 3.0, "5x5": 5.0, "7x7": 7.0, "xception": 4.0}
    return 4.0 + 0.5 * sum(sizes[op] for op in TINY.path(path).ops)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and detectors take what :func:`milliseconds` says; a millisecond of the stem."""

    def blocks(*args: object, **kwargs: object) -> LatencyTable:
        return LatencyTable(1.0, ((3.0, 5.0, 7.0, 4.0),) * 5, TINY.name, (64, 64), 1, "cpu")

    def whole(runs: list[str], repeats: int) -> list[Latency]:
        return [Latency(milliseconds(path), 0, 0, 0, 0, 0) for path in runs]

    monkeypatch.setattr(latency_table, "measure_latency", blocks)
    monkeypatch.setattr(latency_table, "latencies", whole)
    monkeypatch.setattr(latency_table, "_run", lambda target, path, *_: str(path))


def target(**options: object) -> Target:
    cfg = detector_config()
    return Target(cfg, Picture.of_config(cfg, size=(48, 64)), **options)


def test_the_table_is_what_the_detectors_take(machine: None) -> None:
    table = detector_table(target(), fitted=4, checked=30)
    for path in ("0 0 0 0 0", "2 1 3 0 2"):
        assert table.total(TINY.path(path).choices) == pytest.approx(milliseconds(path))
    told = table.detector
    assert told["slope"] == pytest.approx(0.5) and told["rest"] == pytest.approx(3.5)
    check = told["check"]
    assert check["tau"] == check["tau_of_two_rounds"] == 1 and check["largest_error"] < 1e-9
    paths = [each["path"] for each in check["detectors"]]
    assert len(set(paths)) == 30 and "3x3 / 3x3 / 3x3 3x3 / 3x3" not in paths  # fitted to that
    # Over the whole range of costs: uniform draws hardly reach the dearest fifth.
    low, high = table.cheapest(), table.most_expensive()
    places = [(each["table"] - low) / (high - low) for each in check["detectors"]]
    fifths = [sum(low <= place <= low + 0.2 for place in places) for low in (0, 0.2, 0.4, 0.6, 0.8)]
    assert min(fifths) >= 5
    for each in check["detectors"]:
        assert each["table"] == pytest.approx(each["measured"]) == milliseconds(each["path"])
    assert LatencyTable.from_json(table.to_json(), TINY) == table
    assert "30 detectors rank as it says with tau 1.00" in table.about
    # Without a check it says so; more detectors than there are paths are refused.
    assert detector_table(target(), fitted=2, checked=0).about.endswith(", not checked")
    with pytest.raises(InputError, match=r"has 1024 paths, expected 1100 .* with --detectors"):
        detector_table(target(), fitted=100, checked=1000)


def test_tables_of_backbones_are_as_before() -> None:
    table = LatencyTable(1.0, ((1.0,) * 4,) * 5, TINY.name, (64, 64), 1, "cpu")
    assert "detector" not in json.loads(table.to_json()) and "of backbones" in table.about
    damaged = json.dumps({**json.loads(table.to_json()), "detector": "yes"})
    with pytest.raises(ValueError, match="whose detector is no mapping"):
        LatencyTable.from_json(damaged, TINY)


@torch.no_grad()
def test_blocks_run_as_in_a_backbone() -> None:
    norm = partial(get_norm, "BN")
    for layer in TINY.layers[:4]:
        for op in layer.ops:
            block = build_block(layer, op, norm, 1).eval()
            x = torch.randn(1, layer.in_channels, 16, 12)
            for fused in (True, False):
                found = in_pytorch(block, x, fused=fused)()
                torch.testing.assert_close(found, block(x), atol=1e-5, rtol=1e-4)
    stem = ConvNormAct(3, 8, 3, norm=norm, stride=2, bias=True).eval()
    x = torch.randn(1, 3, 16, 12)
    torch.testing.assert_close(in_pytorch(stem, x)(), stem(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_every_part_of_a_hit_detector(tmp_path: Path, runtime: str) -> None:
    cfg = scene_config(tmp_path, "search.yaml", "out", "MODEL.HIT.STRATEGY", "sampling")
    space = searched_space(cfg)
    asked = Target(cfg, Picture.of_config(cfg, size=(64, 64)), runtime, repeats=2)
    if runtime == "pytorch":
        found = detector_table(asked, fitted=2, checked=2)
        assert min(each["measured"] for each in found.detector["check"]["detectors"]) > 0
    else:
        prepare = partial(latency_table._in_runtime, runtime=runtime, folder=str(tmp_path))
        found = measure_latency(space, input_size=(64, 64), repeats=1, regions=4, prepare=prepare)
    assert tuple(map(len, found.entries)) == space.cardinalities
    assert {part for part, _ in space.parts} == {"backbone", "neck", "head"}
    assert all(value > 0 for row in found.entries for value in row)


def test_a_relaxed_detector_has_no_paths(tmp_path: Path) -> None:
    cfg = scene_config(tmp_path, "search.yaml", "out")
    with pytest.raises(InputError, match="searches by gradient; expected .* sampling"):
        detector_table(Target(cfg, Picture.of_config(cfg, size=(64, 64))))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = detector_config()
    cfg.INPUT.MIN_SIZE_TEST = 48
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "search.yaml").write_text(short_yaml(cfg))
    file = tmp_path / "table.json"
    words = ["latency", str(tmp_path), "--table", str(file), "--size", "40x60", "--threads", "1"]
    main([*words, "--runs", "2", "--detectors", "2"])
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{file}: detectors of space detnas_tiny in PyTorch ")
    assert "one image of 40 x 60 pixels" in told[0] and "threads: 1," in told[0]
    assert "check with 2 other detectors: rank correlation tau " in told[2]
    assert told[2].endswith(" ms") and "at most; they take " in told[2]
    assert told[-1] == f"a search reads it: SEARCH.LATENCY_TABLE {file}"
    table = read_latency(str(file), TINY)
    assert table.detector["threads"] == 1 and table.detector["config"] == "search.yaml"
    assert table.input_size == (64, 96) and 0 < table.cheapest() <= table.most_expensive()
    for more, message in (
        (["--runtime", "pytorch,onnxruntime"], "--runtime pytorch,onnxruntime: a table is of one"),
        (["--detectors", "1"], "--detectors 1: expected 2 or more, or 0"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            main([*words, *more])
    with pytest.raises(InputError, match="none: expected the config of a search, or a folder"):
        main(["latency", str(tmp_path / "none"), "--table", str(file)])


def test_the_command_knows_the_runtimes() -> None:
    assert tuple(RUNTIMES) == command._RUNTIMES
