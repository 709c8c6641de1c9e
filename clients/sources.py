"""A party's own data, read once and checked: csv, csv.gz, parquet, npz or SQL, into features, labels and ids.

Nothing is guessed and nothing dropped: a value that cannot be used is named with its place. These messages
stay in the party's own log; what travels is their code. npz is read without pickle, so a file can run
nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import gzip
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from clients.sql_source import SqlSource, read_sql
from fl_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".csv", ".csv.gz", ".parquet", ".npz")
_EXAMPLES = 3
_WHOLE = re.compile(r"[+]?(-?(?:0|[1-9]\d*))(?:\.0*)?")
_MISSING = ("", "nan", "na", "n/a", "null", "none", "<na>")
Place = Callable[[Sequence[int]], list[int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """What a file or a query's result holds.

    x : (n, features) float32, or (n, c, h, w) of an npz of pictures (uint8 pixels brought to [0, 1]); finite.
    labels : (n,) text; whole numbers without a fraction ("1", not "1.0").
    feature_names : a name for each value of a row, in the source's order.
    ids : (n,) text, the id columns joined by a unit separator; None where no id column was asked for.
    """

    x: NDArray[np.float32]
    labels: NDArray[np.str_]
    feature_names: tuple[str, ...]
    ids: NDArray[np.str_] | None


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a column comes from, for messages: `place` turns row numbers (from 0) into the file's own."""

    where: str
    place: Place
    unit: str

    def fail(self, column: str, problem: str, bad: NDArray[np.bool_], values: Sequence[Any], allowed: str) -> DataError:
        """The error that shows some of the (n,) `bad` values with their places."""
        rows = np.flatnonzero(bad)[:_EXAMPLES].tolist()
        shown = ", ".join(
            f"{_show(values[r])} in {self.unit} {at}" for r, at in zip(rows, self.place(rows), strict=True)
        )
        more = f" and {int(bad.sum()) - len(rows)} more" if bad.sum() > len(rows) else ""
        return DataError(f"{self.where}, column {column!r}", f"{problem}: {shown}{more}", allowed=allowed)


def read_table(path: Path | SqlSource, *, id_columns: Sequence[str], label: str, where: str) -> Table:
    """Read a party's file or query; every column that is neither id nor label is a feature.

    Parameters
    ----------
    path : csv and csv.gz need a header; parquet; npz with arrays `x` (n, …) and the label's, or one array a
        column. Or a database's URL with a query; its rows are numbered from 1.
    id_columns : columns that name a row; not features.
    label : the column to learn.
    where : how messages begin, such as `party bank_a`.

    Raises
    ------
    DataError : the file or database cannot be read, a column is missing or there twice, no rows, a feature
        that is not a finite number, a missing label or id. One line: what, where, at most three values with
        their rows, what is allowed.
    """
    if is_npz(path):
        return _from_npz(path, id_columns, label, f"{where}: {path.name}")
    columns, source = read_arrow(path, where=where)
    return _from_columns(columns, id_columns, label, source)


def is_npz(path: Path | SqlSource) -> TypeGuard[Path]:
    """Whether a source is arrays (`read_arrays`) and not columns (`read_arrow`)."""
    return isinstance(path, Path) and path.name.lower().endswith(".npz")


def read_arrow(
    path: Path | SqlSource, *, where: str, needed: Sequence[tuple[str, str]] = ()
) -> tuple[pa.Table, Source]:
    """A csv file's columns as text, a parquet file's or a query's as they are.

    Parameters
    ----------
    needed : (what it is, name) of the columns to read, `("id", "customer")` for instance; all without any.

    Returns
    -------
    The needed columns in that order, or all; and how a message names a place in them.

    Raises
    ------
    DataError : the file or database cannot be read, or a column is missing or there twice.
    """
    if isinstance(path, SqlSource):
        table, source = read_sql(path, where), Source(f"{where}: query result", _from_one, "row")
        _check_header(table.column_names, source.where)
    elif _kind(path, f"{where}: {path.name}") == ".parquet":
        source = Source(f"{where}: {path.name}", _from_one, "row")
        table = _read_parquet(path, source.where)
    else:
        source = Source(f"{where}: {path.name}", lambda rows: _csv_lines(path, rows), "line")
        table = _read_csv(path, source.where, needed=needed)
    for what, name in needed:
        is_there(what, name, table.column_names, source.where)
    return table.select([name for _, name in needed]) if needed else table, source


def read_ids(path: Path | SqlSource, columns: Sequence[str], *, where: str) -> pa.Table:
    """The id columns of a party's file or query, in that order and as they stand there: csv as text.

    Raises
    ------
    DataError : the file or database cannot be read, or a column is missing.
    """
    import pyarrow as pa

    if not is_npz(path):
        table, _ = read_arrow(path, where=where, needed=[("id", name) for name in columns])
        return table.select(list(columns))
    where = f"{where}: {path.name}"
    arrays = read_arrays(path, where)
    for name in columns:
        is_there("id", name, list(arrays), where)
    if uneven := [n for n in columns if arrays[n].ndim != 1]:
        raise DataError(where, f"array {uneven[0]!r} has shape {arrays[uneven[0]].shape}", allowed="one dimension")
    return pa.table({name: arrays[name] for name in columns})


