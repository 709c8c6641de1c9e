"""Own statements in files, as many as a board takes in one go in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_core.trust.entry import Statement
    from fl_core.trust.identity import Card


def write_parts(path: Path, statements: Sequence[Statement], card: Card) -> list[Path]:
    """Write statements of the party of `card` to `path`, and what is too much for one file to `…-2`, `…-3` beside it.

    Raises UsageError where one of the files is there or cannot be made.
    """
    from clients.statement_file import write_statements
    from fl_core.errors import UsageError
    from fl_core.trust.board import MAX_STATEMENTS

    parts = [statements[start : start + MAX_STATEMENTS] for start in range(0, len(statements), MAX_STATEMENTS)]
    more = [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, len(parts) + 1)]
    files = [path, *more]
    for file in files:
        if file.exists():
            raise UsageError(f"--out {file}: there is a file already; allowed: a new one")
    for file, part in zip(files, parts, strict=True):
        write_statements(file, [(statement, card) for statement in part])
    return files


def post_lines(files: Sequence[Path]) -> str:
    """Return the commands that post them, in their order."""
    return ", then ".join(f"fedseal grant post {file}" for file in files)
