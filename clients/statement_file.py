"""Signed statements in a file, with their signers' cards: for where no door leads, by mail or on a stick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_core.errors import IntegrityError, UsageError
from fl_core.files import write_atomic
from fl_core.trust import canonical
from fl_core.trust.board import MAX_STATEMENT, MAX_STATEMENTS
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card

TYPE = "fedseal statements v1"
MAX_FILE = MAX_STATEMENTS * (MAX_STATEMENT + 4096)


def write_statements(path: Path, items: Sequence[tuple[Statement, Card]]) -> None:
    """Write statements with their signers' cards.  Raises UsageError where the file is there or cannot be made."""
    if path.exists():
        raise UsageError(f"--out {path}: there is a file already; allowed: a new one")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--out {path}: no such folder")
    table = [{"statement": statement.to_dict(), "card": card.to_dict()} for statement, card in items]
    write_atomic(path, canonical.encode({"type": TYPE, "items": table}) + b"\n", mode=0o644)


def read_statements(path: Path) -> list[tuple[Statement, Card]]:
    """Read and verify them, each under the card beside it; whose card that is the file does not prove.

    Raises UsageError for what cannot be read, is no such file, or does not verify.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise UsageError(f"{path}: {path.stat().st_size} bytes; allowed: {MAX_FILE}")
        data = path.read_bytes().removesuffix(b"\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        table = canonical.decode(data, max_bytes=MAX_FILE)
        if not isinstance(table, dict) or set(table) != {"type", "items"} or table["type"] != TYPE:
            raise UsageError(f"{path}: not {TYPE}; allowed: what --out wrote")
        items = table["items"]
        if not isinstance(items, list) or not 1 <= len(items) <= MAX_STATEMENTS:
            raise UsageError(f"{path}: not 1 to {MAX_STATEMENTS} statements")
        return [_item(item) for item in items]
    except IntegrityError as error:
        raise UsageError(f"{path}: {error}") from None


def _item(item: object) -> tuple[Statement, Card]:
    if not isinstance(item, dict) or set(item) != {"statement", "card"}:
        raise UsageError("an item that is not a statement and a card")
    statement, card = Statement.from_dict(item["statement"]), Card.from_dict(item["card"])
    statement.verify(card)
    return statement, card
