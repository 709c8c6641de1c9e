"""The served part of a vertical model: rows by id, and what this party brings to a row's score.

A row is found by its id's hash in a sorted array, 40 bytes a row.  Of a linear model the partial sums of all rows are
made at the start; of trees the codes of all rows, and marks when they are asked for.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.crypto import ring
from fl_core.crypto.ring import Elements
from fl_core.errors import DataError, RefusedError, UsageError
from fl_core.job import MIN_TREES
from fl_core.learning.boosting import Codes
from fl_core.protocols.prediction.forest import ForestPart, Layout, marks
from fl_core.protocols.prediction.linear import LinearPart
from fl_core.protocols.prediction.online import MAX_IDS, RowsById, VerticalOffer, check_online
from fl_core.protocols.psi.ids import HASH_BYTES
from fl_core.protocols.vertical.exchange import FRACTION
from fl_core.trust.once import create_once

ANSWERS = 256  # of trees in one request, some seconds of work
_HASH = np.dtype(f"S{HASH_BYTES}")  # of one length, so that its dropping zeros at the end mixes up nothing
Rows = NDArray[np.int64]


class Index:
    """Where in a table ids are."""

    def __init__(self, hashes: NDArray[np.uint8]) -> None:
        flat = np.ascontiguousarray(hashes).view(_HASH).reshape(-1)
        self._order = np.argsort(flat, kind="stable")
        self._sorted = flat[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def find(self, hashes: NDArray[np.uint8]) -> Rows:
        """(n,) int64 the row of each of (n, 32) hashes, -1 where it is not here."""
        asked = np.ascontiguousarray(hashes).view(_HASH).reshape(-1)
        at = np.searchsorted(self._sorted, asked)
        at[at == len(self)] = 0
        return np.where(self._sorted[at] == asked, self._order[at], -1)


@dataclass(frozen=True, eq=False)
class Trees:
    """What answers for trees; codes : (n, d) of all rows."""

    part: ForestPart
    layout: Layout
    codes: Codes

    def marks(self, rows: Rows) -> list[list[NDArray[np.bool_]]]:
        """For each row what its features allow: a list of marks for each output that has any."""
        made = np.asarray(marks(self.part.trees, self.layout, self.codes[rows], np.dtype(bool)), dtype=bool)
        ends = np.cumsum(self.layout.widths)
        return [[part for part in np.split(row, ends[:-1]) if len(part)] for row in made]

    @property
    def questions(self) -> int:
        """Of each row."""
        return sum(width > 0 for width in self.layout.widths)


@dataclass(frozen=True, eq=False)
class ServedPart:
    """A part that is being served; of `sums` and `trees` one is there.

    sums : (n, outputs) uint64, a linear part's partial sums in units of 2^-32.
    """

    offer: VerticalOffer
    index: Index
    sums: Elements | None = None
    trees: Trees | None = None


def serve_part(name: str, held: RowsById, *, version_key: bytes, min_trees: int = MIN_TREES) -> ServedPart:
    """A part ready to answer.

    Parameters
    ----------
    version_key : the owner's own, so that versions tell nothing of parts.
    min_trees : a score must have; with fewer an exact score shows the paths of a row.

    Raises
    ------
    DataError : a part that cannot be asked, or no rows. RefusedError : fewer trees.
    TrainingDiverged : partial sums that have no room.
    """
    part, kind = held.part, held.part.training
    check_online(part, active=False)
    if not len(held.hashes):
        raise DataError(part.where, "no rows", allowed="one row or more")
    told: dict[str, Any] = {}
    block = MAX_IDS
    if isinstance(part, LinearPart):
        told["sums"] = ring.encode(part.partial(held.columns), FRACTION)
    else:
        assert isinstance(part, ForestPart)
        rounds = part.trees.trees // kind.outputs
        if rounds < max(min_trees, 1):
            problem = f"{part.where}: {rounds} trees a score, with so few an exact one shows the paths of a row"
            raise RefusedError(f"{problem}; allowed: {max(min_trees, 1)} or more")
        told["trees"] = Trees(part, part.layout(), part.codes(held.columns))
        block = max(1, ANSWERS // kind.outputs)
    offer = VerticalOffer(
        name=name,
        version=hmac.digest(version_key, b"vertical\0" + held.digest.encode(), "sha256").hex()[:16],
        run=kind.run,
        training=kind.digest().hex(),
        algorithm=kind.algorithm,
        block=block,
    )
    return ServedPart(offer, Index(held.hashes), **told)


def load_parts(
    folder: Path, sources: Sequence[tuple[str, Callable[[], RowsById]]], *, taken: Collection[str], min_trees: int
) -> dict[str, ServedPart]:
    """All parts, ready.

    Parameters
    ----------
    folder : of the server, where `version.key` lies. taken : names that other models have.

    Raises
    ------
    UsageError : two models of one name. DataError, RefusedError : as the sources and `serve_part`.
    """
    if not sources:
        return {}
    path, parts = folder / "version.key", dict[str, ServedPart]()
    create_once(path, secrets.token_bytes(32))
    for name, read in sources:
        if name in parts or name in taken:
            raise UsageError(f"--vertical {name}: two models of this name; allowed: NAME=MODELFOLDER=DATAFILE")
        parts[name] = serve_part(name, read(), version_key=path.read_bytes(), min_trees=min_trees)
    return parts


def lines(parts: Mapping[str, ServedPart]) -> list[str]:
    """What the owner is told of its parts, a line each."""
    told = []
    for part in parts.values():
        offer = part.offer
        told.append(f"vertical model {offer.name} of run {offer.run}, {offer.algorithm}: {len(part.index)} rows by id")
    if parts:
        told.append("note: every client may ask every vertical model, and learns which of its ids are here")
    return told
