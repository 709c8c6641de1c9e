"""A party's columns for vertical learning: numbers or categories, with missing values, beside its ids and labels.

Unlike `sources.read_table`, which takes finite numbers only, a column is what its values are: numbers where all that
are there read as such, else categories.  Messages and notes stay in the party's own log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from clients.sources import Source, block_of, is_npz, is_number, is_there, read_arrays, read_arrow, texts_of
from clients.sql_source import SqlSource
from fl_core.errors import DataError
from fl_core.learning.columns import Column, Columns, Kind

if TYPE_CHECKING:
    import pyarrow as pa

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
MAX_CLASSES = 1000
_MULTICLASS = 20  # different numbers beyond which `auto` learns them as numbers
_TYPES = "numbers, text, true/false"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_WHOLE = re.compile(r"[+-]?\d+")

Objective = Literal["auto", "binary", "multiclass", "regression"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a party has of its n rows, in the source's order.

    ids : the id columns as `sources.read_ids` gives them.
    columns : the features; none for pictures, or at a party that has the label only.
    labels : (n,) text, whole numbers without a fraction; None where no label was asked for.
    block : (n, …) float32, array `x` of an npz file: (n, d), or (n, c, h, w) pictures, uint8 ones brought to [0, 1].
    notes : columns that may not be what they look like, a line each.
    """

    ids: pa.Table
    columns: Columns
    labels: NDArray[np.str_] | None
    block: NDArray[np.float32] | None = None
    notes: list[str] = field(default_factory=list)


def read_columns(
    source: Path | SqlSource,
    *,
    id_columns: Sequence[str],
    label: str | None,
    only: Sequence[str] = (),
    kinds: Mapping[str, Kind] | None = None,
    where: str,
) -> Loaded:
    """Read a party's csv, csv.gz, parquet or npz file, or its query, once.

    A column is numbers if all its values that are there read as numbers, true/false being 1 and 0; else categories, of
    trimmed text.  Missing is what `MISSING` holds, NULL and NaN.

    Parameters
    ----------
    id_columns : columns that name a row; not features.
    label : the column to learn; None at a party that has none.
    only : the feature columns, in this order; without it all that are neither id nor label, in the source's order.
    kinds : columns whose kind is given, by a model they were used in, say, and not by their values.
    where : how messages begin, such as `party bank_a`.

    Raises
    ------
    DataError : the file or database cannot be read, a column is missing, there twice, both feature and id or label,
        or of another type; an infinite number; a missing label; no rows; neither label nor feature.
    """
    at = f"{where}: {source.name}" if isinstance(source, Path) else f"{where}: query result"
    _check_names(id_columns, label, only, at)
    if is_npz(source):
        return _from_npz(source, id_columns, label, only, kinds or {}, at)
    needed = [*(("id", c) for c in id_columns), *([("label", label)] if label is not None else [])]
    if only:
        table, place = read_arrow(source, where=where, needed=[*needed, *(("feature", c) for c in only)])
    else:
        table, place = read_arrow(source, where=where)
    features = _features(table.column_names, needed, only, place.where)
    return _loaded(table, id_columns, label, features, kinds or {}, place)


