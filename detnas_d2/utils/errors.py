"""What a person can put right, as opposed to a mistake of the program."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: a config, a file, data, weights, a folder that is in use.

    The text names the file, the key or value, what was expected and the remedy. Commands print it
    without a traceback (:mod:`detnas_d2.engine.command`).
    """
