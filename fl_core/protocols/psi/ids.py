"""Id columns as items: 32 bytes for each row, equal where the ids are equal.

Every party does this by itself, before a session; nothing leaves it.  Two ids are equal when all columns are, after

- text: Unicode NFKC, then trimmed of white space on both sides (Python's `str.strip`); case and inner space count,
- whole numbers (integers, decimals without a fraction): in decimal, so 7 and the text "7" are equal, "07" is another,
- dates: ISO 8601, so a date and the text "2024-01-31" are equal; a timestamp without a time zone is a date where
  every one of the column is at midnight, and is refused otherwise.

Floating point, true/false and other types are refused: the same id could be written in two ways.  Columns are joined
with their lengths in front, so ("a,b", "c") and ("a", "b,c") differ; names of columns do not count, their order does.

The hash is BLAKE2s-256 under a tag, without a key.  A key of the session would hinder nobody, for hashes never travel:
what does, in either protocol, is under keys of the session.  Without one, hashing does not wait for the peers.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

HASH_BYTES = 32

_TAG = "fedseal/id/v1/"
_BATCH = 1 << 16
_EXAMPLES = 3
#: All that `str.strip` takes off ASCII text.
_SPACE = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"
_ALLOWED = "text, whole numbers, dates"


@dataclass(frozen=True, eq=False)
class Ids:
    """A table's ids.

    hashes : (n, 32) uint8, distinct. rows : (n,) int64, ascending, the row of the table (from 0) that each is of;
        with `duplicates = "first"` some rows of the table have none.
    """

    hashes: NDArray[np.uint8]
    rows: NDArray[np.int64]


def hash_ids(
    columns: Sequence[pa.Array | pa.ChunkedArray],
    names: Sequence[str],
    *,
    where: str,
    duplicates: Literal["error", "first"] = "error",
) -> Ids:
    """The ids of a table that is in memory; see `IdHasher`."""
    hasher = IdHasher(names, where=where)
    hasher.add(columns)
    return hasher.finish(duplicates)


class IdHasher:
    """Hashes id columns as they come, part by part: 32 bytes a row stay.

    Parameters
    ----------
    names : of the id columns, at least one.
    where : how messages begin, such as `party bank_a: people.csv`.
    """

    def __init__(self, names: Sequence[str], *, where: str) -> None:
        if not names:
            raise UsageError(f"{where}: no id column is named; allowed: one or more")
        self._names, self._where = tuple(names), where
        self._hashes = bytearray()

    def add(self, columns: Sequence[pa.Array | pa.ChunkedArray]) -> None:
        """Append rows: a column for each name, all of one length.

        Raises
        ------
        DataError : a type that is no id's, an empty or missing id. It names column and row (from 1), not the value.
        """
        import pyarrow as pa

        table = pa.table(list(columns), names=[str(number) for number in range(len(self._names))])
        for batch in table.to_batches(max_chunksize=_BATCH):
            self._hashes += b"".join(self._digests(batch.columns))

    def finish(self, duplicates: Literal["error", "first"] = "error") -> Ids:
        """All rows added.

        Parameters
        ----------
        duplicates : an id that is there twice is an error, or the row where it comes first stays.

        Raises
        ------
        DataError : duplicates. It names the columns and the first few rows (from 1).
        """
        if duplicates not in ("error", "first"):
            raise UsageError(f"{self._where}: duplicates is {duplicates!r}; allowed: 'error', 'first'")
        hashes = np.frombuffer(self._hashes, dtype=np.uint8).reshape(-1, HASH_BYTES)
        rows, earlier = repeats(hashes)
        if not rows.size:
            return Ids(hashes, np.arange(len(hashes)))
        if duplicates == "error":
            raise self._duplicates(rows, earlier)
        kept = np.ones(len(hashes), dtype=bool)
        kept[rows] = False
        return Ids(hashes[kept], np.flatnonzero(kept))

    def _digests(self, columns: Sequence[pa.Array]) -> list[bytes]:
        from pyarrow import compute

        parts: list[Any] = [f"{_TAG}{len(columns)}/"]
        for name, column in zip(self._names, columns, strict=True):
            text = self._normalised(column, name)
            parts += [compute.binary_length(text).cast("string"), ":", text]
        joined = compute.binary_join_element_wise(*parts, "")
        offsets = np.frombuffer(joined.buffers()[1], dtype=np.int32)[joined.offset :][: len(joined) + 1].tolist()
        data, blake2s = joined.buffers()[2].to_pybytes(), hashlib.blake2s
        return [blake2s(data[start:end]).digest() for start, end in pairwise(offsets)]

    def _normalised(self, column: pa.Array, name: str) -> pa.Array:
        from pyarrow import compute

        text = self._as_text(column, name)
        text = _trimmed_ascii(text) if compute.all(compute.string_is_ascii(text)).as_py() is not False else _nfkc(text)
        missing = compute.fill_null(compute.equal(compute.binary_length(text), 0), True)
        if compute.any(missing).as_py():
            raise self._bad(name, "no id", np.asarray(missing), "a value in every row")
        return text

    def _as_text(self, column: pa.Array, name: str) -> pa.Array:
        import pyarrow as pa
        from pyarrow import types

        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        if types.is_timestamp(kind) and kind.tz is None:
            column = self._dates(column, name)
        elif types.is_binary(kind) or types.is_large_binary(kind):
            column = self._decoded(column, name)
        elif types.is_date64(kind):
            column = column.cast(pa.date32())
        elif not (_is_text(kind) or _is_whole(kind) or types.is_date32(kind) or types.is_null(kind)):
            raise DataError(f"{self._where}, column {name!r}", f"holds {kind}", allowed=_ALLOWED)
        return column.cast(pa.string())

    def _dates(self, column: pa.Array, name: str) -> pa.Array:
        import pyarrow as pa
        from pyarrow import compute

        dates = column.cast(pa.date32(), safe=False)
        late = compute.fill_null(compute.not_equal(dates.cast(column.type, safe=False), column), False)
        if compute.any(late).as_py():
            raise self._bad(name, "a time of day", np.asarray(late), "dates: timestamps at midnight")
        return dates

    def _decoded(self, column: pa.Array, name: str) -> pa.Array:
        import pyarrow as pa

        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            bad = np.array([not _is_utf8(value) for value in column.to_pylist()])
            raise self._bad(name, "bytes that are not UTF-8", bad, "text") from None

    def _bad(self, name: str, problem: str, bad: NDArray[np.bool_], allowed: str) -> DataError:
        rows = np.flatnonzero(bad)[:_EXAMPLES] + (len(self._hashes) // HASH_BYTES + 1)
        shown = ("row " if len(rows) == 1 else "rows ") + ", ".join(map(str, rows))
        return DataError(f"{self._where}, column {name!r}", f"{problem} in {shown}", allowed=allowed)

    def _duplicates(self, rows: NDArray[np.int64], earlier: NDArray[np.int64]) -> DataError:
        pairs = zip(earlier[:_EXAMPLES] + 1, rows[:_EXAMPLES] + 1, strict=True)
        shown = "; ".join(f"rows {a} and {b}" for a, b in pairs)
        more = f" and {len(rows) - _EXAMPLES} more" if len(rows) > _EXAMPLES else ""
        columns = ("column " if len(self._names) == 1 else "columns ") + ", ".join(map(repr, self._names))
        allowed = 'each id once, or duplicates = "first"'
        return DataError(f"{self._where}, {columns}", f"one id in {shown}{more}", allowed=allowed)


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_whole(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0))


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _trimmed_ascii(text: pa.Array) -> pa.Array:
    """What `_nfkc` does, for ASCII."""
    from pyarrow import compute

    return compute.ascii_trim(text, characters=_SPACE)


def _nfkc(text: pa.Array) -> pa.Array:
    import pyarrow as pa

    values = text.to_pylist()
    return pa.array([v if v is None else unicodedata.normalize("NFKC", v).strip() for v in values], pa.string())


def repeats(hashes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows whose hash was there before, ascending, and for each the row where it came first."""
    words = hashes.view(np.uint64)
    first = np.sort(words[:, 0])
    alike = first[1:][first[1:] == first[:-1]]
    if not alike.size:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    suspects = np.flatnonzero(np.isin(words[:, 0], alike))
    by = np.lexsort(words[suspects].T)  # stable: equal hashes stay in the order of their rows
    rows = suspects[by]
    again = np.append(False, (words[rows[1:]] == words[rows[:-1]]).all(axis=1))
    starts = np.maximum.accumulate(np.where(again, 0, np.arange(len(rows))))
    repeated, earlier = rows[again], rows[starts[again]]
    sorted_rows = np.argsort(repeated)
    return repeated[sorted_rows], earlier[sorted_rows]
