#!/usr/bin/env python
"""Run a table of the paper; run it again to resume, or with --dry-run to see how far it is.

    run_table.py --config-file configs/HitDetector/tables/table5.yaml --num-gpus 8

As projects/DetNAS/run_table.py.
"""

from detnas_d2.command import run_command


def main() -> int:
    from detnas_d2.pipeline.table_run import table_main

    return table_main()


if __name__ == "__main__":
    run_command(main)
