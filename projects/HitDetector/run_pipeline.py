#!/usr/bin/env python
"""Run all stages of a pipeline file: screen, search, train, evaluate; run it again to resume.

Arguments are those of Detectron2's train_net.py.
"""

from detnas_d2.command import run_command


def main() -> None:
    from detnas_d2.engine import default_argument_parser, run_pipeline

    run_pipeline(default_argument_parser().parse_args())


if __name__ == "__main__":
    run_command(main)
