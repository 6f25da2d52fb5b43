"""Checks of a run before it starts: config, model, data, disk."""
