"""A small reader from TOML tables into frozen dataclasses: every mistake is one line naming the key.

A field is declared once, with `setting(...)`: its default, what is allowed, and what it means.  Types understood:
`str`, `int`, `float`, `bool`, `tuple[T, ...]`, `T | None`, a nested dataclass, and `tuple[Dataclass, ...]` for an
array of tables.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from fl_core.errors import JobFileError

T = TypeVar("T")
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def setting(
    default: Any = dataclasses.MISSING,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    key: str = "",
    doc: str = "",
) -> Any:
    """Declare one key: `low`/`high` are inclusive bounds, `above` an exclusive lower one, `key` its TOML name."""
    meta = {"choices": choices, "low": low, "high": high, "above": above, "key": key, "doc": doc}
    return dataclasses.field(default=default, metadata=meta)


def key_of(field: dataclasses.Field[Any]) -> str:
    """The TOML name of a field."""
    return str(field.metadata.get("key") or field.name)


@functools.cache
def _layout(cls: type[Any]) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Types by field name and fields by key; a job of n parties reads n tables of one class, at each party."""
    # a field whose key nobody can type is not read from files
    fields = {k: f for f in dataclasses.fields(cls) if (k := key_of(f)).isprintable()}
    return typing.get_type_hints(cls), fields


def read(cls: type[T], table: Mapping[str, Any], path: str = "") -> T:
    """Read `table` into `cls`; raises `JobFileError` for the first key that is unknown, missing or wrong."""
    hints, fields = _layout(cls)  # type: ignore[arg-type]
    for name in table:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise JobFileError(path + name, f"unknown key; {hint}".rstrip("; "), allowed=", ".join(sorted(fields)))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[field.name] = _value(hints[field.name], table[name], path + name, field)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise JobFileError(path + name, "missing", allowed=field.metadata.get("doc") or "a value")
    return cls(**values)


def _value(hint: Any, value: Any, path: str, field: dataclasses.Field[Any]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _value(next(a for a in args if a is not type(None)), value, path, field)
    if origin is tuple:
        if not isinstance(value, list):
            raise JobFileError(path, f"{_show(value)} is not a list", allowed="a list")
        return tuple(_value(args[0], v, f"{path}[{i}]", field) for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise JobFileError(path, f"{_show(value)} is not a table", allowed=f"[{path}]")
        return read(typing.cast(type[Any], hint), value, path + ".")
    return _scalar(hint, value, path, field)


def _scalar(hint: type, value: Any, path: str, field: dataclasses.Field[Any]) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise JobFileError(
            path, f"{_show(value)} is not {_NAMES.get(hint, hint.__name__)}", allowed=_allowed(hint, field)
        )
    meta = field.metadata
    bad = (
        (meta.get("choices") and value not in meta["choices"])
        or (isinstance(value, float) and not math.isfinite(value))
        or (meta.get("low") is not None and value < meta["low"])
        or (meta.get("high") is not None and value > meta["high"])
        or (meta.get("above") is not None and value <= meta["above"])
    )
    if bad:
        raise JobFileError(path, f"{_show(value)} is not allowed", allowed=_allowed(hint, field))
    return value


def _allowed(hint: type, field: dataclasses.Field[Any]) -> str:
    meta = field.metadata
    if meta.get("choices"):
        return " | ".join(meta["choices"])
    parts = [_NAMES.get(hint, hint.__name__)]
    for word, name in ((">", "above"), (">=", "low"), ("<=", "high")):
        if meta.get(name) is not None:
            parts.append(f"{word} {meta[name]:g}")
    return " ".join(parts) + (f" ({meta['doc']})" if meta.get("doc") else "")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def plain(value: Any, *, text: bool = True) -> Any:
    """Dataclasses back into the JSON-able shape they were read from; floats as their shortest decimal `text`.

    Unset options (None) are left out, so that a digest of the result does not change when a key is added later.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((key_of(f), getattr(value, f.name)) for f in dataclasses.fields(value))
        return {k: plain(v, text=text) for k, v in pairs if v is not None and v != ()}
    if isinstance(value, tuple):
        return [plain(v, text=text) for v in value]
    if isinstance(value, float) and text:
        return repr(value)
    return value
