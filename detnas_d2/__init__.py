"""detnas_d2: neural architecture search for object detection on Detectron2."""

import warnings

__version__ = "0.1.0"

# Detectron2 scripts two functions on import; users cannot act on torch's notice about it.
warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)
