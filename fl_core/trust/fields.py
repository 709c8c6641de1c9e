"""Checks of the fields of signed records: exact types, bounds and forms, each failure one line (`BadMessage`)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from fl_core.errors import BadMessage
from fl_core.trust import canonical
from fl_core.trust.identity import is_hex

MAX_TEXT = 200
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def closed(cls: type[Any], table: Any, what: str) -> dict[str, Any]:
    """Return `table` if it is an object with exactly the fields of the dataclass `cls`, else raise BadMessage."""
    names = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(table, dict) or set(table) != names:
        raise BadMessage(f"{what}: expected exactly {', '.join(sorted(names))}")
    return dict(table)


def listed(value: Any, what: str) -> tuple[Any, ...]:
    """Return a JSON list as a tuple; raises BadMessage."""
    if not isinstance(value, list):
        raise BadMessage(f"{what}: not a list")
    return tuple(value)


def jsonable(value: Any) -> Any:
    """Return a record of dataclasses, tuples, texts and numbers as canonical JSON takes it."""
    if dataclasses.is_dataclass(value):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [jsonable(item) for item in value] if isinstance(value, tuple) else value


def check_hex(value: Any, what: str, *, empty: bool = False) -> None:
    """Raise BadMessage unless `value` is a digest of 64 hex digits, or, where `empty`, no text."""
    if not is_hex(value, 32) and not (empty and value == "" and isinstance(value, str)):
        raise BadMessage(f"{what}: not 32 bytes of lower-case hex" + (" or empty" if empty else ""))


def check_whole(value: Any, what: str, *, low: int = 0, high: int = canonical.MAX_INT) -> int:
    """Return `value` if it is an integer (no bool) from `low` to `high`, else raise BadMessage."""
    if type(value) is not int or not low <= value <= high:
        raise BadMessage(f"{what} {value!r:.40}; allowed: a whole number from {low} to {high}")
    return value


def check_texts(value: Any, what: str, *, low: int, high: int, named: bool = False, distinct: bool = True) -> None:
    """Raise BadMessage unless `value` is a tuple of `low` to `high` texts, distinct, each one printable line.

    With `named`, each is a name as a party has.
    """
    if not isinstance(value, tuple) or not low <= len(value) <= high:
        raise BadMessage(f"{what}: not a list of {low} to {high} texts")
    for text in value:
        (check_named if named else check_text)(text, what)
    if distinct and len(set(value)) < len(value):
        raise BadMessage(f"{what}: one is there twice")


def check_named(value: Any, what: str) -> str:
    """Return `value` if it is formed as the name of a party, else raise BadMessage."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadMessage(f"{what} {value!r:.80}; allowed: [a-z0-9][a-z0-9_.-]{{0,63}}")
    return value


def check_text(value: Any, what: str) -> None:
    """Raise BadMessage unless `value` is 1 to 200 printable characters, without blanks at its ends."""
    is_line = isinstance(value, str) and 1 <= len(value) <= MAX_TEXT and value.isprintable()
    if not is_line or value != value.strip():
        raise BadMessage(f"{what}: {value!r:.40} is not one printable line of 1 to {MAX_TEXT} characters")
