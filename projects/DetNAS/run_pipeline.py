#!/usr/bin/env python
"""Run all stages of a pipeline file; run it again to resume. Arguments as train_net.py's."""

from detnas_d2.command import run_command


def main() -> None:
    from detnas_d2.engine import default_argument_parser, run_pipeline

    run_pipeline(default_argument_parser().parse_args())


if __name__ == "__main__":
    run_command(main)
