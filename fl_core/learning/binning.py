"""A party's columns as small whole numbers, for trees and models on bins: at the owner, from its training rows only.

Nothing here leaves the party: edges, categories and names stay in its own part of a model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError, JobFileError
from fl_core.learning.columns import MIN_FREQUENCY, Column, Columns, Kind, Rows, no_category, nothing_left, present

Codes = NDArray[np.uint8]
MAX_BINS = 255  # and a code for missing: all fit in a byte
_SHOWN = 8
_BLOCK = 4096  # rows whose codes are repeated at one time


@dataclass(frozen=True, eq=False)
class _Bins:
    """Numbers: code k holds edges[k-1] < v ≤ edges[k]; one more where missing is code 0."""

    name: str
    edges: NDArray[np.float64]
    missing: bool
    kind: Kind = "numbers"

    @property
    def size(self) -> int:
        return len(self.edges) + 1 + self.missing

    @property
    def label(self) -> str:
        return self.name

    def codes(self, columns: Columns) -> Codes:
        numbers = columns.get(self.name, self.kind).numbers
        assert numbers is not None
        codes = np.searchsorted(self.edges, numbers, side="left") + self.missing
        return np.where(np.isnan(numbers), 0, codes).astype(np.uint8)

    def up_to(self, cut: int) -> str:
        if self.missing and cut == 0:
            return f"{self.name} is missing"
        return f"{self.name} ≤ {self.edges[cut - self.missing]:.12g}" + " or missing" * self.missing

    def code_names(self) -> list[str]:
        marks = [f"{edge:.12g}" for edge in self.edges]
        between = [f"{low} < {self.name} ≤ {high}" for low, high in itertools.pairwise(marks)]
        told = [f"{self.name} ≤ {marks[0]}", *between, f"{self.name} > {marks[-1]}"] if marks else [self.name]
        return [f"{self.name} is missing"] * self.missing + told

    @staticmethod
    def fit(column: Column, bins: int, few: list[str], notes: list[str]) -> _Bins | None:
        there = present(column, notes)
        if there is None:
            return None
        values = np.sort(there)
        distinct = int(np.count_nonzero(values[1:] != values[:-1])) + 1
        if distinct < bins:
            few.append(f"{column.name!r} ({distinct})")
        return _Bins(column.name, _edges(values, distinct, bins), len(there) < len(column))


def _edges(values: NDArray[np.float64], distinct: int, bins: int) -> NDArray[np.float64]:
    """At most bins - 1 ascending edges that leave no bin of the ascending values empty."""
    if distinct <= bins:
        return np.unique(values)[:-1]
    # A quarter, so that the difference of two does not overflow.
    quantiles = np.ldexp(np.quantile(np.ldexp(values, -2), np.linspace(0, 1, bins + 1)[1:-1]), 2)
    highest = values[np.searchsorted(values, values[-1]) - 1]  # that leaves a value above
    quantiles = np.unique(np.clip(quantiles, values[0], highest))
    _, first = np.unique(np.searchsorted(values, quantiles, side="right"), return_index=True)
    return np.asarray(quantiles[first], dtype=np.float64)


@dataclass(frozen=True)
class _Ranked:
    """Categories, the most frequent first; missing is code 0, all others together are the last code."""

    name: str
    categories: tuple[str, ...]
    other: bool
    missing: bool
    kind: Kind = "categories"

    @property
    def size(self) -> int:
        return self.missing + len(self.categories) + self.other

    @property
    def label(self) -> str:
        return self.name

    def codes(self, columns: Columns) -> Codes:
        known = {c: i + self.missing for i, c in enumerate(self.categories)}
        last = self.size - 1
        coded = columns.get(self.name, self.kind).coded(known, other=last, missing=0 if self.missing else last)
        return coded.astype(np.uint8)

    def up_to(self, cut: int) -> str:
        if self.missing and cut == 0:
            return f"{self.name} is missing"
        kept = self.categories[: cut + 1 - self.missing]
        more = f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else ""
        among = f"in {{{', '.join(kept[:_SHOWN])}{more}}}"
        return f"{self.name} {'is missing or ' * self.missing}{among}"

    def code_names(self) -> list[str]:
        told = [f"{self.name} is missing"] * self.missing + [f"{self.name} = {c}" for c in self.categories]
        return told + [f"{self.name} is another"] * self.other

    @staticmethod
    def fit(column: Column, bins: int, min_frequency: int, notes: list[str]) -> _Ranked | None:
        counts, missing = column.counts()
        kept = sorted((c for c, k in counts.items() if k >= min_frequency), key=lambda c: (-counts[c], c))
        if len(kept) + (len(kept) < len(counts)) > bins:
            notes.append(f"column {column.name!r} has more than {bins} categories: the rarest are one")
            kept = kept[: bins - 1]
        made = _Ranked(column.name, tuple(kept), len(kept) < len(counts), missing > 0)
        if made.size > 1:
            return made
        notes.append(no_category(column.name, len(counts), min_frequency))
        return None

    def flags(self) -> list[_Flag]:
        """A 0/1 feature for each frequent category and for missing; one is enough for two."""
        of: list[str | None] = [None] * self.missing + list(self.categories)
        return [_Flag(self.name, category) for category in (of[:1] if self.size == 2 else of)]


@dataclass(frozen=True)
class _Flag:
    """1 where the column is of that category, or missing for None."""

    name: str
    category: str | None
    kind: Kind = "categories"
    size: int = 2

    @property
    def label(self) -> str:
        return self.code_names()[1]

    def codes(self, columns: Columns) -> Codes:
        known = {} if self.category is None else {self.category: 1}
        column = columns.get(self.name, self.kind)
        return column.coded(known, other=0, missing=int(self.category is None)).astype(np.uint8)

    def up_to(self, cut: int) -> str:
        return self.code_names()[0]

    def code_names(self) -> list[str]:
        if self.category is None:
            return [f"{self.name} is not missing", f"{self.name} is missing"]
        return [f"{self.name} ≠ {self.category}", f"{self.name} = {self.category}"]


_Feature = _Bins | _Ranked | _Flag


@dataclass(frozen=True, eq=False)
class BinnedFeatures:
    """Columns as features of small whole numbers.

    notes : what was left out, and which columns have fewer values than bins; a line each.
    """

    features: tuple[_Feature, ...]
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def fit(
        columns: Columns,
        train_rows: Rows,
        *,
        bins: int,
        categories: Literal["ordinal", "one-hot"] = "ordinal",
        min_frequency: int = MIN_FREQUENCY,
        where: str,
    ) -> BinnedFeatures:
        """Learn edges and categories from the training rows.

        Numbers: at most `bins` quantile bins, none of them empty in the training, v ≤ edge k exactly where code ≤ k; a
        value each where there are no more values than bins.  If a training value is missing, missing is code 0 and the
        others are one higher; else a missing one counts as the lowest bin.
        Categories: `ordinal`: by descending training frequency, ties by name; those of fewer than `min_frequency` rows,
        never seen or beyond `bins` share the last code; missing is code 0 if a training value is, else as never seen.
        `one-hot`: of those, a 0/1 feature for each category that has a code alone, and for missing.
        A column of one code is left out.

        Parameters
        ----------
        train_rows : (m,) int64 positions in `columns`.
        bins : 2 to 255.
        where : how messages begin, such as `party bank_a`.

        Raises
        ------
        JobFileError : `vertical.bins` out of range. DataError : no training rows, or no column is left.
        """
        if not 2 <= bins <= MAX_BINS:
            raise JobFileError("vertical.bins", f"{bins}", allowed=f"2 to {MAX_BINS}")
        if len(train_rows) == 0:
            raise DataError(where, "no training rows", allowed="one or more")
        features: list[_Feature] = []
        few: list[str] = []
        notes: list[str] = []
        for column in columns:
            train = column.take(train_rows)
            if train.numbers is not None:
                binned = _Bins.fit(train, bins, few, notes)
                features += [binned] if binned else []
            elif ranked := _Ranked.fit(train, bins, min_frequency, notes):
                features += ranked.flags() if categories == "one-hot" else [ranked]
        if few:
            notes.append(f"more bins than values in {', '.join(few)}")
        if not features:
            raise nothing_left(where, columns, notes)
        return BinnedFeatures(tuple(features), notes)

    @property
    def names(self) -> tuple[str, ...]:
        """The d features' names."""
        return tuple(feature.label for feature in self.features)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The columns that `transform` needs, and their kinds."""
        return {feature.name: feature.kind for feature in self.features}

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(d,) number of codes of each feature, 2 to 256."""
        return np.array([feature.size for feature in self.features], dtype=np.int64)

    def transform(self, columns: Columns) -> Codes:
        """(n, d) uint8 codes, each below its size; DataError where a column is missing or of another kind."""
        out = np.empty((len(columns), len(self.features)), dtype=np.uint8)
        for j, feature in enumerate(self.features):
            out[:, j] = feature.codes(columns)
        return out

    def describe(self, feature: int, cut: int) -> str:
        """What `code <= cut` says, such as `income ≤ 1200.5`; cut from 0 to size - 2."""
        one = self.features[feature]
        if not 0 <= cut < one.size - 1:
            raise ValueError(f"cut {cut} of {one.size} codes")
        return one.up_to(cut)

    def code_names(self) -> tuple[str, ...]:
        """A name for each column of `one_hot`."""
        return tuple(name for feature in self.features for name in feature.code_names())

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, without loss."""
        made: list[dict[str, Any]] = []
        for f in self.features:
            if isinstance(f, _Bins):
                made.append({"name": f.name, "edges": f.edges.tolist(), "missing": f.missing})
            elif isinstance(f, _Ranked):
                kept = list(f.categories)
                made.append({"name": f.name, "categories": kept, "other": f.other, "missing": f.missing})
            else:
                made.append({"name": f.name, "category": f.category})
        return {"features": made, "notes": list(self.notes)}

    @staticmethod
    def from_dict(held: Mapping[str, Any]) -> BinnedFeatures:
        """Back from `to_dict`; DataError where it is none."""
        try:
            return BinnedFeatures(tuple(_feature(one) for one in held["features"]), [str(n) for n in held["notes"]])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("kept bins", f"malformed ({type(error).__name__})", allowed="what to_dict gave") from None


def _feature(held: Mapping[str, Any]) -> _Feature:
    name = str(held["name"])
    if "category" in held:
        return _Flag(name, None if held["category"] is None else str(held["category"]))
    made: _Bins | _Ranked
    if "edges" in held:
        edges = np.array([float(edge) for edge in held["edges"]], dtype=np.float64)
        if not all(map(math.isfinite, edges)) or (np.diff(edges) <= 0).any():
            raise ValueError
        made = _Bins(name, edges, bool(held["missing"]))
    else:
        made = _Ranked(name, tuple(map(str, held["categories"])), bool(held["other"]), bool(held["missing"]))
    if not 2 <= made.size <= MAX_BINS + 1:
        raise ValueError
    return made


def one_hot(codes: Codes, sizes: NDArray[np.int64], rows: slice = slice(None)) -> NDArray[np.bool_]:
    """Codes as 0/1 columns.

    Parameters
    ----------
    codes : (n, d) uint8, each below its size. sizes : (d,).
    rows : only these rows, such as slice(0, 65536).

    Returns
    -------
    (n, Σ sizes) bool, the sizes[0] columns of the first feature first; a row has one True a feature.
    """
    return _compared(codes[rows], sizes, sizes, np.equal)


def cumulative(codes: Codes, sizes: NDArray[np.int64], rows: slice = slice(None)) -> NDArray[np.bool_]:
    """As `one_hot`, but (n, Σ (sizes - 1)) bool: column (j, c) is codes[:, j] <= c, for c < sizes[j] - 1."""
    return _compared(codes[rows], sizes, sizes - 1, np.less_equal)


def _compared(
    codes: Codes, sizes: NDArray[np.int64], widths: NDArray[np.int64], compare: Callable[..., Any]
) -> NDArray[np.bool_]:
    if len(codes) and (codes.max(axis=0) >= sizes).any():
        raise ValueError("a code that its feature does not have")
    levels = np.concatenate([np.arange(width, dtype=np.uint8) for width in widths])
    out = np.empty((len(codes), len(levels)), dtype=np.bool_)
    for at in range(0, len(codes), _BLOCK):
        block = slice(at, at + _BLOCK)
        compare(np.repeat(codes[block], widths, axis=1), levels, out=out[block])
    return out
