"""Gradient search: the objective on the probabilities of operations, and screening."""
