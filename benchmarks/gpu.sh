#!/usr/bin/env bash
# Builds, tests and measures the CUDA operators on a machine with a GPU, in one command and about
# ten minutes. Results: benchmarks/results/<gpu>.json, and a page about them, <gpu>.md. Ends with an
# error if a check failed, but measures nevertheless. Environment: PYTHON (default python3); BUDGET,
# seconds for all of it (default 590); CUDA_HOME; COUNTS, what `benchmarks/launches.py --json` printed
# elsewhere (by default it is counted here if there is time, which the model needs).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin # nvcc and compute-sanitizer, where nothing else is said
gpu=$($python -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower())')
arch=$($python -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
out=benchmarks/results/$gpu.json
budget=${BUDGET:-590}
export PYTHONPATH=$PWD
failures=()

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
# note STEP WHY: a record of the results, for the page.
note() { printf '{"step": "%s", "failed": "%s"}\n' "$1" "$2" >>"$out"; }
# run WHAT LIMIT COMMAND...: what fails or takes longer than LIMIT seconds is noted, no more.
run() {
  local what=$1 limit=$2 status=0
  shift 2
  ((limit < budget - SECONDS)) || limit=$((budget - SECONDS))
  if ((limit < 5)); then
    say "$what: left out, no time"
    return
  fi
  timeout -k 5 "$limit" "$@" || status=$?
  case $status in
    0) say "$what: done" ;;
    124 | 137) say "$what: stopped after $limit s" && note "$what" "stopped after $limit s" ;;
    *)
      say "$what: FAILED ($status)" && failures+=("$what")
      note "$what" "exit status $status"
      ;;
  esac
}

mkdir -p build
if ! FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$arch timeout -k 5 "$budget" \
  $python setup.py build_ext --inplace >build/gpu.log 2>&1; then
  tail -n 40 build/gpu.log
  say "the build failed; all of its output: build/gpu.log"
  exit 1
fi
say "built for $arch"
rm -f "$out"
run "kernels against their references" 120 $python tests/ops/cuda_checks.py

counts=${COUNTS:-build/launches.json}
count() { $python benchmarks/launches.py --json >"$counts.part" && mv "$counts.part" "$counts"; }
if [[ ! -s $counts ]] && command -v g++ >/dev/null; then
  export -f count && export python counts
  run "launches, for the model" 120 bash -c count
fi
model=()
[[ -s $counts ]] && model=(--counts "$counts")

if $python -c 'import detectron2' 2>/dev/null; then
  backbone=($python benchmarks/backbone.py --device cuda --graph --batches 1 2 16 "${model[@]}" \
    --output "$out")
  run "self-check" 60 $python benchmarks/self_check.py --device cuda --output "$out"
  run "backbone, with and without graphs" 90 "${backbone[@]}"
  run "backbone, torch.compile" 150 "${backbone[@]}" --quick --compile
else
  say "self-check, backbone: left out, they need Detectron2"
fi
run "operators" 150 $python benchmarks/ops.py --device cuda --quick --compile "${model[@]}" \
  --output "$out"
run "operators at 320x480 and 800x1216" 90 $python benchmarks/ops.py --device cuda "${model[@]}" \
  --output "$out"
say "measured: $out"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    run "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      $python tests/ops/cuda_checks.py --small
  done
else
  say "compute-sanitizer: left out, it is not on PATH"
fi
[[ -s $out ]] && $python benchmarks/verdict.py "$out"
if ((${#failures[@]})); then
  say "FAILED: ${failures[*]}"
  exit 1
fi
