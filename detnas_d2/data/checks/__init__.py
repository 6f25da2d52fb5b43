"""Checks of datasets before training, and what they found."""
