#!/usr/bin/env python
"""Run a table of the paper; run it again to resume, or with --dry-run to see how far it is.

    run_table.py --config-file configs/DetNAS/tables/table4.yaml --num-gpus 8

Lists the runs with their state (not started, running, stopped, failed, done), starts what is
missing, resumes what stopped, and prints the table with the paper's numbers next to the measured
ones. Arguments as train_net.py's.
"""

from detnas_d2.command import run_command


def main() -> int:
    from detnas_d2.pipeline.table_run import table_main

    return table_main()


if __name__ == "__main__":
    run_command(main)
