#!/usr/bin/env python
"""Run all stages of a pipeline file; run it again to resume. Arguments as train_net.py's.

With --dry-run it starts nothing, and tells the stages' states and the disk that they need.
"""

from detnas_d2.command import run_command


def main() -> int:
    from detnas_d2.pipeline.run import pipeline_main
    from detnas_d2.report import try_report

    return pipeline_main(after_stage=try_report)


if __name__ == "__main__":
    run_command(main, goes_on="")
