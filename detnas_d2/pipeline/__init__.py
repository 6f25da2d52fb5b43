"""Pipelines of stages and the tables made of them."""
