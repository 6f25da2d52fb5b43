#!/usr/bin/env bash
# Sets up, lints, checks types and runs the tests. Arguments go to pytest: test.sh tests/ops -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/bootstrap.sh
.venv/bin/ruff check .
.venv/bin/mypy
printf '[%4d s] set up, linted and types checked\n' "$SECONDS"
# Two processes with one thread each: the tests are small, threads would only get in each other's
# way. A file's tests run in one of them, so that fixtures of a module are made once; files in their
# order, which ends with quick ones. A later -n among the arguments wins (-n 0 for a debugger).
OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest \
  -n 2 --dist loadfile --no-loadscope-reorder "$@"
