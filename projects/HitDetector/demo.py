#!/usr/bin/env python
"""Run a detector on images and write pictures of what it finds, as Detectron2's demo.py does."""

from detnas_d2.command import run_command


def main(argv: list[str] | None = None) -> None:
    from detnas_d2.programs import demo

    demo.main(argv)


if __name__ == "__main__":
    run_command(main)
