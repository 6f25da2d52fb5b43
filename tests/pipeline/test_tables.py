"""Table files: what is refused, which runs there are, and what a cell is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from detnas_d2.analysis.complexity import analyze
from detnas_d2.engine.checks.disk import Need
from detnas_d2.pipeline import run
from detnas_d2.pipeline.definition import Pipeline
from detnas_d2.pipeline.experiment import Experiment, read_experiment
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.status import stage_fingerprint
from detnas_d2.pipeline.tables import Cell, TableError
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, arguments, write_config
from tests.experiments import CONFIGS, PIPELINES, SEVERAL, content

TABLES = [name for name in (*PIPELINES, *SEVERAL) if "TABLES" in content(name)]
TOP = ("OUTPUT_DIR", "SEEDS", "PIPELINES")
CONTENT = {
    "TITLE": "Test table",
    "SEEDS": [0, 3],
    "PIPELINES": {"one": "pipeline.yaml", "two": "pipeline.yaml"},
    "COLUMNS": [
        {"NAME": "top-1", "PIPELINE": "one", "METRIC": "classification/top1", "OF": "weights"},
        {"NAME": "AP", "PIPELINE": "two", "METRIC": "bbox/AP"},
        {"NAME": "MACs (M)", "PIPELINE": "one", "METRIC": "macs"},
    ],
    "REFERENCES": {"PAPER": "the paper, table 1", "REPOSITORY": "the authors' list"},
    "ROWS": [
        {"NAME": "large", "ROW": "large", "REPOSITORY": [None, 37.0, None]},
        {"NAME": "all", "ROW": "other", "PAPER": [None, "36.4 ± 0.2", 300]},
        {"NAME": "others' method", "PAPER": [70.5, 20, None]},
    ],
}


def write_table(folder: Path, configs: Configs, stages: int = 4, **content: object) -> str:
    """A table over a pipeline of at most four stages, the first one shared."""
    cfg = configs("faster", "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 1)
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    write_config(cfg, folder / "train.yaml")
    common = {"KIND": "train", "CONFIG": "train.yaml"}
    base = {"NAME": "base", "PATH": "uniform 3x3", "FOLDER": "../shared/base"}
    started = {**common, "WEIGHTS": "base", "PATH": "uniform 3x3"}
    all_stages = [
        {**common, **base},
        {**started, "NAME": "large", "OPTS": ["SOLVER.BASE_LR", 0.02]},
        {**started, "NAME": "small_1", "ROW": "other"},
        {**common, "NAME": "small_2", "PATH": "random 1", "ROW": "other"},
    ]
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({"STAGES": all_stages[:stages]}))
    file = folder / "table.yaml"
    table = {**CONTENT, "OUTPUT_DIR": str(folder / "runs"), **content}
    data = {key: table.pop(key) for key in TOP}
    file.write_text(yaml.safe_dump({**data, "TABLES": [table]}))
    return str(file)


def finish(experiment: Experiment, run_name: str, **results: float) -> None:
    """Writes ``done.json`` of a run as if it had measured ``results``."""
    found = next(run for run in experiment.runs() if run.name == run_name)
    done = {
        "fingerprint": stage_fingerprint(found.pipeline, found.stage),
        "results": results,
        "path": found.pipeline.config_of(found.stage).MODEL.DETNAS.PATH,
    }
    Path(found.folder).mkdir(parents=True)
    (Path(found.folder) / "done.json").write_text(json.dumps(done))
    torch.save({}, Path(found.folder) / "model_final.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"COLUMN": []}, "TABLES: expected COLUMNS, ROWS and no others"),
        ({"COLUMNS": [{"NAME": "AP", "KEY": "x"}]}, "COLUMNS: .*KEY.*unexpected keyword"),
        (
            {"COLUMNS": [{"NAME": "AP", "METRIC": "flops"}], "ROWS": []},
            "METRIC 'flops', expected task/metric or one of macs, params, iterations, gpus, days",
        ),
        (
            {
                "COLUMNS": [{"NAME": "AP", "METRIC": "bbox/AP"}],
                "ROWS": [{"NAME": "a", "ROW": "large"}],
            },
            "row 'a'.*'AP': PIPELINE '', expected one of one, two",
        ),
        ({"ROWS": [{"NAME": "a", "ROW": "large", "INPUT": [800]}]}, r"'a': INPUT \(800,\), expect"),
        ({"ROWS": [{"NAME": "a", "ROW": "large", "INPUT": 800}]}, "'a': INPUT 800, expected"),
        ({"ROWS": [{"NAME": "a", "ROW": "no"}]}, "'a': no stage of one is 'no'"),
        ({"ROWS": [{"NAME": "a", "ROW": "large", "PAPER": [1]}]}, "PAPER has 1 numbers, the table"),
        ({"ROWS": [{"NAME": "a", "PAPER": 3}]}, "'a': PAPER is no list, the table 3 columns"),
        ({"ROWS": [{"NAME": "a", "OTHER": [1, 2, 3]}]}, "ROWS: .*unexpected keyword.*'other'"),
        ({"ROWS": ["a"]}, "ROWS: 'a', expected NAME and ROW"),
        ({"REFERENCES": ["PAPER"]}, "REFERENCES: expected NAME: where its numbers are from"),
    ],
)
def test_errors_name_the_file_and_the_key(
    content: dict, message: str, configs: Configs, tmp_path: Path
) -> None:
    file = write_table(tmp_path, configs, **content)
    with pytest.raises(TableError, match=message) as caught:
        read_experiment(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"PIPELINES": []}, "PIPELINES: expected NAME: file"),
        ({"PIPELINES": {"one": 1}}, "PIPELINES: .*expected names and files"),
        ({"SEEDS": [0, 0]}, r"SEEDS is \[0, 0\]: expected different numbers"),
        ({"SEEDS": 3}, "SEEDS is 3: expected different numbers"),
        ({"TABLE": ["large"]}, r"unknown keys \['TABLE'\] next to PIPELINES"),
        ({"TABLES": 1}, "TABLES: expected a list of tables"),
    ],
)
def test_errors_of_a_file_of_several_pipelines(
    keys: dict, message: str, configs: Configs, tmp_path: Path
) -> None:
    file = Path(write_table(tmp_path, configs))
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **keys}))
    with pytest.raises(InputError, match=message) as caught:
        read_experiment(str(file))
    assert str(caught.value).startswith(f"{file}: ")


def test_places_without_seeds(configs: Configs, tmp_path: Path) -> None:
    """A table's pipelines are those that run by themselves, unless told to work elsewhere."""
    file = Path(write_table(tmp_path, configs))
    data = yaml.safe_load(file.read_text())
    del data["SEEDS"]
    file.write_text(yaml.safe_dump(data))
    runs = read_experiment(str(file)).runs()
    assert [run.name for run in runs][:2] == ["one: base", "one: large"]
    alone = read_experiment(str(tmp_path / "pipeline.yaml")).runs_of_stages[0]
    assert {run.folder for run in runs} == {alone.folder(stage.name) for stage in alone.stages}
    moved = read_experiment(str(file), ("OUTPUT_DIR", str(tmp_path / "there")))
    assert moved.runs()[1].folder == str(tmp_path / "there" / "one" / "large")


