"""Differences between rows of tables: their intervals by hand, and when there is none."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.stats import t

from detnas_d2.config.tools import nested
from detnas_d2.engine.architectures import decoded_example, genotype_of
from detnas_d2.engine.checks.disk import Need
from detnas_d2.engine.checks.models import Models
from detnas_d2.pipeline import run, shown, stage_run
from detnas_d2.pipeline.differences import difference, differences, format_differences
from detnas_d2.pipeline.experiment import read_experiment
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.pipeline.state import DONE
from detnas_d2.pipeline.status import stage_fingerprint, stage_state
from detnas_d2.utils.errors import InputError
from tests.campaigns.tiny import hit_pipeline
from tests.engine.tiny_runs import arguments

T2 = 4.302652729749464
"""The 97.5 % quantile of Student's t with two degrees of freedom."""


def of(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> Any:
    return difference("searched", "random", "bbox/AP", ours, theirs)


def test_pairs_are_of_one_seed_and_its_networks_count_by_their_mean() -> None:
    found = of({0: [30], 1: [32], 2: [35]}, {2: [31.0], 0: [28, 30], 1: [31, 29, 30]})
    # 1, 2 and 4.
    deviation = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    half = T2 * deviation / math.sqrt(3)
    assert found.value == pytest.approx(7 / 3) and found.seeds == (0, 1, 2)
    assert (found.low, found.high) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert found.low < 0 and found.verdict == ""
    assert str(found) == (
        "searched against random: bbox/AP +2.33, 95 % interval -1.46 to +6.13 (paired by 3 "
        "seeds): no difference shown"
    )


@pytest.mark.parametrize(("sign", "verdict"), [(1, "above"), (-1, "below")])
def test_words_stand_only_where_the_interval_excludes_nothing(sign: int, verdict: str) -> None:
    ours = {0: [10 + sign * 2.0], 1: [40 + sign * 2.5], 2: [20 + sign * 3.0]}
    found = of(ours, {0: [10], 1: [40], 2: [20]})
    assert found.verdict == verdict and str(found).endswith(f": {verdict}")
    half = T2 * 0.5 / math.sqrt(3)
    assert sorted((found.low, found.high)) == pytest.approx(
        sorted((sign * (2.5 - half), sign * (2.5 + half)))
    )


def test_only_seeds_that_both_have_are_paired() -> None:
    found = of({0: [3], 1: [5], 7: [100]}, {0: [1], 1: [2], 3: [0]})
    assert found.value == pytest.approx(2.5) and found.seeds == (0, 1)
    assert "paired by 2 seeds" in str(found)


def test_other_seeds_are_not_paired() -> None:
    """Welch's interval, with his degrees of freedom."""
    a, b = [3.0, 5.0, 4.0], [1.0, 2.0]
    found = of(dict(enumerate([v] for v in a)), {8: [b[0]], 9: [b[1]]})
    va, vb = 1.0 / 3, 0.5 / 2
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 1)
    assert freedom == pytest.approx(2.8824, abs=1e-4)
    half = t.ppf(0.975, freedom) * math.sqrt(va + vb)
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert "3 and 2 other seeds" in str(found)


def test_where_there_is_no_interval() -> None:
    one = of({0: [31.0]}, {0: [30.0, 29.0, 28.0]})
    assert str(one) == "searched against random: bbox/AP +2.00 (one run: no interval)"
    tie = of({0: [1.5], 1: [2.5]}, {0: [1.0], 1: [2.0]})
    assert (tie.low, tie.verdict) == (None, "") and "no spread: no interval" in str(tie)
    nothing = of({0: [math.nan], 1: [2.5]}, {0: [1.0], 1: [2.0]})
    assert str(nothing) == "searched against random: bbox/AP undefined (a network has no score)"
    assert json.loads(json.dumps(nothing.as_dict(), allow_nan=False))["value"] is None


def test_without_scipy_the_interval_alone_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    found = of({0: [30], 1: [32]}, {0: [28], 1: [29]})
    assert (found.value, found.low, found.verdict) == (2.5, None, "")
    assert "SciPy is not installed: no interval" in str(found)


def test_every_pair_once() -> None:
    values = {"bbox/AP": {0: [1.0]}}
    samples = {"a": values, "b": {**values, "bbox/AP50": {0: [2.0]}}, "c": values, "d": {}}
    found = list(differences(samples, ["b", "a"], "seeds"))
    assert [(d.row, d.other, d.metric) for d in found] == [
        ("b", "a", "bbox/AP"),
        ("b", "c", "bbox/AP"),
        ("a", "c", "bbox/AP"),
    ]
    assert format_differences([]) == ""
    assert format_differences(found[:1], 2) == (
        "\n\n- b against a: bbox/AP +0.00 (one run: no interval)\n- 2 more seeds are not done yet"
    )


APS = {0: {"searched": 30.0, "random": 27.0}, 2: {"searched": 34.0, "random": 30.5}}


