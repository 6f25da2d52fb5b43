"""Operators: compiled where ``detnas_d2._C`` is built, else their reference implementations."""

from detnas_d2.ops.extension import build_info, has_extension

__all__ = ["build_info", "has_extension"]