def test_one_pipeline_with_a_table(configs: Configs, tmp_path: Path) -> None:
    write_table(tmp_path, configs)
    file = tmp_path / "pipeline.yaml"
    columns = [{"NAME": "AP", "METRIC": "bbox/AP"}]
    content = {"COLUMNS": columns, "ROWS": [{"NAME": "a", "ROW": "other"}]}
    data = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**data, "TABLES": [content]}))
    experiment = read_experiment(str(file), ("OUTPUT_DIR", str(tmp_path / "runs")))
    assert [run.name for run in experiment.runs()] == ["base", "large", "small_1", "small_2"]
    (table,) = experiment.tables
    assert table.cell(*table.rows, *table.columns, 0) == Cell((), 2)
    content["ROWS"] = [{"NAME": "a", "ROW": "no"}]
    file.write_text(yaml.safe_dump({**data, "TABLES": [content]}))
    with pytest.raises(TableError, match="ROWS: 'a': no stage of the file is 'no'"):
        read_experiment(str(file))
    file.write_text(yaml.safe_dump({**data, "SEEDS": [0]}))
    with pytest.raises(
        InputError, match="'base': FOLDER lies next to OUTPUT_DIR.* run a file with"
    ):
        read_experiment(str(file))


def test_seeds_and_shared_stages(configs: Configs, tmp_path: Path) -> None:
    file = write_table(tmp_path, configs)
    experiment = read_experiment(
        file, ("SOLVER.BASE_LR", "0.5", "OUTPUT_DIR", str(tmp_path / "other"))
    )
    names = [run.name for run in experiment.runs()]
    assert len(names) == 2 * (4 + 3) and names[0] == "seed 0, one: base"
    assert [n for n in names if n.endswith("base")] == ["seed 0, one: base", "seed 3, one: base"]
    last = experiment.runs()[-1]
    cfg = last.pipeline.config_of(last.stage)
    assert (cfg.SEED, cfg.SEARCH.SEED, cfg.SOLVER.BASE_LR) == (3, 3, 0.5)
    assert last.folder == str(tmp_path / "other" / "seed3" / "two" / "small_2")
    # Random networks differ from seed to seed.
    paths = {
        pipelines["one"].config_of(pipelines["one"].stage("small_2")).MODEL.DETNAS.PATH
        for pipelines in experiment.pipelines.values()
    }
    assert len(paths) == 2


