"""The trained detector that a user means by a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass

from detnas_d2.utils.errors import InputError

# Of a stage that trained a network, and of a search.
_FILES = (("config.yaml", "model_final.pth"), ("best_inherited.yaml", "best_inherited.pth"))
# Where a run has them: what was found and trained, else what was found.
_STAGES = ("", "searched", "search")

ARGUMENT_HELP = (
    "folder of detnas search (its searched network, or while that is not trained the search's best "
    "with the supernet's weights), of one stage of it, or a config with MODEL.WEIGHTS"
)


@dataclass(frozen=True)
class Detector:
    """``config``: file; ``opts``: KEY, VALUE overrides that name its weights."""

    config: str
    opts: tuple[str, ...] = ()

    @property
    def weights(self) -> str:
        """File next to the config; "" of a config alone."""
        return self.opts[1] if self.opts else ""


def find_detector(place: str) -> Detector:
    """The detector in a folder, or that of a config file.

    Raises:
        InputError: there is none; says what was looked for.
    """
    if os.path.isfile(place):
        return Detector(place)
    if not os.path.isdir(place):
        raise InputError(f"{place}: no such folder; expected the --output of detnas search")
    for stage in _STAGES:
        for config, weights in _FILES:
            files = [
                os.path.normpath(os.path.join(place, stage, name)) for name in (config, weights)
            ]
            if all(map(os.path.isfile, files)):
                return Detector(files[0], ("MODEL.WEIGHTS", files[1]))
    wanted = " or ".join(" and ".join(names) for names in _FILES)
    raise InputError(
        f"{place}: no trained detector; expected {wanted} in it, in searched/ or in search/ "
        "(detnas resume FOLDER goes on with a search that has not got there)"
    )
