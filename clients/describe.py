"""What an owner's card may say of data: columns and how many rows. Everything is read here and nothing leaves.

A column is `number`, `text`, `true/false` or `bytes`, whatever the file calls it, so that one table has one digest as
csv and as parquet; pictures are one column with their shape, `number[28,28]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.sources import is_npz, is_number, read_arrays, read_arrow
from fl_core.errors import DataError
from fl_core.trust.catalog import MAX_COLUMNS
from fl_core.trust.fields import MAX_TEXT

if TYPE_CHECKING:
    import pyarrow as pa

    from clients.sql_source import SqlSource

NUMBER, TEXT, BOOL, BYTES = "number", "text", "true/false", "bytes"


def describe(source: Path | SqlSource, *, where: str = "data") -> tuple[tuple[tuple[str, str], ...], int]:
    """Return the (name, type) pairs of a file or a query, sorted, and its number of rows.

    Raises
    ------
    DataError
        If it cannot be read, has no rows, or a column's name cannot stand on a card.
    """
    if is_npz(source):
        columns, rows = _arrays(source, where)
    else:
        table, _ = read_arrow(source, where=where)
        columns, rows = [(name, _type(table[name])) for name in table.column_names], table.num_rows
    if rows == 0:
        raise DataError(where, "no rows", allowed="one row or more")
    if len(columns) > MAX_COLUMNS:
        raise DataError(where, f"{len(columns)} columns", allowed=f"at most {MAX_COLUMNS} on a card")
    for name, _ in columns:
        if not (1 <= len(name) <= MAX_TEXT and name.isprintable() and name == name.strip()):
            allowed = f"one printable line of 1 to {MAX_TEXT} characters without blanks at its ends"
            raise DataError(where, f"column {name!r:.80}", allowed=allowed)
    return tuple(sorted(columns)), rows


def _arrays(path: Path, where: str) -> tuple[list[tuple[str, str]], int]:
    arrays = read_arrays(path, f"{where}: {path.name}")
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) > 1:
        raise DataError(where, f"arrays of {len(lengths)} lengths", allowed="as many rows in each")
    columns = []
    for name, array in arrays.items():
        kind = {"b": BOOL, "S": BYTES}.get(array.dtype.kind, NUMBER if array.dtype.kind in "iuf" else TEXT)
        shape = ",".join(map(str, array.shape[1:]))
        columns.append((name, f"{kind}[{shape}]" if shape else kind))
    return columns, lengths.pop()


def _type(column: pa.ChunkedArray) -> str:
    """A csv's column is text to Arrow; it is one of numbers where each value that is there is one."""
    import pyarrow as pa

    kind: Any = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_boolean(kind):
        return BOOL
    if is_number(kind):
        return NUMBER
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return BYTES
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return TEXT
    return _text_type(column)


def _text_type(column: pa.ChunkedArray) -> str:
    import pyarrow as pa
    from pyarrow import compute

    held = compute.utf8_trim_whitespace(column.drop_null())
    held = held.filter(compute.not_equal(held, ""))
    if len(held) == 0:
        return TEXT
    words = compute.unique(compute.utf8_lower(held.slice(0, 1000))).to_pylist()
    if set(words) <= {"true", "false"}:
        return BOOL if set(compute.unique(compute.utf8_lower(held)).to_pylist()) <= {"true", "false"} else TEXT
    try:
        held.cast(pa.float64())
    except pa.ArrowInvalid:
        return TEXT
    return NUMBER
