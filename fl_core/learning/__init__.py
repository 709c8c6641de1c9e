"""Datasets, models, local training and privacy accounting."""
