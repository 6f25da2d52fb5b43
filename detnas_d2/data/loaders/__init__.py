"""Loaders of images for training, calibration and evaluation."""
