"""Amounts as people write them: budgets and times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from detnas_d2.utils.errors import InputError

_COUNTS = {"": 1, "M": 10**6, "G": 10**9}
_SECONDS = {"h": 3600, "m": 60, "min": 60, "s": 1, "d": 86400}


@dataclass(frozen=True)
class Budget:
    """What a network may cost: multiply-adds of its backbone at 224x224, or milliseconds that the
    detector takes for an image; one of them, the other is None. Its text has all digits.
    """

    macs: int | None = None
    milliseconds: float | None = None

    def __str__(self) -> str:
        if self.macs is not None:
            return f"{(Decimal(self.macs) / 10**6).normalize():f}M"
        return f"{Decimal(repr(self.milliseconds)).normalize():f}ms"


def read_budget(text: str) -> Budget:
    """``300M``, ``1.3G``, ``23750000`` or ``15ms``; no digit is lost.

    Raises:
        InputError: another text, or nothing above 0. A number of few digits, e.g. ``300``, may
            stand for millions or milliseconds, and is refused too.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(M|G|ms)|(\d{6,})", text.strip())
    value = Decimal(match[1] or match[3]) if match else Decimal(0)
    if match is None or value <= 0:
        raise InputError(
            f"--budget {text}: expected multiply-adds of the backbone, e.g. 300M, 1.3G or "
            "23750000, or milliseconds of the detector for an image on this machine, e.g. 15ms"
        )
    if match[2] == "ms":
        return Budget(milliseconds=float(value))
    return Budget(macs=round(value * _COUNTS[match[2] or ""]))


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
    """Multiply-adds in millions, rounded: ``8.37M``, ``300M``."""
    return f"{macs / 1e6:.3g}M" if macs < 1e9 else f"{macs / 1e6:.0f}M"
