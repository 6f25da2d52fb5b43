"""detnas_d2: neural architecture search for object detection on Detectron2."""

__version__ = "0.1.0"