def test_cells_are_means_over_networks_and_seeds(configs: Configs, tmp_path: Path) -> None:
    experiment = read_experiment(write_table(tmp_path, configs))
    (table,) = experiment.tables
    assert table.text().splitlines() == [
        "| network | top-1, paper | top-1, measured | AP, paper | AP, repository | AP, measured "
        "| MACs (M), paper | MACs (M), measured |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| large |  |  |  | 37 |  |  |  |",
        "| all |  |  | 36.4 ± 0.2 |  |  | 300 |  |",
        "| others' method | 70.5 | not built | 20 |  | not built |  | not built |",
        "",
        "paper: the paper, table 1",
        "",
        "repository: the authors' list",
    ]
    finish(experiment, "seed 0, one: base", **{"classification/top1": 90.0})
    finish(experiment, "seed 0, two: small_1", **{"bbox/AP": 30.0})
    finish(experiment, "seed 3, two: small_2", **{"bbox/AP": 31.0})
    finish(experiment, "seed 0, two: small_2", **{"bbox/AP": float("nan")})
    finish(experiment, "seed 0, one: large", **{"bbox/AP": 5.0})
    lines = table.text().splitlines()[2:4]
    macs = lines[0].split(" | ")[-1].removesuffix(" |")
    assert lines == [
        f"| large |  | 90.00 (1 of 2) |  | 37 |  |  | {macs} |",
        "| all |  | 90.00 (1 of 4) | 36.4 ± 0.2 |  | 30.50 ± 0.71 (2 of 4) | 300 |  |",
    ]
    assert macs.endswith(" (1 of 2)") and 10 < float(macs.split()[0]) < 20


def test_columns_that_need_no_runs(configs: Configs, tmp_path: Path) -> None:
    columns = [
        {"NAME": "kind"},
        {"NAME": "params (M)", "PIPELINE": "one", "METRIC": "detector_params"},
        {"NAME": "FLOPs (G)", "PIPELINE": "one", "METRIC": "detector_flops"},
    ]
    rows = [
        {"NAME": "small", "ROW": "large", "INPUT": [64, 64], "PAPER": ["hand-made", "1.20", None]},
        {"NAME": "large", "ROW": "large", "INPUT": [128, 128]},
        {"NAME": "theirs", "PAPER": ["searched", None, None]},
    ]
    content = {"SEEDS": [0], "COLUMNS": columns, "ROWS": rows, "REFERENCES": {"PAPER": "a paper"}}
    (table,) = read_experiment(write_table(tmp_path, configs, **content)).tables
    stage = table.pipelines[0]["one"].stage("large")
    cfg = table.pipelines[0]["one"].config_of(stage)
    small, large = (
        analyze(cfg, input_size=(size, size), proposals=1000, convention="mmdet")["total"]
        for size in (64, 128)
    )
    params = f"{small.params / 1e6:.2f}"
    assert table.text().splitlines()[:5] == [
        "| network | kind, paper | params (M), paper | params (M), counted | FLOPs (G) |",
        "| --- | --- | --- | --- | --- |",
        f"| small | hand-made | 1.20 | {params} | {small.macs / 1e9:.2f} |",
        f"| large |  |  | {params} | {large.macs / 1e9:.2f} |",
        "| theirs | searched |  | not built | not built |",
    ]


def test_cost_of_what_a_search_is_to_find(tmp_path: Path) -> None:
    file = CONFIGS / "HitDetector" / "tables" / "table4.yaml"
    (table,) = read_experiment(str(file), ("OUTPUT_DIR", str(tmp_path))).tables
    cell = table.cell(table.rows[0], table.columns[0], 0)
    assert (cell.values, cell.networks) == ((), 1)


def test_format_of_a_cell() -> None:
    assert str(Cell((), 3)) == ""
    assert str(Cell((1.0,), 1)) == "1.00"
    assert str(Cell((1.0, 2.0), 2)) == "1.50 ± 0.71 (2)"


def test_effort_of_a_stage(configs: Configs, tmp_path: Path) -> None:
    columns = [{"NAME": n, "PIPELINE": "one", "METRIC": n} for n in ("iterations", "gpus", "days")]
    rows = [{"NAME": "base", "ROW": "base", "PAPER": [300000, 8, 1.5]}]
    file = write_table(tmp_path, configs, COLUMNS=columns, ROWS=rows, SEEDS=[0])
    experiment = read_experiment(file)
    finish(experiment, "seed 0, one: base")
    report = Path(experiment.runs()[0].folder) / "done.json"
    done = json.loads(report.read_text())
    report.write_text(json.dumps({**done, "seconds": 43200, "processes": 2}))
    assert experiment.tables[0].text().splitlines()[2] == (
        "| base | 300000 | 4 | 8 | 2 | 1.5 | 0.50 |"
    )


@pytest.mark.parametrize("name", TABLES)
def test_dry_run_of_every_table(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unchecked(pipeline: Pipeline, done: set[str], *, processes: int) -> dict[str, Need]:
        return {stage.name: Need() for stage in pipeline.stages}

    monkeypatch.setattr(run, "check_stages", unchecked)  # builds every model, for minutes
    runs = tmp_path / "runs"
    assert not run_pipeline(arguments(str(CONFIGS / name), "OUTPUT_DIR", str(runs), dry_run=True))
    out = capsys.readouterr().out
    rows = [row for table in content(name)["TABLES"] for row in table["ROWS"]]
    assert all(f"| {row['NAME']} |" in out for row in rows)
    total, missing = re.search(r"(\d+) runs: (\d+) not started", out).groups()
    assert int(total) == int(missing) >= len({row["ROW"] for row in rows if "ROW" in row})
    assert not runs.exists()
