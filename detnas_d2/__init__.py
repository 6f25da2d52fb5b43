"""detnas_d2: neural architecture search for object detection on Detectron2."""

import warnings
from importlib.metadata import version

__version__ = "0.2.0"

# The first torch whose torch.load unpickles weights only. Asked without importing it.
if tuple(int(part) for part in version("torch").split(".")[:2]) < (2, 6):
    raise ImportError(f"torch {version('torch')} is installed, detnas_d2 needs torch >= 2.6")

# Detectron2 scripts two functions on import; users cannot act on torch's notice about it.
warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)
