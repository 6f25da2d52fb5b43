#!/usr/bin/env python
"""Search backbone, neck and head of a Hit-Detector together by gradient.

Arguments are those of Detectron2's train_net.py.
"""

from detnas_d2.command import run_command


def main() -> None:
    from detnas_d2.engine import default_argument_parser, gradient_search_main, run_alone

    run_alone(gradient_search_main, default_argument_parser().parse_args())


if __name__ == "__main__":
    run_command(main, goes_on="--resume")
