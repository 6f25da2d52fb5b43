"""The command ``detnas`` around its subcommands: help, JSON, errors, start-up."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from detnas_d2.cli import main as command
from detnas_d2.utils.errors import InputError


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_has_an_example_that_the_parser_accepts(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    module = importlib.import_module(f"detnas_d2.cli.{name}")
    shown = capsys.readouterr().out
    assert module.EXAMPLE in shown and "--json" in shown and module.HELP in shown
    program, *words = shlex.split(module.EXAMPLE)
    assert program == "detnas"
    assert command.build_parser({name: module}).parse_args(words).command == name


def test_help_names_every_command_without_torch() -> None:
    code = (
        "import sys; from detnas_d2.cli.main import main\n"
        "try: main(['--help'])\n"
        "finally: print('torch' in sys.modules, 'detectron2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False", done.stderr
    for name in command.COMMANDS:
        assert f"\n    {name} " in done.stdout


def test_a_wrong_budget_is_told_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from detnas_d2.cli.main import main\n"
        f"try: main(['search', '--data', {str(tmp_path)!r}, '--budget', '300'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"] and "--budget 300: expected" in done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["serch"], "invalid choice: 'serch'"),
        (["predict", "run"], "the following arguments are required: IMAGE"),
        (["predict", "run", "a.jpg", "--score", "50"], "--score 50: expected 0 to 1"),
        (["export", "run", "--output", "x", "--format", "tflite"], "invalid choice: 'tflite'"),
        (["export", "run", "--output", "x"], "run: no such folder; expected the --output of"),
    ],
)
def test_wrong_arguments_are_one_line(words: list[str], problem: str) -> None:
    with pytest.raises(InputError) as error:
        command.main(words)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_lists_in_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args) -> dict:
        raise InputError("data has 2 problems:\n  a.xml: no box\n  b.xml: no box\nMend them.")

    module = SimpleNamespace(
        HELP="h", EXAMPLE="detnas x", add_arguments=lambda parser: None, run=run, text=str
    )
    monkeypatch.setattr(command, "COMMANDS", ("x",))
    monkeypatch.setattr(command, "_module", lambda name: module)
    with pytest.raises(InputError) as error:
        command.main(["x"])
    assert str(error.value) == "data has 2 problems: a.xml: no box b.xml: no box Mend them."


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "detnas_d2", "predict"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_json_is_alone_on_stdout(monkeypatch, capfd) -> None:
    def run(args) -> dict:
        print("progress")
        subprocess.run(["echo", "of a process"], check=True)
        return {"ap": 0.25, "low": math.nan, 1: (True, None), "far": [-math.inf]}

    module = SimpleNamespace(
        HELP="h", EXAMPLE="detnas x", add_arguments=lambda parser: None, run=run, text=str
    )
    monkeypatch.setattr(command, "COMMANDS", ("x",))
    monkeypatch.setattr(command, "_module", lambda name: module)
    command.main(["x", "--json"])
    shown = capfd.readouterr()
    expected = {"ap": 0.25, "low": None, "1": [True, None], "far": [None]}
    assert json.loads(shown.out) == expected
    assert "of a process" in shown.err and "progress" in shown.err
    command.main(["x"])
    assert capfd.readouterr().out.startswith("progress\n")
