"""The page of a run: one HTML file of whatever its folder holds so far.

Its libraries (Jinja2, matplotlib) are imported when a page is written.
"""

from __future__ import annotations

import logging

from detnas_d2.utils.errors import InputError

logger = logging.getLogger("detnas_d2.report")


def write_report(folder: str) -> str:
    """Writes ``report.html`` into an output folder; returns its path.

    Args:
        folder: of a pipeline, with or without SEEDS, or of a single search or training.

    Raises:
        InputError: nothing in it has begun.
    """
    from detnas_d2.report.page import write_page

    return write_page(folder)


def try_report(folder: str) -> None:
    """:func:`write_report` for who has more to do: what goes wrong becomes a warning."""
    try:
        write_report(folder)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        told = reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}"
        logger.warning("%s: no report could be written: %s", folder, told)
