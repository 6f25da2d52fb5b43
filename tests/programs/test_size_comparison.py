"""diagnose.py resolutions of several searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from scipy import stats

from detnas_d2.config.resolutions import at_resolution
from detnas_d2.config.tools import load_config
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation.build import sequential_evaluator
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.pipeline import truth_scores
from detnas_d2.programs.diagnose import main
from detnas_d2.programs.size_comparison import SizeComparison, random_networks
from detnas_d2.search_space import SPACES
from detnas_d2.utils.errors import InputError
from tests.catalogs import own_names
from tests.engine.tiny_runs import Configs, write_config
from tests.programs.test_resolutions import folder

TINY = SPACES["detnas_tiny"]
A, B, C = (TINY.uniform_path(op) for op in ("3x3", "5x5", "7x7"))


def comparison(**changes: Any) -> SizeComparison:
    """Three searches that found A best at 32 and B at 64; the third one C at 32."""
    scores = [
        {(A, 32): 10.0, (A, 64): 20.0, (B, 32): 8.0, (B, 64): 23.0, (C, 32): 9.0, (C, 64): 20.0},
        {(A, 32): 12.0, (A, 64): 22.0, (B, 32): 9.0, (B, 64): 24.0, (C, 32): 9.0, (C, 64): 20.0},
        {(A, 32): 11.0, (A, 64): 21.0, (B, 32): 9.0, (B, 64): 22.5, (C, 32): 9.0, (C, 64): 20.0},
    ]
    best = ({32: A, 64: B}, {32: A, 64: B}, {32: C, 64: B})
    values = {"sizes": (32, 64), "searches": ("s0", "s1", "s2"), "best": best}
    return SizeComparison(**{**values, "networks": (A, C), "scores": tuple(scores), **changes})


def test_what_a_search_found_is_judged_by_the_other_supernets() -> None:
    found = comparison()
    assert found.judged(0, 32, 32) == 11.5  # of s1 and s2
    assert found.judged(2, 32, 64) == 20.0
    head, at_32, at_64, drawn = found.table()
    assert head == ["", "at 32", "at 64"]
    assert at_32 == ["found best at 32", "10.33", "20.67"]  # (11.5 + 10.5 + 9) / 3 and so on
    assert at_64 == ["found best at 64", "8.67", "23.17"]
    assert drawn == ["2 random networks", "10.00", "20.50"]
    first, second = found.differences
    expected = stats.ttest_rel([11.5, 10.5, 9.0], [9.0, 8.5, 8.5]).confidence_interval(0.95)
    assert (first.low, first.high) == pytest.approx(tuple(expected))
    assert str(first).startswith(
        "best at 32 against best at 64: fitness at 32 +1.67, 95 % interval"
    )
    assert "paired by 3 searches" in str(second) and second.value == pytest.approx(2.5)
    assert found.agreements == {}  # of two networks there is no order to speak of


def test_networks_without_a_score_stand_aside() -> None:
    whole = comparison()
    scores = [dict(own) for own in whole.scores]
    del scores[1][C, 64], scores[1][A, 32]
    found = comparison(scores=tuple(scores))
    assert found.scored == [] and found.table()[-1] == ["0 random networks", "-", "-"]
    assert found.judged(0, 32, 32) is None and found.judged(1, 32, 32) == 10.5
    assert found.differences[0].seeds == (1, 2)
    assert json.loads(json.dumps(found.as_dict()))["networks"] == []


def test_random_networks_keep_the_limits_at_all_sizes() -> None:
    opts = ["SEARCH.RESOLUTIONS", [32, 64], "INPUT.MIN_SIZE_TEST", 32]
    opts += ["MODEL.DETNAS.SPACE", "detnas_tiny", "SEARCH.MAX_MACS_INPUT", [64, 64]]
    free = load_config("", opts)
    drawn = random_networks(free, 20)
    assert len(set(drawn)) == 20 and random_networks(free, 5) == drawn[:5]
    costs = sorted(Proposals.from_config(free).costs_at(64).macs.total(p.choices) for p in drawn)
    limited = load_config("", [*opts, "SEARCH.MAX_MACS", costs[9]])
    table = Proposals.from_config(limited).costs_at(64).macs
    assert max(table.total(path.choices) for path in random_networks(limited, 20)) <= costs[9]
    with pytest.raises(InputError, match=r"--networks 1025: 1024 paths were found .* fewer"):
        few = load_config("", [*opts, "SEARCH.ATTEMPTS", 20])
        random_networks(few, 1025)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of searches of tiny supernets with random weights."""
    root = tmp_path_factory.mktemp("sizes")
    found = []
    for seed in (0, 1):
        (root / str(seed)).mkdir()
        keys = ("SEARCH.RESOLUTIONS", [48, 64], "SEARCH.CHUNK", 4)
        cfg = Configs(root / str(seed)).search(*keys)
        if found:  # the same data, another supernet
            cfg.DATASETS = load_config(str(found[0] / "config.yaml")).DATASETS
            _shift(cfg)
        name = str(root / f"search{seed}")
        place = folder(Path(name), (48, 64), wanted=(A.at(48), C.at(64)), known=KNOWN)
        write_config(cfg, Path(place) / "config.yaml")
        found.append(Path(place))
    return found


