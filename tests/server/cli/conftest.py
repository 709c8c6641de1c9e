"""Homes to type commands in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.coordinator.folder import CoordinatorFolder
from tests.server.cli.shell import Enter, Shell, make_node, serve_door


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.fixture
def node(shell: Shell, tmp_path: Path) -> Path:
    return make_node(shell, tmp_path / "node")


@pytest.fixture
def deployment(shell: Shell, tmp_path: Path) -> Iterator[tuple[CoordinatorFolder, Enter]]:
    with serve_door(tmp_path) as made:
        yield made
