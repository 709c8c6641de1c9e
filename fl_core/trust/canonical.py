"""Canonical JSON: the one byte form of everything that is signed or hashed (a subset of RFC 8785).

Values are dict, list, str, int and bool. Floats, null, keys beyond printable ASCII, integers beyond ±(2^53-1)
and lone surrogates are refused, so every value has exactly one encoding on every platform. With ASCII keys
the code point order of `json` is the UTF-16 order of RFC 8785 §3.2.3.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fl_core.errors import BadMessage

MAX_INT = 2**53 - 1
MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_dump = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


def encode(value: Any) -> bytes:
    """Return the canonical UTF-8 bytes of `value`.

    Raises
    ------
    BadMessage
        For a type, key, integer, string or nesting depth outside the subset.
    """
    _check(value, MAX_DEPTH)
    try:
        return _dump(value).encode("utf-8")
    except UnicodeEncodeError:
        raise BadMessage("canonical JSON: a string holds a lone surrogate") from None


def decode(data: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value whose canonical encoding is exactly `data`.

    Encoding the parsed value again and comparing refuses duplicate keys, white space, escapes, `-0`, another
    key order and every other second spelling at once.

    Raises
    ------
    BadMessage
        If `data` is longer than `max_bytes`, is no JSON, or is not byte for byte canonical.
    """
    if len(data) > max_bytes:
        raise BadMessage(f"canonical JSON: {len(data)} bytes; allowed: {max_bytes}")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadMessage("canonical JSON: not UTF-8 JSON") from None
    if encode(value) != data:
        raise BadMessage("canonical JSON: not in canonical form")
    return value


def digest(value: Any) -> str:
    """Return the SHA-256 of `encode(value)` as 64 hex digits."""
    return hashlib.sha256(encode(value)).hexdigest()


def _check(value: Any, depth: int) -> None:
    kind = type(value)  # exactly: an IntEnum or a numpy integer would not come back as what it was
    if kind is str or kind is bool:
        return
    if kind is int:
        if not -MAX_INT <= value <= MAX_INT:
            raise BadMessage(f"canonical JSON: an integer of {value.bit_length()} bits; allowed: ±(2^53-1)")
        return
    if kind is not dict and kind is not list:
        raise BadMessage(f"canonical JSON has no {kind.__name__}; allowed: dict, list, str, int, bool")
    if depth == 0:
        raise BadMessage(f"canonical JSON: nested deeper than {MAX_DEPTH}")
    if kind is dict:
        for key in value:
            if type(key) is not str or not (key.isascii() and key.isprintable()):
                raise BadMessage("canonical JSON: a key is not printable ASCII")
        value = value.values()
    for item in value:
        if type(item) is not str:  # most are, and a call costs more than the test
            _check(item, depth - 1)
