"""The command ``detnas``: finds the module of a subcommand, runs it, prints what it returns.

A subcommand is a module of this package with ``HELP`` (one line), ``EXAMPLE`` (one command),
``add_arguments(parser)``, ``run(args) -> dict`` and ``text(result) -> str``. A result with a text
"error" is printed, and then the command fails with that text. Modules import torch and Detectron2
inside ``run`` only, so that ``--help`` and wrong arguments are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from detnas_d2 import __version__
from detnas_d2.command import run_command
from detnas_d2.utils.errors import InputError

COMMANDS = ("search", "resume", "check", "report", "predict", "latency", "export")
"""Names of the subcommands, in the order in which ``--help`` lists them."""


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} ({self.prog} --help lists what there is)")


def entry() -> NoReturn:
    """The console script."""
    run_command(main, goes_on="" if sys.argv[1:2] in (["search"], ["resume"]) else None)
    sys.exit(0)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand and prints its result, as JSON alone with ``--json``.

    Raises:
        InputError: of the arguments, or of the subcommand; its text is one line.
    """
    try:
        _run(argv)
    except InputError as error:
        if "\n" in str(error):
            raise InputError(" ".join(map(str.strip, str(error).split("\n")))) from error
        raise


def _run(argv: Sequence[str] | None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    named = words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS
    modules = {name: _module(name) for name in named}
    args = build_parser(modules).parse_args(words)
    module = modules[args.command]
    if args.json:
        with _only_on_stderr():
            result = module.run(args)
        print(json.dumps(_plain(result), indent=1, allow_nan=False))
    else:
        result = module.run(args)
        if text := module.text(result):
            print(text)
    if "error" in result:
        raise InputError(result["error"])


def build_parser(modules: dict[str, ModuleType]) -> Parser:
    """The parser with the subcommands of these names."""
    parser = Parser(
        prog="detnas",
        description="From a folder of labelled images to a detector, by architecture search.",
        epilog="detnas COMMAND --help shows an example of each.",
    )
    parser.add_argument("--version", action="version", version=f"detnas_d2 {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in modules.items():
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the result as JSON alone")
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"detnas_d2.cli.{name}")


@contextlib.contextmanager
def _only_on_stderr() -> Iterator[None]:
    """What the block and the processes that it starts print on stdout goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _plain(value: Any) -> Any:
    """A value of JSON: numbers that are not finite, which JSON has not, become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