def _kind(path: Path, where: str) -> str:
    kind = next((f for f in sorted(FORMATS, key=len, reverse=True) if path.name.lower().endswith(f)), None)
    if kind is None:
        raise DataError(where, f"unknown kind of file {path.suffix!r}", allowed=", ".join(FORMATS))
    if not path.is_file():
        raise DataError(where, "no such file", allowed="a file")
    return kind


def _from_one(rows: Sequence[int]) -> list[int]:
    return [row + 1 for row in rows]


def _read_csv(path: Path, where: str, *, needed: Sequence[tuple[str, str]] = ()) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    allowed = "csv, UTF-8, a header line, a value for each column"
    try:
        with _open_text(path) as file:
            header = next((row for row in csv.reader(file) if row), [])
        _check_header(header, where)
        for what, name in needed:
            is_there(what, name, header, where)
        texts = arrow_csv.ConvertOptions(
            column_types={name: pa.string() for name in header},
            include_columns=[name for _, name in needed],
            strings_can_be_null=True,
            null_values=[""],
        )
        parse = arrow_csv.ParseOptions(newlines_in_values=True)
        return arrow_csv.read_csv(path, convert_options=texts, parse_options=parse)
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DataError(where, f"cannot be read ({_first_line(error)})", allowed=allowed) from error


def _read_parquet(path: Path, where: str) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Not `read_table`: it would take the folder's name for a partition, and follow file systems in the
        # path.
        with path.open("rb") as file:
            table = parquet.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(where, f"cannot be read ({_first_line(error)})", allowed="a whole parquet file") from error
    _check_header(table.column_names, where)
    return table


def _open_text(path: Path) -> Any:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _csv_lines(path: Path, rows: Sequence[int]) -> list[int]:
    """The line on which each record ends: blank lines and quoted line breaks count, as in an editor."""
    wanted, lines = set(rows), {}
    with _open_text(path) as file:
        reader = csv.reader(file)
        records = (reader.line_num for row in reader if row)
        for number, line in enumerate(records, start=-1):
            if number in wanted:
                lines[number] = line
    return [lines.get(row, row + 2) for row in rows]


def _check_header(header: Sequence[str], where: str) -> None:
    if not header:
        raise DataError(where, "no columns", allowed="a header and rows")
    twice = sorted({name for name in header if list(header).count(name) > 1})
    if twice:
        shown = ", ".join(map(repr, twice[:_EXAMPLES]))
        raise DataError(where, f"duplicate column names: {shown}", allowed="names that differ")