def fake_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages end at once with made-up results, and what is found is the first of the candidates;
    returns the folders that were worked in.
    """
    started: list[str] = []

    def fake(args: Any) -> None:
        pipeline, stage = args.pipeline, args.stage
        cfg = pipeline.config_of(stage)
        folder, results = Path(cfg.OUTPUT_DIR), {}
        started.append(str(folder))
        if stage.kind == "train":
            results = {"bbox/AP": APS[pipeline.seed][stage.row or stage.name]}
        if stage.kind == "screen":
            (part,) = cfg.MODEL.HIT.SEARCHABLE_PARTS
            kept = {f"MODEL.HIT.OPS.{part.upper()}": ["skip", "sep_k3_d1", "conv_k1"]}
            (folder / "sub_space.yaml").write_text(yaml.safe_dump(nested({**kept, "VERSION": 2})))
        if stage.kind == "gradient":
            words = decoded_example(cfg, Models().of(cfg))
            keys = dict(zip(words[::2], words[1::2], strict=True))
            (folder / "genotype.yaml").write_text(yaml.safe_dump(nested({**keys, "VERSION": 2})))
            (folder / "best.yaml").write_text("VERSION: 2\n")
        torch.save({}, folder / "model_final.pth")
        mark = stage_fingerprint(pipeline, stage)
        done = {"fingerprint": mark, "results": results, "path": str(genotype_of(cfg))}
        (folder / "done.json").write_text(json.dumps(done))

    def unchecked(pipeline: Any, done: set[str], *, processes: int) -> dict[str, Need]:
        return {stage.name: Need() for stage in pipeline.stages}

    monkeypatch.setattr(stage_run, "_run_stage", fake)
    monkeypatch.setattr(run, "check_stages", unchecked)
    return started


def test_record_of_several_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hit-Detector's certificate: genotypes of searches against random ones of equal cost."""
    file = hit_pipeline(tmp_path)
    data = yaml.safe_load(file.read_text())
    data["STAGES"][-1]["OPTS"] = ["SEED", 4]
    file.write_text(yaml.safe_dump(data))
    started = fake_stages(monkeypatch)
    runs = tmp_path / "runs"
    assert run_pipeline(arguments(str(file), "SEEDS", "0"))
    assert len(started) == 5 and all(str(runs / "seed0") in folder for folder in started)
    assert "one run: no interval" in capsys.readouterr().out
    record = tmp_path / "records" / "hit.json"
    args = arguments(str(file), "SEEDS", "0,2", "DATALOADER.NUM_WORKERS", "1")
    args.record = str(record)
    assert run_pipeline(args)
    assert len(started) == 10  # those of seed 0 were done
    mean, half = 3.25, 12.706204736432095 * math.sqrt(0.125) / math.sqrt(2)
    found = json.loads(record.read_text())
    assert found["seeds"] == [0, 2] and found["overrides"] == ["DATALOADER.NUM_WORKERS", "1"]
    assert found["rows"]["random"]["networks"] == 2
    assert found["rows"]["searched"]["values"] == {"bbox/AP": {"0": [30.0], "2": [34.0]}}
    assert found["rows"]["searched"]["metrics"]["bbox/AP"] == [32.0, pytest.approx(math.sqrt(8))]
    (told,) = found["differences"]
    assert (told["value"], told["seeds"], told["verdict"]) == (mean, [0, 2], "above")
    assert (told["low"], told["high"]) == pytest.approx((mean - half, mean + half))
    line = (
        "searched against random: bbox/AP +3.25, 95 % interval +0.07 to +6.43 (paired by 2 seeds): "
        "above"
    )
    assert found["report"] == [line] and f"- {line}" in (runs / "table.md").read_text()
    assert "± 2.83 (2 nets)" in capsys.readouterr().out

    experiment = read_experiment(str(file), ("SEEDS", "0,2"))
    seeds = {
        (pipeline.seed, stage.name): pipeline.config_of(stage).SEED
        for pipeline in experiment.runs_of_stages
        for stage in pipeline.stages
    }
    assert seeds[0, "searched"] == 0 and seeds[2, "searched"] == 2
    assert seeds[0, "random_1"] == 4 and seeds[2, "random_1"] == 2004
    paths = found["rows"]["random"]["paths"]
    assert paths[0] != paths[1]  # RANDOM draws others for another seed
    caches = {p.config_of(p.stages[0]).DATASETS.CACHE_DIR for p in experiment.runs_of_stages}
    assert len(caches) == 1
    # Seeds that are not done: a table of those that are, and no record.
    (runs / "seed2" / "searched" / "model_final.pth").unlink()
    states = [stage_state(item.pipeline, item.stage) for item in experiment.runs()]
    assert states.count(DONE) == 9
    record.unlink()
    monkeypatch.setattr(shown, "run_stage", lambda *args: (_ for _ in ()).throw(OSError("full")))
    assert not run_pipeline(args)
    assert "1 more seeds are not done yet" in capsys.readouterr().out and not record.exists()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SEEDS", "0,a"), "SEEDS is '0,a': expected different numbers, 0 or more, e.g. 0,1,2"),
        (("SEEDS", "1,1"), "SEEDS is '1,1'"),
        (("SEEDS", ""), "SEEDS is ''"),
        (("SEEDS", "0,1", "SEED", "3"), "SEED among the overrides, which SEEDS gives"),
    ],
)
def test_what_seeds_cannot_be(opts: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=message):
        read_experiment(str(hit_pipeline(tmp_path)), opts)


def test_rows_to_compare_are_rows_of_the_table(tmp_path: Path) -> None:
    file = hit_pipeline(tmp_path)
    data = yaml.safe_load(file.read_text())
    assert read_experiment(str(file)).runs_of_stages[0].compare == ("searched",)
    file.write_text(yaml.safe_dump({**data, "COMPARE": "random", "SEEDS": [1, 2]}))
    pipelines = read_experiment(str(file)).runs_of_stages
    assert [(p.seed, p.compare) for p in pipelines] == [(1, ("random",)), (2, ("random",))]
    file.write_text(yaml.safe_dump({**data, "COMPARE": ["search"]}))
    with pytest.raises(PipelineError, match=r"COMPARE is \['search'\]: expected rows of TABLE"):
        read_experiment(str(file))
    file.write_text(yaml.safe_dump({**data, "TABLE": []}))
    args = arguments(str(file))
    args.record = "record.json"
    with pytest.raises(InputError, match=r"--record record.json: .*pipeline.yaml has no TABLE"):
        run_pipeline(args)
