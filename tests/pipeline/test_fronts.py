"""diagnose.py fronts on tiny data: NSGA-II against random search, over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from detnas_d2.pipeline import front_scores
from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.pipeline.fronts import FrontComparison
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.stages import PipelineError
from detnas_d2.programs import fronts
from detnas_d2.programs.diagnose import main
from detnas_d2.search import History
from detnas_d2.search.front_file import read_front, read_objectives
from detnas_d2.utils.errors import InputError
from tests.campaigns.tiny import detnas_pipeline
from tests.catalogs import own_names

SEARCHES = ("nsga2", "random_search")


def mean_best(points: list[tuple[float, float]], least: float, most: float) -> float:
    """Mean over all budgets of the highest fitness within the budget: the sum of the steps."""
    total, best = 0.0, 0.0
    ordered = sorted((cost, fitness) for fitness, cost in points)
    ends = [cost for cost, _ in ordered[1:]] + [most]
    for (cost, fitness), end in zip(ordered, ends, strict=True):
        best = max(best, fitness)
        total += best * (min(end, most) - min(cost, most))
    return total / (most - least)


def command(root: Path, *opts: str) -> list[str]:
    output = ["--output", str(root / "fronts")]
    return ["fronts", "--config-file", str(root / "pipeline.yaml"), *output, *opts]


@pytest.fixture(scope="module", autouse=True)
def one_page() -> Iterator[None]:
    """Of each run, drawn at its end: none after every stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fronts, "run_pipeline", lambda args, **_: run_pipeline(args))
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, three generations of four, and a hand-made network."""
    root = tmp_path_factory.mktemp("compared")
    detnas_pipeline(root, networks=1, scoring_workers=0)
    record, plot = str(root / "record.json"), str(root / "fronts.svg")
    more = ("--widths", "1.25", "--record", record, "--plot", plot)
    with own_names():
        main(command(root, *more, "SEEDS", "0,1"))
    return root


def test_hypervolumes_are_those_of_the_histories(compared: Path) -> None:
    told = json.loads((compared / "record.json").read_text())
    assert told["searches"] == list(SEARCHES) and told["evaluations"] == [4, 8, 12]
    assert told["overrides"] == ["SEEDS", "0,1"]
    least, most = (told["objectives"][key][0] for key in ("least", "most"))
    expected: dict[str, list[list[float]]] = {}
    for name in SEARCHES:
        for seed in (0, 1):
            folder = compared / "fronts" / f"seed{seed}" / name
            records = History.read(folder).records
            assert len(records) == 12 and max(record.fitness for record in records) > 0
            curve = [
                mean_best(
                    [(r.fitness, r.macs) for r in records if r.generation <= last], least, most
                )
                for last in (1, 2, 3)
            ]
            expected.setdefault(name, []).append(curve)
            for place, row in enumerate(told["curve"]):
                assert row["values"][name][str(seed)] == [pytest.approx(curve[place])]
    # retrain.yaml tests on the images of the search, so that nothing is biased but all are equal.
    (tested,) = told["tested"]
    for row, last in ((told["curve"][-1], 2), (tested, 2)):
        a, b = ([run[last] for run in expected[name]] for name in SEARCHES)
        interval = stats.ttest_rel(a, b).confidence_interval(0.95)
        (found,) = row["differences"]
        assert found["value"] == pytest.approx(sum(a) / 2 - sum(b) / 2, abs=1e-6)
        assert [found["low"], found["high"]] == pytest.approx(list(interval), abs=1e-5)
        assert found["seeds"] == [0, 1]
    assert tested["where"] == "by bbox/AP on test images"
    _check_by_hand(compared, tested, least, most)
    assert (compared / "fronts.svg").stat().st_size > 1000
    assert json.loads((compared / "fronts" / "fronts.json").read_text())["curve"] == told["curve"]


def _check_by_hand(root: Path, tested: dict[str, Any], least: float, most: float) -> None:
    for seed in (0, 1):
        stage = root / "fronts" / f"seed{seed}" / "3x3_x1.25"
        score = json.loads((stage / "done.json").read_text())["results"]["bbox/AP"]
        space = yaml.safe_load((stage / "config.yaml").read_text())["MODEL"]["DETNAS"]["SPACES"][0]
        assert [s["CHANNELS"] for s in space["STAGES"]] == [30, 60, 120, 240]
        (value,) = tested["values"]["hand-made networks"][str(seed)]
        # Beyond the limit of the search it adds nothing, else up to its score.
        assert 0 <= value <= score + 1e-9


def test_the_page_shows_the_comparison(compared: Path) -> None:
    told = json.loads((compared / "record.json").read_text())
    page = (compared / "fronts" / "report.html").read_text()
    section = page[page.index('<h2 id="fronts">') :]
    (found,) = told["tested"][0]["differences"]
    assert f"{found['value']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})" in section
    assert section.index("after 12 evaluations") < section.index("by bbox/AP on test images")
    assert "hypervolume after 12 evaluations" in section and "paired by 2 seeds" in section
    assert 'href="#fronts"' in page and "Hypervolume of the front so far over" in section
    read = FrontComparison.from_dict(told)
    assert FrontComparison.from_dict(json.loads(json.dumps(read.as_dict()))) == read
    for damaged in ({}, [], {**told, "curve": [{}]}, {**told, "missing": None}):
        with pytest.raises(InputError, match="no comparison of fronts"):
            FrontComparison.from_dict(damaged)


def test_what_both_ask_for_is_evaluated_once(compared: Path) -> None:
    for seed in (0, 1):
        first, second = (
            History.read(compared / "fronts" / f"seed{seed}" / name).records for name in SEARCHES
        )
        known = {record.path: record for record in first}
        shared = [record for record in second if record.path in known]
        assert len(shared) >= 4  # the first generation of both is random
        for record in second:
            assert bool(record.seconds) == (record.path not in known)
        assert all(record.fitness == known[record.path].fitness for record in shared)


def test_a_stopped_test_of_a_front_goes_on(
    compared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compared / "fronts" / "seed1"
    stage, search = folder / "nsga2_tested", folder / "nsga2"
    file = stage / "members.json"
    whole = file.read_text()
    members = json.loads(whole)
    front = read_front(str(search), History.read(search))
    assert [entry["path"] for entry in members.values()] == [m.path for m in front.members]
    for entry, member in zip(members.values(), front.members, strict=True):
        assert entry["results"]["bbox/AP"] == pytest.approx(member.fitness, abs=1e-6)
    (stage / "done.json").unlink()
    last = str(len(members))
    lost = {number: entry for number, entry in members.items() if number != last}
    file.write_text(json.dumps(lost))

    evaluated, evaluate = [], front_scores.evaluate

    def counting(cfg: Any) -> Any:
        evaluated.append(Path(cfg.OUTPUT_DIR).name)
        return evaluate(cfg)

    monkeypatch.setattr(front_scores, "evaluate", counting)
    main(command(compared, "--widths", "1.25", "SEEDS", "0,1"))
    assert evaluated == [last] and json.loads(file.read_text()) == members
    text = capsys.readouterr().out
    assert "Fronts of nsga2 and random_search" in text
    assert "| after 12 evaluations | " in text and "(paired by 2 seeds)" in text
    assert "hypervolume by bbox/AP on test images" in text


def test_a_trained_supernet_is_taken_as_it_is(compared: Path) -> None:
    weights = str(compared / "fronts" / "seed0" / "supernet" / "model_final.pth")
    args = ["fronts", "--config-file", str(compared / "search.yaml")]
    opts = ["MODEL.WEIGHTS", weights, "SEARCH.GENERATIONS", "1"]
    main([*args, "--output", str(compared / "alone"), *opts])
    stages = yaml.safe_load((compared / "alone" / "fronts.yaml").read_text())["STAGES"]
    assert [stage["NAME"] for stage in stages] == [*SEARCHES, *(f"{n}_tested" for n in SEARCHES)]
    told = json.loads((compared / "alone" / "fronts.json").read_text())
    assert told["curve"][0]["differences"][0]["value"] == 0.0  # one generation, the same for both
    with pytest.raises(InputError, match=r"MODEL.WEIGHTS is empty; expected those of a supernet"):
        main([*args, "--output", str(compared / "none")])
    objectives = read_objectives(str(compared / "alone" / "nsga2"))
    assert objectives.costs == ("macs",) and objectives.most > objectives.least


def test_mistakes(tmp_path: Path) -> None:
    file = detnas_pipeline(tmp_path, networks=1, scoring_workers=0)
    for opts, message in (
        (("--widths", "0"), "--widths 0: expected numbers above 0"),
        (("SEARCH.RETRAIN_CONFIG", ""), "RETRAIN_CONFIG is empty; expected --test-config"),
        (("--widths", "1,wide"), "--widths 1,wide: expected numbers above 0"),
        (("--plot", "fronts.bmp"), "ends in one of .svg"),
    ):
        with pytest.raises(InputError, match=message):
            main(command(tmp_path, *opts))
    data = yaml.safe_load(file.read_text())
    whole = {"KIND": "evaluate", "CONFIG": "retrain.yaml", "WEIGHTS": "search"}
    data["STAGES"].append({"NAME": "all", **whole, "PATH": "front search"})
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(PipelineError, match=r"'all': .*OBJECTIVES are \['fitness'\]"):
        read_pipeline(str(file))
    data["TABLE"] = ["all"]
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(PipelineError, match="'all': a whole front is no row of TABLE"):
        read_pipeline(str(file), ("SEARCH.OBJECTIVES", "['fitness', 'macs']"))
    data["STAGES"] = data["STAGES"][:1]
    del data["TABLE"]
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="no search stage"):
        main(command(tmp_path))
