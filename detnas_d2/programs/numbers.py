"""JSON files of what programs found."""

from __future__ import annotations

import math
from typing import Any

from detnas_d2.utils.io import write_json


def write_numbers(file: str, value: Any) -> None:
    """Writes JSON values, with null for what is not finite, which JSON cannot hold."""
    write_json(file, finite(value), indent=1)


def finite(value: Any) -> Any:
    """The value with None in the place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
