"""Trainers of both methods, and what their steps are made of."""
