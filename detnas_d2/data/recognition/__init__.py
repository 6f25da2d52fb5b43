"""What a folder of labelled images holds: format, parts, classes, boxes, faults."""

from detnas_d2.data.recognition.folder import recognise
from detnas_d2.data.recognition.recognised import Part, Recognised

__all__ = ["Part", "Recognised", "recognise"]
