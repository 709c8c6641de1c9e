"""A party's feature columns, and how it makes standardised numbers of them: at the owner, from its training rows only.

Nothing here leaves the party: means, deviations, categories and names stay in its own part of a model.  What a
training sends of the features it says itself.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError

Rows = NDArray[np.int64]
Kind = Literal["numbers", "categories"]
MIN_FREQUENCY = 50  # training rows below which a category is not told apart
CLIP = 10.0
_TINY = 5e-324
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Column:
    """One column, of numbers or of categories.

    numbers : (n,) float64, finite, NaN where missing; None for categories.
    codes : (n,) int32 into `categories`, -1 where missing; None for numbers.
    categories : ascending, none twice.
    """

    name: str
    numbers: NDArray[np.float64] | None = None
    codes: NDArray[np.int32] | None = None
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.numbers is None) == (self.codes is None):
            raise ValueError(f"column {self.name!r}: either numbers or codes")

    @property
    def kind(self) -> Kind:
        """`numbers` or `categories`."""
        return "categories" if self.numbers is None else "numbers"

    def __len__(self) -> int:
        held = self.codes if self.numbers is None else self.numbers
        assert held is not None
        return len(held)

    def take(self, rows: Rows) -> Column:
        """The given rows in that order; a negative row is missing."""
        there = rows >= 0
        if self.numbers is not None:
            numbers = np.full(len(rows), np.nan)
            numbers[there] = self.numbers[rows[there]]
            return Column(self.name, numbers=numbers)
        assert self.codes is not None
        codes = np.full(len(rows), -1, dtype=np.int32)
        codes[there] = self.codes[rows[there]]
        return Column(self.name, codes=codes, categories=self.categories)

    def counts(self) -> tuple[dict[str, int], int]:
        """Rows of each category that has any, and rows without one."""
        assert self.codes is not None
        counts = np.bincount(self.codes + 1, minlength=len(self.categories) + 1).tolist()
        return {c: k for c, k in zip(self.categories, counts[1:], strict=True) if k}, counts[0]

    def coded(self, known: Mapping[str, int], *, other: int, missing: int) -> NDArray[np.int64]:
        """(n,) the known code of each row's category, else `other`; `missing` where there is none."""
        assert self.codes is not None
        # The last one is what code -1 takes.
        return np.array([*(known.get(c, other) for c in self.categories), missing], dtype=np.int64)[self.codes]


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of one length; names differ.

    rows : the length, to be given where there are no columns only.
    """

    columns: tuple[Column, ...]
    rows: int = 0

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.columns}
        if len(lengths) > 1 or len(set(self.names)) < len(self.columns):
            raise ValueError("columns of one length and of different names")
        object.__setattr__(self, "rows", lengths.pop() if lengths else self.rows)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)

    def take(self, rows: Rows) -> Columns:
        """The given rows (int64) in that order; a negative row is missing in every column."""
        return Columns(tuple(column.take(rows) for column in self.columns), rows=len(rows))

    def get(self, name: str, kind: Kind) -> Column:
        """The column of that name; DataError where there is none, or one of another kind."""
        for column in self.columns:
            if column.name == name:
                if column.kind != kind:
                    raise DataError(f"column {name!r}", f"holds {column.kind}", allowed=f"{kind}, as in the training")
                return column
        near = difflib.get_close_matches(name, self.names, n=3) or self.names[:_SHOWN]
        allowed = ", ".join(map(repr, near)) or "the columns of the training"
        raise DataError(f"column {name!r}", "is not there", allowed=allowed)


def present(column: Column, notes: list[str]) -> NDArray[np.float64] | None:
    """The numbers that are there; None, and a note, where they tell nothing: none, or one value in every row."""
    assert column.numbers is not None
    there = column.numbers[~np.isnan(column.numbers)]
    if len(there) == 0:
        notes.append(f"column {column.name!r} has no values and is left out")
        return None
    if len(there) == len(column) and there.min() == there.max():
        notes.append(f"column {column.name!r} is constant and is left out")
        return None
    return there


def no_category(name: str, distinct: int, min_frequency: int) -> str:
    """The note of a column of so many categories, of which less than two could be told apart."""
    why = "has no values" if distinct == 0 else "is constant"
    if distinct > 1:
        why = f"has no category of {min_frequency} rows or more"
    return f"column {name!r} {why} and is left out"


def nothing_left(where: str, columns: Columns, notes: Sequence[str]) -> DataError:
    """The error where every column was left out; `notes` say why."""
    if not columns.columns:
        return DataError(where, "no feature columns", allowed="one or more")
    more = f" and {len(notes) - _SHOWN} more" if len(notes) > _SHOWN else ""
    return DataError(where, "no column is left: " + "; ".join(notes[:_SHOWN]) + more, allowed="columns that vary")


@dataclass(frozen=True)
class _Scaled:
    """Numbers: (v - mean) / deviation clipped, unless `deviation` is 0; then 1 where missing, if `missing`."""

    name: str
    mean: float
    deviation: float
    missing: bool
    kind: Kind = "numbers"

    @property
    def names(self) -> list[str]:
        return [self.name] * (self.deviation > 0) + [f"{self.name} is missing"] * self.missing

    def fill(self, columns: Columns, out: NDArray[np.float64], clip: float) -> None:
        numbers = columns.get(self.name, self.kind).numbers
        assert numbers is not None
        if self.deviation:
            with np.errstate(over="ignore"):
                x = np.clip((numbers - self.mean) / self.deviation, -clip, clip)
            out[:, 0] = np.nan_to_num(x, copy=False, nan=0.0)
        if self.missing:
            out[:, -1] = np.isnan(numbers)

    @staticmethod
    def fit(column: Column, notes: list[str]) -> _Scaled | None:
        there = present(column, notes)
        return None if there is None else _Scaled(column.name, *_moments(there), len(there) < len(column))


def _moments(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and deviation; the latter is 0 exactly where all are equal."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low, 0.0
    _, power = math.frexp(max(-low, high))
    scaled = np.ldexp(values, -power)  # exact, and no square leaves float64
    return math.ldexp(float(scaled.mean()), power), max(math.ldexp(float(scaled.std()), power), _TINY)


@dataclass(frozen=True)
class _OneHot:
    """Categories: one feature each for the frequent ones, for all others together, and for missing."""

    name: str
    categories: tuple[str, ...]
    other: bool
    missing: bool
    kind: Kind = "categories"

    @property
    def names(self) -> list[str]:
        told = [f"{self.name} = {c}" for c in self.categories]
        return told + [f"{self.name} is another"] * self.other + [f"{self.name} is missing"] * self.missing

    def fill(self, columns: Columns, out: NDArray[np.float64], clip: float) -> None:
        known = {c: i for i, c in enumerate(self.categories)}
        other = len(known) if self.other else -1
        missing = len(known) + self.other if self.missing else other
        codes = columns.get(self.name, self.kind).coded(known, other=other, missing=missing)
        out[...] = codes[:, None] == np.arange(out.shape[1])

    @staticmethod
    def fit(column: Column, min_frequency: int, notes: list[str]) -> _OneHot | None:
        counts, missing = column.counts()
        kept = tuple(sorted(c for c, k in counts.items() if k >= min_frequency))
        made = _OneHot(column.name, kept, len(kept) < len(counts), missing > 0)
        if len(made.names) > 1:
            return made
        notes.append(no_category(column.name, len(counts), min_frequency))
        return None


@dataclass(frozen=True)
class LinearFeatures:
    """Columns as features of a linear model or a network: standardised numbers and one-hot categories.

    clip : standardised numbers lie in [-clip, clip]. notes : what was left out and why, a line each.
    """

    encoders: tuple[_Scaled | _OneHot, ...]
    clip: float = CLIP
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def fit(
        columns: Columns, train_rows: Rows, *, min_frequency: int = MIN_FREQUENCY, clip: float = CLIP, where: str
    ) -> LinearFeatures:
        """Learn means, deviations and categories from the training rows.

        A number has a second feature that is 1 where it is missing, if a training value is; else a missing one is the
        mean.  A category of fewer than `min_frequency` training rows, and one never seen, is `another`; where all were
        frequent there is no such feature, and one never seen is all zeros.  A column without two different values is
        left out.

        Parameters
        ----------
        train_rows : (m,) int64 positions in `columns`.
        where : how messages begin, such as `party bank_a`.

        Raises
        ------
        DataError : no training rows, or no column is left.
        """
        if len(train_rows) == 0:
            raise DataError(where, "no training rows", allowed="one or more")
        encoders: list[_Scaled | _OneHot] = []
        notes: list[str] = []
        for column in columns:
            train = column.take(train_rows)
            made = _OneHot.fit(train, min_frequency, notes) if train.numbers is None else _Scaled.fit(train, notes)
            encoders += [made] if made else []
        if not encoders:
            raise nothing_left(where, columns, notes)
        return LinearFeatures(tuple(encoders), clip, notes)

    @property
    def names(self) -> tuple[str, ...]:
        """The d features' names."""
        return tuple(name for encoder in self.encoders for name in encoder.names)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The columns that `transform` needs, and their kinds."""
        return {encoder.name: encoder.kind for encoder in self.encoders}

    def transform(self, columns: Columns) -> NDArray[np.float64]:
        """(n, d) float64, finite; DataError where a column is missing or of another kind."""
        out = np.empty((len(columns), len(self.names)))
        at = 0
        for encoder in self.encoders:
            width = len(encoder.names)
            encoder.fill(columns, out[:, at : at + width], self.clip)
            at += width
        return out

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without loss."""
        made: list[dict[str, Any]] = []
        for e in self.encoders:
            if isinstance(e, _Scaled):
                made.append({"name": e.name, "mean": e.mean, "deviation": e.deviation, "missing": e.missing})
            else:
                kept = list(e.categories)
                made.append({"name": e.name, "categories": kept, "other": e.other, "missing": e.missing})
        return {"columns": made, "clip": self.clip, "notes": list(self.notes)}

    @staticmethod
    def from_dict(held: Mapping[str, Any]) -> LinearFeatures:
        """Back from `to_dict`; DataError where it is none."""
        try:
            encoders = tuple(_encoder(one) for one in held["columns"])
            return LinearFeatures(encoders, float(held["clip"]), [str(note) for note in held["notes"]])
        except (KeyError, TypeError, ValueError) as error:
            problem = f"malformed ({type(error).__name__})"
            raise DataError("kept features", problem, allowed="what to_dict gave") from None


def _encoder(held: Mapping[str, Any]) -> _Scaled | _OneHot:
    if "categories" in held:
        kept = tuple(str(c) for c in held["categories"])
        return _OneHot(str(held["name"]), kept, bool(held["other"]), bool(held["missing"]))
    mean, deviation = float(held["mean"]), float(held["deviation"])
    if not math.isfinite(mean) or not 0 <= deviation < math.inf:
        raise ValueError
    return _Scaled(str(held["name"]), mean, deviation, bool(held["missing"]))
