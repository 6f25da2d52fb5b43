"""The checks for a GPU with the CUDA operators on the emulator. Usage: run_checks.py LIBRARY

Run under the sanitizers' runtime libraries, see test_emulator.py.
"""

from __future__ import annotations

import sys

from tests.ops.fuzz import load

if __name__ == "__main__":
    load(sys.argv[1])
    from tests.ops import cuda_checks

    sys.argv = ["cuda_checks.py", "--small", "--device", "cpu"]
    cuda_checks.main()
