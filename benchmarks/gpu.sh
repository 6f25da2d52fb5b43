#!/usr/bin/env bash
# Builds, tests and measures the CUDA operators on a machine with a GPU, in one command.
# Results: benchmarks/results/<gpu>.json. Environment: PYTHON (default python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
gpu=$($python -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower())')
arch=$($python -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
out=benchmarks/results/$gpu.json
say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$arch $python setup.py build_ext --inplace >/dev/null
say "built for $arch"
export PYTHONPATH=$PWD
$python tests/ops/cuda_checks.py
say "kernels equal their references"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 $python tests/ops/cuda_checks.py --small
    say "$tool is clean"
  done
fi
rm -f "$out"
$python benchmarks/ops.py --device cuda --output "$out"
$python benchmarks/backbone.py --device cuda --output "$out" --compile
say "measured: $out"
