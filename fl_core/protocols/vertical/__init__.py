"""Vertical learning: parties that hold different columns of the same rows train one model, each its own part of it."""
