#!/usr/bin/env python
"""Look into a search: fitness, choices, ranks, calibration. See --help."""

from detnas_d2.command import run_command


def main(argv: list[str] | None = None) -> None:
    from detnas_d2.programs import diagnose

    diagnose.main(argv)


if __name__ == "__main__":
    run_command(main)
