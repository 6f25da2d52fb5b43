"""Table files: what is refused, which runs there are, and what a cell is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from detnas_d2.analysis.complexity import analyze
from detnas_d2.pipeline.run import stage_fingerprint
from detnas_d2.pipeline.table_run import format_cell, format_table, run_table
from detnas_d2.pipeline.tables import Cell, Table, TableError, read_table
from tests.engine.tiny_runs import Configs, arguments, write_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TABLES = sorted(CONFIGS.glob("*/tables/*.yaml"))
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
    data = {**CONTENT, "OUTPUT_DIR": str(folder / "runs"), **content}
    file.write_text(yaml.safe_dump(data))
    return str(file)


def finish(table: Table, run_name: str, **results: float) -> None:
    """Writes ``done.json`` of a run as if it had measured ``results``."""
    run = next(run for run in table.runs() if run.name == run_name)
    done = {
        "fingerprint": stage_fingerprint(run.pipeline, run.stage),
        "results": results,
        "path": run.pipeline.config_of(run.stage).MODEL.DETNAS.PATH,
    }
    Path(run.folder).mkdir(parents=True)
    (Path(run.folder) / "done.json").write_text(json.dumps(done))
    torch.save({}, Path(run.folder) / "model_final.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"COLUMN": []}, "expected PIPELINES, COLUMNS, ROWS and no others"),
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
        read_table(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_seeds_and_shared_stages(configs: Configs, tmp_path: Path) -> None:
    file = write_table(tmp_path, configs)
    table = read_table(file, ("SOLVER.BASE_LR", "0.5", "OUTPUT_DIR", str(tmp_path / "other")))
    names = [run.name for run in table.runs()]
    assert len(names) == 2 * (4 + 3) and names[0] == "seed 0, one: base"
    assert [n for n in names if n.endswith("base")] == ["seed 0, one: base", "seed 3, one: base"]
    run = table.runs()[-1]
    cfg = run.pipeline.config_of(run.stage)
    assert (cfg.SEED, cfg.SEARCH.SEED, cfg.SOLVER.BASE_LR) == (3, 3, 0.5)
    assert run.folder == str(tmp_path / "other" / "seed3" / "two" / "small_2")
    # Random networks differ from seed to seed.
    paths = {
        pipelines["one"].config_of(pipelines["one"].stage("small_2")).MODEL.DETNAS.PATH
        for pipelines in table.pipelines.values()
    }
    assert len(paths) == 2


def test_cells_are_means_over_networks_and_seeds(configs: Configs, tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path, configs))
    assert format_table(table).splitlines() == [
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
    finish(table, "seed 0, one: base", **{"classification/top1": 90.0})
    finish(table, "seed 0, two: small_1", **{"bbox/AP": 30.0})
    finish(table, "seed 3, two: small_2", **{"bbox/AP": 31.0})
    finish(table, "seed 0, two: small_2", **{"bbox/AP": float("nan")})
    finish(table, "seed 0, one: large", **{"bbox/AP": 5.0})
    lines = format_table(table).splitlines()[2:4]
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
    table = read_table(write_table(tmp_path, configs, **content))
    stage = table.pipelines[0]["one"].stage("large")
    cfg = table.pipelines[0]["one"].config_of(stage)
    small, large = (
        analyze(cfg, input_size=(size, size), proposals=1000, convention="mmdet")["total"]
        for size in (64, 128)
    )
    params = f"{small.params / 1e6:.2f}"
    assert format_table(table).splitlines()[:5] == [
        "| network | kind, paper | params (M), paper | params (M), counted | FLOPs (G) |",
        "| --- | --- | --- | --- | --- |",
        f"| small | hand-made | 1.20 | {params} | {small.macs / 1e9:.2f} |",
        f"| large |  |  | {params} | {large.macs / 1e9:.2f} |",
        "| theirs | searched |  | not built | not built |",
    ]


def test_cost_of_what_a_search_is_to_find(tmp_path: Path) -> None:
    file = CONFIGS / "HitDetector" / "tables" / "table4.yaml"
    table = read_table(str(file), ("OUTPUT_DIR", str(tmp_path)))
    cell = table.cell(table.rows[0], table.columns[0], 0)
    assert (cell.values, cell.networks) == ((), 1)


def test_format_of_a_cell() -> None:
    assert format_cell(Cell((), 3)) == ""
    assert format_cell(Cell((1.0,), 1)) == "1.00"
    assert format_cell(Cell((1.0, 2.0), 2)) == "1.50 ± 0.71 (2)"


def test_effort_of_a_stage(configs: Configs, tmp_path: Path) -> None:
    columns = [{"NAME": n, "PIPELINE": "one", "METRIC": n} for n in ("iterations", "gpus", "days")]
    rows = [{"NAME": "base", "ROW": "base", "PAPER": [300000, 8, 1.5]}]
    table = read_table(write_table(tmp_path, configs, COLUMNS=columns, ROWS=rows, SEEDS=[0]))
    finish(table, "seed 0, one: base")
    file = Path(table.runs()[0].folder) / "done.json"
    done = json.loads(file.read_text())
    file.write_text(json.dumps({**done, "seconds": 43200, "processes": 2}))
    assert format_table(table).splitlines()[2] == ("| base | 300000 | 4 | 8 | 2 | 1.5 | 0.50 |")


@pytest.mark.parametrize("file", TABLES, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_dry_run_of_every_table(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert not run_table(arguments(str(file), "OUTPUT_DIR", str(runs), dry_run=True))
    out = capsys.readouterr().out
    data = yaml.safe_load(file.read_text())
    assert all(f"| {row['NAME']} |" in out for row in data["ROWS"])
    total, missing = re.search(r"(\d+) runs: (\d+) not started", out).groups()
    assert int(total) == int(missing) >= sum("ROW" in row for row in data["ROWS"])
    assert not runs.exists()
