"""The error of weights that do not fit."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights that do not fit the model they are loaded into."""
