"""Keeps Flower's database small: what belongs to ended runs goes, and the file is given back to the disk."""

from __future__ import annotations

from pathlib import Path


def prune(database: Path) -> None:
    """Remove what belongs to ended Flower runs."""
