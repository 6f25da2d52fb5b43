"""Where a run keeps what was decided for it.

Imports nothing large, so that a wrong folder is told at once.
"""

from __future__ import annotations

import os

from detnas_d2.utils.errors import InputError

FOLDER, FILE = "config", "recipe.json"


def record_file(output: str) -> str:
    """File of a run's decisions."""
    return os.path.join(output, FOLDER, FILE)


def check_begun(output: str, named: str, instead: str) -> None:
    """Raises InputError for a folder without a search that has begun.

    Args:
        named: the folder, as the user named it; ``instead``: what to do.
    """
    if not os.path.isfile(record_file(output)):
        raise InputError(
            f"{named}: no run of detnas search that has begun (config/recipe.json is missing); "
            f"{instead}"
        )
