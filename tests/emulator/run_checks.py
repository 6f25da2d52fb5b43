"""The checks for a GPU with the CUDA operators on the emulator. Usage: run_checks.py LIBRARY

Run under the sanitizers' runtime libraries, see test_emulator.py. Smaller shapes than a GPU gets:
of channels that no vector divides, and of whole vectors.
"""

from __future__ import annotations

import sys

import torch

from tests.ops.fuzz import load

if __name__ == "__main__":
    load(sys.argv[1])
    from tests.ops import cuda_checks

    cuda_checks.EMULATED = True
    cuda_checks.SMALL = [(1, 5, 4, 3), (1, 16, 5, 6)]
    del cuda_checks.TOLERANCE[torch.float16]
    sys.argv = ["cuda_checks.py", "--small", "--device", "cpu"]
    cuda_checks.main()
