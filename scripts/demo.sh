#!/usr/bin/env bash
# Sets everything up and runs a whole search on the built-in scenes. Run it again to resume.
#   scripts/demo.sh                 DetNAS: evolution over a single-path supernet
#   scripts/demo.sh hit             Hit-Detector: gradient search of backbone, neck and head
# As many stages run at a time as the machine has GPUs, or cores without. Further arguments are
# KEY VALUE overrides, e.g. scripts/demo.sh detnas OUTPUT_DIR output/mine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

method=${1:-detnas}
[ $# -eq 0 ] || shift
case $method in
  detnas) project=projects/DetNAS config=configs/DetNAS/demo/pipeline.yaml ;;
  hit) project=projects/HitDetector config=configs/HitDetector/demo/pipeline.yaml ;;
  *) printf 'usage: scripts/demo.sh [detnas|hit] [KEY VALUE ...]\n' >&2; exit 2 ;;
esac

scripts/bootstrap.sh
exec .venv/bin/python "$project/run_pipeline.py" --jobs auto --config-file "$config" "$@"
