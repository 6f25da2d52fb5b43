"""Whole runs in a folder of their own, as in tests/engine."""

from tests.engine.conftest import clean_run, configs  # noqa: F401
