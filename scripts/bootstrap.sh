#!/usr/bin/env bash
# Makes .venv in the repository with everything that the project needs, and builds the project in
# it. Run it again at any time: it does only what has changed since, in no time if nothing has.
#
# Needs Python >= 3.10, a C++ compiler (GCC >= 11 or clang) and a package registry. What it downloads
# must have the hashes of scripts/requirements*.txt. PYTHON names the interpreter to use, CC and CXX
# the compiler.
# FORCE_CUDA, TORCH_CUDA_ARCH_LIST, DEBUG, NVCC_FLAGS and MAX_JOBS are explained in setup.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
die() { printf 'bootstrap: %s\n' "$*" >&2; exit 1; }

# One line that changes whenever the named files, or the further words, change.
fingerprint() { # FILES... -- WORDS...
  local files=()
  while [ "$1" != -- ]; do files+=("$1"); shift; done
  shift
  { sha256sum "${files[@]}"; printf '%s\n' "$@"; } | sha256sum | cut -d' ' -f1
}

# Whether the step of this name was last completed with this fingerprint.
is_done() { [ "$(cat ".venv/$1.stamp" 2>/dev/null)" = "$2" ]; }
mark_done() { printf '%s\n' "$2" >".venv/$1.stamp"; }

if [ ! -x .venv/bin/python ]; then
  python=${PYTHON:-python3}
  command -v "$python" >/dev/null || die "$python not found; set PYTHON to a Python >= 3.10"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$python" --version) is too old; set PYTHON to a Python >= 3.10"
  say "creating .venv with $("$python" --version)"
  "$python" -m venv .venv || {
    rm -rf .venv # half of one would be taken for a whole one
    die "$python cannot make .venv (Debian and Ubuntu: apt install python3-venv)"
  }
fi
export PATH="$PWD/.venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 # ninja is found on PATH
unset PYTHONHOME PYTHONPATH
pip=(.venv/bin/python -m pip)

wanted=$(fingerprint scripts/requirements*.txt scripts/install_detectron2.py \
  scripts/detectron2_patches/*.py -- "$PWD")
if ! is_done requirements "$wanted"; then
  # Versions and hashes of everything; requirements.in says how they are made. Without isolation no
  # source distribution fetches anything else to be built.
  say "installing PyTorch and the other requirements (a few minutes the first time)"
  for file in scripts/requirements-build.txt scripts/requirements.txt; do
    "${pip[@]}" install -q --require-hashes --no-build-isolation -r "$file"
  done
  say "installing Detectron2"
  .venv/bin/python scripts/install_detectron2.py
  mark_done requirements "$wanted"
fi

mapfile -t sources < <(find csrc -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) | LC_ALL=C sort)
wanted=$(fingerprint setup.py pyproject.toml detnas_d2/__init__.py "${sources[@]}" -- "$PWD" \
  "$(.venv/bin/python --version)" "$(cat .venv/requirements.stamp)" "${FORCE_CUDA:-}" \
  "${TORCH_CUDA_ARCH_LIST:-}" "${DEBUG:-}" "${NVCC_FLAGS:-}" "${CC:-}" "${CXX:-}" \
  "${CFLAGS:-}" "${CXXFLAGS:-}")
if ! is_done build "$wanted" || ! compgen -G 'detnas_d2/_C*.so' >/dev/null; then
  say "building detnas_d2 (log: build/build.log)"
  mkdir -p build
  rm -f .venv/build.stamp
  if ! "${pip[@]}" install -v --no-build-isolation --no-deps -e . >build/build.log 2>&1; then
    tail -n 60 build/build.log >&2
    die "the build failed; the whole log is build/build.log"
  fi
  grep -E '^ *detnas_d2: ' build/build.log | awk '!seen[$0]++' # what was decided, and the time
  mark_done build "$wanted"
fi
say "ready: . .venv/bin/activate"