KNOWN = {A.at(48): 3.0, C.at(64): 4.0}


def _shift(cfg: CfgNode) -> None:
    state = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)
    torch.manual_seed(5)
    moved = {
        name: value + 0.02 * torch.randn_like(value) if "weight" in name else value
        for name, value in state["model"].items()
    }
    torch.save({"model": moved}, cfg.MODEL.WEIGHTS)


def test_scores_are_those_of_the_supernets(
    searched: list[Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tmp_path / name) for name in ("r.json", "r.svg")]
    words = ["resolutions", *map(str, searched), "--output", str(tmp_path / "scores")]
    words += ["--networks", "9", "--json", files[0], "--plot", files[1]]
    with own_names():
        main(words)
        told = json.loads(Path(files[0]).read_text())
        assert told["sizes"] == [48, 64] and len(told["networks"]) == 9
        assert len(told["agreements"]) == 1 and len(told["differences"]) == 2
        out = capsys.readouterr().out
        assert "| found best at 48 |" in out and "48 and 64: two supernets rank 9 random" in out
        assert "one supernet at each size" in Path(files[1]).read_text()
        for place, search in zip(searched, told["searches"], strict=True):
            assert search["best"] == {"48": str(A), "64": str(C)}
            cfg = load_config(str(place / "config.yaml"))
            model = load_supernet(cfg)
            for entry in search["scores"][::5]:
                settings = EvaluationSettings.from_config(at_resolution(cfg, entry["size"]))
                settings.register(settings.datasets)
                alone = sequential_evaluator(settings, model)
                assert alone.evaluate(TINY.path(entry["path"])).fitness == entry["fitness"]

        # The same command scores nothing again.
        monkeypatch.setattr(truth_scores, "load_supernet", None)
        main(words)
        assert json.loads(Path(files[0]).read_text()) == told


def test_searches_that_do_not_compare(searched: list[Path], tmp_path: Path) -> None:
    first, second = map(str, searched)
    output = ["--output", str(tmp_path / "out")]
    other = folder(tmp_path / "other", (48, 64), wanted=(A.at(48),), known=KNOWN)
    cfg = load_config(str(searched[1] / "config.yaml"), ["SEARCH.RESOLUTIONS", [48, 96]])
    write_config(cfg, Path(other) / "config.yaml")
    for words, message in (
        ([first, second], "several searches: expected --output FOLDER"),
        ([first, first, *output], "have one supernet, .* as a pipeline with SEEDS trains them"),
        ([first, other, *output], r"other: SEARCH.RESOLUTIONS: \(48, 96\), of .* \(48, 64\)"),
        ([first, second, *output, "--networks", "-1"], "--networks -1: expected 0 or more"),
        ([first, "--plot", "x.svg"], "--plot: of several searches; expected two folders"),
    ):
        with pytest.raises(InputError, match=message):
            main(["resolutions", *words])
