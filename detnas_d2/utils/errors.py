"""Errors of input and of candidates, as opposed to mistakes of the program."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: a config, a file, data, weights, a folder that is in use.

    The text names the file, the key or value, what was expected and the remedy. Commands print it
    without a traceback (:mod:`detnas_d2.command`).
    """


CANDIDATE_FAILURES = (RuntimeError, MemoryError, FloatingPointError)
"""Exceptions that say something about one candidate (CUDA out of memory is a RuntimeError)."""


class CandidateFailed(Exception):
    """Reason why a candidate has no fitness, in one line.

    Unlike the exception it stands for it holds no traceback, whose frames would keep the tensors
    of the failed candidate alive while the next one is evaluated.
    """

    @classmethod
    def because(cls, error: Exception) -> CandidateFailed:
        """From the class and the first line of the message of `error`."""
        if isinstance(error, cls):
            return error
        lines = str(error).strip().splitlines()
        return cls(": ".join([type(error).__name__, *lines[:1]]))
