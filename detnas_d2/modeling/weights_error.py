"""The error of weights that do not fit."""

from __future__ import annotations

from detnas_d2.utils.errors import InputError


class WeightsError(InputError):
    """Weights that do not fit the model they are loaded into."""
