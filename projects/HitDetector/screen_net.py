#!/usr/bin/env python
"""Screen the operations of one part of a Hit-Detector.

Arguments are those of Detectron2's train_net.py.
"""

from detnas_d2.command import run_command


def main() -> None:
    from detnas_d2.engine import default_argument_parser, run_alone, screen_main

    run_alone(screen_main, default_argument_parser().parse_args())


if __name__ == "__main__":
    run_command(main, goes_on="--resume")
