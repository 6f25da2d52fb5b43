"""Checks of data sets before training, and what they found."""