def _check_names(id_columns: Sequence[str], label: str | None, only: Sequence[str], where: str) -> None:
    if label in id_columns:
        raise DataError(where, f"{label!r} is both label and id", allowed="a label that is no id")
    for name in only:
        if name == label or name in id_columns:
            raise DataError(where, f"feature {name!r} is the {'label' if name == label else 'id'}", allowed="others")
    twice = sorted({name for names in (id_columns, only) for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(where, f"column {twice[0]!r} is named twice", allowed="each once")


def _features(names: Sequence[str], needed: Sequence[tuple[str, str]], only: Sequence[str], where: str) -> list[str]:
    for what, name in [*needed, *(("feature", name) for name in only)]:
        is_there(what, name, names, where)
    taken = {name for _, name in needed}
    features = list(only) or [name for name in names if name not in taken]
    if not features and all(what == "id" for what, _ in needed):
        raise DataError(where, "no feature columns", allowed="columns besides the ids, or a label")
    return features


def _loaded(
    table: pa.Table,
    id_columns: Sequence[str],
    label: str | None,
    features: Sequence[str],
    kinds: Mapping[str, Kind],
    source: Source,
) -> Loaded:
    if table.num_rows == 0:
        raise DataError(source.where, "no rows", allowed="one row or more")
    notes: list[str] = []
    columns = tuple(_column(table[name], name, kinds.get(name), source, notes) for name in features)
    labels = None if label is None else _labels(table[label], label, source)
    return Loaded(table.select(list(id_columns)), Columns(columns, table.num_rows), labels, notes=notes)


def _column(values: pa.ChunkedArray, name: str, kind: Kind | None, source: Source, notes: list[str]) -> Column:
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if not (text or pa.types.is_boolean(values.type) or is_number(values.type)):
        raise DataError(f"{source.where}, column {name!r}", f"holds {values.type}", allowed=_TYPES)
    if kind != "categories":
        try:
            return _numbers(values.cast(pa.float64(), safe=False).to_numpy(), name, source)
        except pa.ArrowInvalid:  # not a number, or missing in a word; the dictionary tells
            return _of_text(values, name, kind, source, notes)
    return _of_text(values if text else values.cast(pa.string()), name, kind, source, notes)


def _numbers(numbers: NDArray[np.float64], name: str, source: Source) -> Column:
    bad = np.isinf(numbers)
    if bad.any():
        raise source.fail(name, "not finite", bad, numbers.tolist(), "finite numbers, or nothing")
    return Column(name, numbers=numbers)


def _encoded(values: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int32]]:
    """The different values, and (n,) where each row's stands among them; -1 for NULL."""
    encoded = values.dictionary_encode().unify_dictionaries()
    parts = [chunk.indices.fill_null(-1).to_numpy() for chunk in encoded.chunks]
    return encoded.chunk(0).dictionary, np.concatenate(parts).astype(np.int32, copy=False)


def _of_text(values: pa.ChunkedArray, name: str, kind: Kind | None, source: Source, notes: list[str]) -> Column:
    """Numbers where all different texts are numbers or missing, else categories."""
    import pyarrow as pa
    from pyarrow import compute

    held, codes = _encoded(values)
    texts = compute.utf8_trim_whitespace(held)
    texts = compute.if_else(compute.is_in(texts, value_set=pa.array(MISSING, texts.type)), None, texts)
    if kind != "categories":
        try:
            numbers = texts.cast(pa.float64()).to_numpy(zero_copy_only=False)
            return _numbers(np.append(numbers, np.nan)[codes], name, source)
        except pa.ArrowInvalid:
            numeric = np.asarray(compute.match_substring_regex(texts, _NUMBER).fill_null(True))
        if kind == "numbers":
            shown = held.to_pylist()
            bad = np.append(~numeric, False)[codes]
            raise source.fail(name, "not a number", bad, [shown[code] for code in codes], "numbers, as in the training")
        _doubt(name, codes, numeric, texts, notes)
    words = texts.to_pylist()
    categories = sorted({word for word in words if word is not None})
    at = {word: i for i, word in enumerate(categories)}
    recoded = np.array([*(-1 if word is None else at[word] for word in words), -1], dtype=np.int32)
    return Column(name, codes=recoded[codes], categories=tuple(categories))


def _doubt(name: str, codes: NDArray[np.int32], numeric: NDArray[np.bool_], texts: pa.Array, notes: list[str]) -> None:
    """A note where most values are numbers: a word among them made categories of all."""
    rows = np.bincount(codes[codes >= 0], minlength=len(numeric))
    there = ~np.asarray(texts.is_null())
    numbers, words = int(rows[numeric & there].sum()), int(rows[~numeric].sum())
    if numbers > words > 0:
        first = texts[int(np.flatnonzero(~numeric)[0])].as_py()
        rest = f"other rows: {words}, such as {first[:40]!r}"
        notes.append(f"column {name!r} is read as categories; rows with a number: {numbers}, {rest}")


def _labels(values: pa.ChunkedArray, name: str, source: Source) -> NDArray[np.str_]:
    import pyarrow as pa

    if values.null_count == 0 and not pa.types.is_nested(values.type) and not pa.types.is_dictionary(values.type):
        held, codes = _encoded(values)
        try:
            return texts_of(held.to_pylist(), name, source)[codes]
        except DataError:  # told again below, with its rows
            return texts_of(values.to_pylist(), name, source)
    return texts_of(values.to_pylist(), name, source)


def _from_npz(
    path: Path, id_columns: Sequence[str], label: str | None, only: Sequence[str], kinds: Mapping[str, Kind], where: str
) -> Loaded:
    import pyarrow as pa

    arrays = read_arrays(path, where)
    source = Source(where, lambda rows: list(rows), "row")
    needed = [*(("id", c) for c in id_columns), *([("label", label)] if label is not None else [])]
    features = _features(list(arrays), needed, only, where)
    used = [*(name for _, name in needed), *features]
    whole = features == ["x"] and arrays["x"].ndim > 1
    n = len(arrays[used[0]])
    for name in used:
        if len(arrays[name]) != n or (arrays[name].ndim != 1 and not (whole and name == "x")):
            allowed = f"{n} rows as {used[0]!r} has; arrays of one dimension, or one array 'x' of features"
            raise DataError(where, f"array {name!r} has shape {arrays[name].shape}", allowed=allowed)
    if not whole:
        table = pa.table({name: _arrow(arrays[name], name, name in features, where) for name in used})
        return _loaded(table, id_columns, label, features, kinds, source)
    x = arrays["x"]
    if x.dtype.kind not in "biuf":
        raise DataError(where, f"array 'x' holds {x.dtype}", allowed="numbers")
    if n == 0:
        raise DataError(where, "no rows", allowed="one row or more")
    block, names = block_of(x, source)
    table = pa.table({name: _arrow(arrays[name], name, False, where) for _, name in needed})
    labels = None if label is None else _labels(table[label], label, source)
    numbers = np.ascontiguousarray(x.T, dtype=np.float64) if x.ndim == 2 else ()
    columns = tuple(Column(name, numbers=column) for name, column in zip(names, numbers, strict=False))
    return Loaded(table.select(list(id_columns)), Columns(columns, n), labels, block)


def _arrow(array: NDArray[Any], name: str, feature: bool, where: str) -> pa.Array:
    import pyarrow as pa

    if feature and array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    try:
        return pa.array(array)
    except pa.ArrowException:
        raise DataError(where, f"array {name!r} holds {array.dtype}", allowed=_TYPES) from None


def classes_of(
    labels: NDArray[np.str_], objective: Objective, where: str
) -> tuple[NDArray[np.int64] | NDArray[np.float64], tuple[str, ...], Objective]:
    """Labels as what a model learns.

    Parameters
    ----------
    labels : (n,) text, as `Loaded.labels`.
    objective : `auto`: two different labels are binary; more are multiclass, unless all are numbers and more than 20.

    Returns
    -------
    y : (n,) int64 positions in the classes, or float64 for a regression.
    classes : ascending, as whole numbers where all are, else as text; () for a regression.
    objective : `binary`, `multiclass` or `regression`.

    Raises
    ------
    DataError : one class only; other than 2 for `binary`; more than 1000 classes; for `regression` a label that is
        not a finite number, or one value only.
    """
    import pyarrow as pa

    held, codes = _encoded(pa.chunked_array([pa.array(labels)]))
    texts = held.to_pylist()
    numbers = _finite(held)
    if len(texts) < 2:
        raise DataError(f"{where}: label", "one class only", allowed="two different values or more")
    if objective == "auto":
        few = len(texts) <= _MULTICLASS or numbers is None
        objective = "binary" if len(texts) == 2 else "multiclass" if few else "regression"
    if objective == "regression":
        if numbers is None:
            raise DataError(f"{where}: label", "a value that is not a finite number", allowed="numbers in every row")
        return numbers[codes], (), objective
    if len(texts) > (2 if objective == "binary" else MAX_CLASSES):
        allowed = "2" if objective == "binary" else f"2 to {MAX_CLASSES}"
        raise DataError(f"{where}: label", f"{len(texts)} classes for {objective}", allowed=allowed)
    whole = all(_WHOLE.fullmatch(text) for text in texts)
    classes = sorted(texts, key=lambda text: (int(text), text) if whole else (0, text))
    at = {text: i for i, text in enumerate(classes)}
    return np.array([at[text] for text in texts], dtype=np.int64)[codes], tuple(classes), objective


def _finite(texts: pa.Array) -> NDArray[np.float64] | None:
    """Texts as numbers; None where one is not, or not finite."""
    import pyarrow as pa

    try:
        numbers: NDArray[np.float64] = texts.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    return numbers if np.isfinite(numbers).all() else None
