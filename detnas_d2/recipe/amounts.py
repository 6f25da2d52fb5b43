"""Amounts as people write them: budgets and times."""

from __future__ import annotations

import re
from dataclasses import dataclass

from detnas_d2.utils.errors import InputError
from detnas_d2.utils.screen import duration

__all__ = ["Budget", "duration", "millions", "read_budget", "read_seconds"]

_COUNTS = {"M": 1e6, "G": 1e9}
_SECONDS = {"h": 3600, "m": 60, "min": 60, "s": 1, "d": 86400}


@dataclass(frozen=True)
class Budget:
    """What a network may cost: multiply-adds of its backbone at 224x224, or milliseconds that the
    detector takes for an image; one of them, the other is None.
    """

    macs: int | None = None
    milliseconds: float | None = None

    def __str__(self) -> str:
        return f"{self.milliseconds:g}ms" if self.macs is None else millions(self.macs)


def read_budget(text: str) -> Budget:
    """``300M``, ``1.3G`` or ``15ms``.

    Raises:
        InputError: another text, or nothing above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(M|G|ms)", text.strip())
    value = float(match[1]) if match else 0.0
    if match is None or value <= 0:
        raise InputError(
            f"--budget {text}: expected multiply-adds of the backbone, e.g. 300M or 1.3G, or "
            "milliseconds of the detector for an image on this machine, e.g. 15ms"
        )
    if match[2] == "ms":
        return Budget(milliseconds=value)
    return Budget(macs=round(value * _COUNTS[match[2]]))


def read_seconds(text: str) -> float:
    """Seconds of ``2h``, ``90m``, ``1h30m``, ``45s``, ``1.5h``.

    Raises:
        InputError: another text, or nothing above 0.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?) ?(min|[dhms])\s*", text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not seconds or re.sub(r"(\d+(?:\.\d+)?) ?(min|[dhms])\s*", "", text.strip()):
        raise InputError(f"--time {text}: expected hours, minutes or seconds, e.g. 2h, 1h30m, 45s")
    return seconds


def millions(macs: float) -> str:
    """Multiply-adds in millions: ``8.4M``, ``300M``."""
    return f"{macs / 1e6:.3g}M" if macs < 1e9 else f"{macs / 1e6:.0f}M"
