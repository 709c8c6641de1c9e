"""A party's part of a vertical model with rows by id: from a file, or from an application's own values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.columns import MISSING, read_columns
from clients.model_folder import read_part
from clients.sources import read_ids
from fl_core.errors import DataError
from fl_core.learning.columns import Column, Columns, Kind
from fl_core.protocols.prediction.online import RowsById, check_online
from fl_core.protocols.prediction.part import Part
from fl_core.protocols.prediction.reading import part_of
from fl_core.protocols.psi.ids import hash_ids

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ID = 1024  # characters


def load_part(folder: Path, *, active: bool) -> tuple[Part, str]:
    """A party's part for scores by id, and its digest, hex.

    Parameters
    ----------
    active : whether its owner must have had the labels, or must not.

    Raises
    ------
    DataError : no such part, one that was damaged, or one that cannot be used in this way.
    """
    about, arrays = read_part(folder, str(folder))
    party = about.get("party")
    where = f"party {str(party)[:64]}"
    part = part_of(about, arrays, party=str(party), where=where)
    check_online(part, active=active)
    return part, str(about["digest"])


def read_rows(source: Path, id_columns: Sequence[str], part: Part) -> tuple[pa.Table, NDArray[np.uint8], Columns]:
    """A file's id columns, their hashes (n, 32) and the columns that a part reads.

    Raises
    ------
    DataError : the file cannot be read, a column is missing or of another kind, an id is missing or there twice.
    """
    where, kinds = part.where, part.kinds
    if kinds:
        loaded = read_columns(source, id_columns=id_columns, label=None, only=tuple(kinds), kinds=kinds, where=where)
        ids, columns = loaded.ids, loaded.columns
    else:  # its owner had the labels alone
        ids = read_ids(source, id_columns, where=where)
        columns = Columns((), ids.num_rows)
    where = f"{where}: {source.name}"
    hashes = hash_ids(ids.columns, id_columns, where=where).hashes
    try:
        held = tuple(columns.get(name, kind) for name, kind in kinds.items())
    except DataError as error:
        raise DataError(where, str(error)) from None
    return ids, hashes, Columns(held, len(columns))


def read_served(folder: Path, source: Path, id_columns: Sequence[str]) -> RowsById:
    """The part and the table of the party without labels, to be served.  Raises `DataError`."""
    part, digest = load_part(folder, active=False)
    _, hashes, columns = read_rows(source, id_columns, part)
    return RowsById(part, digest, hashes, columns)


def hash_texts(ids: Sequence[str | int] | pa.Table, where: str) -> NDArray[np.uint8]:
    """(n, 32) hashes of ids.

    Parameters
    ----------
    ids : of one column, or a table of several, in the order of the server's.

    Raises
    ------
    DataError : an empty, long or malformed id, or one that is there twice; it names the row, never the id.
    """
    import pyarrow as pa

    if isinstance(ids, pa.Table):
        return hash_ids(ids.columns, ids.column_names, where=where).hashes
    for number, one in enumerate(ids, start=1):
        if not isinstance(one, str | int) or isinstance(one, bool):
            raise DataError(f"{where}: id {number}", f"is a {type(one).__name__}", allowed="text, whole numbers")
        if isinstance(one, str) and len(one) > MAX_ID:
            raise DataError(f"{where}: id {number}", f"has {len(one)} characters", allowed=f"at most {MAX_ID}")
    try:
        held = pa.array([str(one) for one in ids], pa.string())
    except (UnicodeError, ValueError):
        raise DataError(f"{where}: ids", "one that is no Unicode text", allowed="text, whole numbers") from None
    return hash_ids([held], ["id"], where=where).hashes


def columns_of(rows: Mapping[str, Sequence[Any]], kinds: Mapping[str, Kind], count: int, where: str) -> Columns:
    """An application's values as the columns of a part; what is missing is None, NaN or a word of `columns.MISSING`.

    Parameters
    ----------
    rows : (count,) values of each column; others than those of `kinds` are left alone.

    Raises
    ------
    DataError : a column that is not there, of another length, or with a value of another kind.
    """
    made = []
    for name, kind in kinds.items():
        if name not in rows:
            allowed = ", ".join(map(repr, kinds))[:200]
            raise DataError(f"{where}: column {name!r}", "is not there", allowed=allowed)
        values = list(rows[name])
        if len(values) != count:
            raise DataError(f"{where}: column {name!r}", f"has {len(values)} values", allowed=f"{count}, one an id")
        make = _numbers if kind == "numbers" else _categories
        made.append(make(name, [_value(value) for value in values], f"{where}: column {name!r}"))
    return Columns(tuple(made), count)


def _value(value: Any) -> Any:
    """None where it is missing."""
    text = value.strip() if isinstance(value, str) else value
    return None if text is None or text != text or (isinstance(text, str) and text in MISSING) else text


def _numbers(name: str, values: list[Any], where: str) -> Column:
    try:
        numbers = np.array([np.nan if value is None else _number(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        raise DataError(where, "a value that is not a number", allowed="numbers, as in the training") from None
    if np.isinf(numbers).any():
        raise DataError(where, "a value that is not finite", allowed="finite numbers, or nothing")
    return Column(name, numbers=numbers)


def _number(value: Any) -> float:
    if isinstance(value, str) and "_" in value:  # Python's own way of writing one, no file's
        raise ValueError(value)
    return float(value)


def _categories(name: str, values: list[Any], where: str) -> Column:
    if not all(value is None or isinstance(value, str | int) for value in values):
        raise DataError(where, "a value that is neither text nor a whole number", allowed="text, as in the training")
    shown = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    words = [None if value is None else text for value, text in zip(values, shown, strict=True)]
    categories = sorted({word for word in words if word is not None})
    at = {word: i for i, word in enumerate(categories)}
    codes = np.array([-1 if word is None else at[word] for word in words], dtype=np.int32)
    return Column(name, codes=codes, categories=tuple(categories))
