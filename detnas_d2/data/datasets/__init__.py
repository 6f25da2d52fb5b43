"""Datasets: where they lie, how they are read, split and registered."""