def is_there(what: str, name: str, names: Sequence[str], where: str) -> None:
    """Raise a DataError that names the nearest columns where `name` is none."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3) or list(names[:8])
        more = ", …" if len(near) < len(names) else ""
        raise DataError(where, f"no {what} column {name!r}", allowed=", ".join(map(repr, near)) + more)


def _pick(names: Sequence[str], id_columns: Sequence[str], label: str, where: str) -> list[str]:
    """The feature columns; raises where a named column is missing."""
    for what, name in [("label", label), *(("id", c) for c in id_columns)]:
        is_there(what, name, names, where)
    features = [n for n in names if n != label and n not in id_columns]
    if label in id_columns or not features:
        problem = f"{label!r} is both label and id" if label in id_columns else "no feature columns"
        raise DataError(where, problem, allowed="one label, and columns besides it and the ids")
    return features


def _from_columns(columns: pa.Table, id_columns: Sequence[str], label: str, source: Source) -> Table:
    features = _pick(columns.column_names, id_columns, label, source.where)
    if columns.num_rows == 0:
        raise DataError(source.where, "no rows", allowed="one row or more")
    x = np.empty((columns.num_rows, len(features)), dtype=np.float32)
    for i, name in enumerate(features):
        x[:, i] = _feature(columns[name], name, source)
    labels = texts_of(columns[label].to_pylist(), label, source)
    ids = [texts_of(columns[c].to_pylist(), c, source, exact=True) for c in id_columns]
    return Table(x, labels, tuple(features), _join(ids))


def _feature(column: pa.ChunkedArray, name: str, source: Source) -> NDArray[np.float32]:
    import pyarrow as pa
    from pyarrow import compute

    allowed = "finite numbers in the range of float32"
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = compute.utf8_trim_whitespace(column)
    elif not (pa.types.is_boolean(column.type) or is_number(column.type)):
        raise DataError(f"{source.where}, column {name!r}", f"holds {column.type}", allowed=allowed)
    try:
        numbers = column.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid:
        values = column.to_pylist()
        bad = np.array([v is not None and not _is_numeric_text(v) for v in values])
        raise source.fail(name, "not a number", bad, values, allowed) from None
    missing = np.asarray(column.is_null())
    if missing.any():
        raise source.fail(name, "no value", missing, [None] * len(missing), allowed)
    return _finite(numbers.to_numpy(), name, source)


def is_number(kind: pa.DataType) -> bool:
    """Whether an Arrow column of this type holds numbers, or nothing at all."""
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind))


def _is_numeric_text(text: str) -> bool:
    """Whether Arrow reads this text as a number (its grammar, not Python's, which takes 1_000)."""
    import pyarrow as pa

    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _finite(values: NDArray[Any], name: str, source: Source) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        x = np.asarray(values, dtype=np.float64).astype(np.float32)
    if not np.isfinite(x).all():
        bad = ~np.isfinite(x.reshape(len(x), -1))
        flat = np.asarray(values).reshape(len(x), -1)
        worst = [flat[row, int(at)].item() for row, at in enumerate(bad.argmax(axis=1))]
        raise source.fail(
            name, "not finite", np.asarray(bad.any(axis=1)), worst, "finite numbers in the range of float32"
        )
    return x


def texts_of(values: Sequence[Any], name: str, source: Source, *, exact: bool = False) -> NDArray[np.str_]:
    """Values as text; labels that are whole numbers lose sign and fraction, ids (`exact`) stay as they
    are."""
    texts = ["" if v is None else _text(v, exact) for v in values]
    missing = np.array([t == "" if exact else t.lower() in _MISSING for t in texts], dtype=bool)
    if missing.any():
        what = "no id" if exact else "no label"
        raise source.fail(name, what, missing, values, "a value in every row")
    return np.array(texts, dtype=np.str_)


def _text(value: Any, exact: bool) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    text = str(value).strip()
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    whole = None if exact else _WHOLE.fullmatch(text)
    if whole:
        text = "0" if whole[1] == "-0" else whole[1]
    return text


def _join(columns: list[NDArray[np.str_]]) -> NDArray[np.str_] | None:
    if not columns:
        return None
    return np.array(["\x1f".join(parts) for parts in zip(*columns, strict=True)], dtype=np.str_)


def _from_npz(path: Path, id_columns: Sequence[str], label: str, where: str) -> Table:
    arrays = read_arrays(path, where)
    names = list(arrays)
    source = Source(where, lambda rows: list(rows), "row")
    features = _pick(names, id_columns, label, where)
    n = len(arrays[label])
    if n == 0:
        raise DataError(where, "no rows", allowed="one row or more")
    whole = features == ["x"] and arrays["x"].ndim > 1
    for name, array in arrays.items():
        if len(array) != n or (array.ndim != 1 and not (whole and name == "x")):
            allowed = f"{n} rows as {label!r} has; arrays of one dimension, or one array 'x' of features"
            raise DataError(where, f"array {name!r} has shape {array.shape}", allowed=allowed)
    for name in features:
        if arrays[name].dtype.kind not in "biuf":
            raise DataError(where, f"array {name!r} holds {arrays[name].dtype}", allowed="numbers")
    if whole:
        x, feature_names = block_of(arrays["x"], source)
    else:
        x = np.stack([_finite(arrays[f], f, source) for f in features], axis=1)
        feature_names = tuple(features)
    ids = [texts_of(arrays[c].tolist(), c, source, exact=True) for c in id_columns]
    return Table(x, texts_of(arrays[label].tolist(), label, source), feature_names, _join(ids))


def block_of(x: NDArray[Any], source: Source) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Array `x` as finite float32, with a name a value: (n, d) features, (n, h, w) or (n, c, h, w) pictures."""
    if x.ndim > 4 or 0 in x.shape:
        raise DataError(source.where, f"array 'x' has shape {x.shape}", allowed="(n, d), (n, h, w) or (n, c, h, w)")
    pixels = x.ndim > 2 and x.dtype == np.uint8
    block = _finite(x, "x", source) / np.float32(255 if pixels else 1)
    if x.ndim == 3:
        block = block[:, None]
    return block, tuple(f"x{i}" for i in range(int(np.prod(block.shape[1:]))))


def read_arrays(path: Path, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, of one dimension or more; `where` names the file. DataError if it cannot be read."""
    _kind(path, where)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {}
            for name in file.files:
                try:
                    arrays[name] = np.atleast_1d(file[name])
                except ValueError as error:
                    problem = "holds Python objects" if "pickle" in str(error) else f"is broken ({_first_line(error)})"
                    raise DataError(where, f"array {name!r} {problem}", allowed="numbers or text") from None
    except (OSError, EOFError, ValueError, AttributeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(where, f"cannot be read ({_first_line(error)})", allowed="a whole npz file") from error
    if not arrays:
        raise DataError(where, "no arrays", allowed="arrays 'x' and the label's, or one a column")
    return arrays


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _show(value: Any) -> str:
    text = "nothing" if value in (None, "") else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
