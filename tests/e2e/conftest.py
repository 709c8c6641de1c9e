"""Places to run the command line in, cleaned of processes afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.process import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A fresh home for the tests of one module."""
    made = Place(tmp_path_factory.mktemp("place"))
    yield made
    made.clear()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Place]:
    """A fresh home for one test."""
    made = Place(tmp_path)
    yield made
    made.clear()
