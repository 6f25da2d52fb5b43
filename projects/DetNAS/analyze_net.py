#!/usr/bin/env python
"""Parameters and multiply-adds of a detector, part by part; needs no weights and no data."""

from detnas_d2.command import run_command


def main(argv: list[str] | None = None) -> None:
    from detnas_d2.programs import analyze

    analyze.main(argv)


if __name__ == "__main__":
    run_command(main)
