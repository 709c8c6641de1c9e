"""Histograms of a passive party's features, opened to the active party: sums over rows with code ≤ cut.

The passive party masks one 0/1 column for each candidate split, once a session; the dealer helps to multiply.  A script
of `dealer` opens all nodes of a level at once.

Who learns what
---------------
Active party: how many candidates a passive party has, and for each node that is opened the sums of g and h of the
node's rows on the left of each candidate.  Candidates stand in one secret random order, the same for a whole training.
Where few rows of a node lie between two cuts their g and h may show which rows these are: that they are alike in one
unnamed column is then known.  A single row in a node of a few is found in this way, so nodes of fewer than
`min_rows_open` rows are refused by both.
Passive party: the row set of each node that is opened.  Dealer: the same row sets; it must not collude with a party.

Honest but curious; what travels between the parties is uniform but for row sets (see `dealer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import U32, U64, Elements, Floats
from fl_core.errors import BadFrame, TrainingDiverged
from fl_core.learning.boosting import Codes, candidate_cuts
from fl_core.protocols.psi.shuffle import random_order
from fl_core.protocols.vertical.dealer import Script
from fl_core.protocols.vertical.dealt import Dealt, PeerMatrix

Rows = NDArray[np.int64]
Columns = Callable[[int, int], Elements]
OPEN, SHARE = "open nodes", "histogram shares"
MIN_BITS, MAX_BITS = 10, 30
_WORD = 8


# ---- fixed point


@dataclass(frozen=True)
class FixedPoint:
    """How g and h become elements: over their bounds, with fractional bits such that a sum over all rows fits.

    Attributes
    ----------
    dtype : 32 bits wide, or 64 where the fraction would have less than 10 bits.
    """

    bounds: tuple[float, ...]
    fraction: int
    dtype: np.dtype[Any]

    @staticmethod
    def of(rows: int, bounds: tuple[float, ...] = (1.0,)) -> FixedPoint:
        """For sums over up to `rows` rows of values up to `bounds`."""
        for dtype in (U32, U64):
            limit = 2 ** (8 * dtype.itemsize - 1) - 1
            fraction = min(MAX_BITS, (limit // max(rows, 1)).bit_length() - 1)
            if fraction >= MIN_BITS:
                break
        ring.check_headroom("a histogram", rows * 2.0**fraction, 8 * dtype.itemsize - 1)
        return FixedPoint(bounds, fraction, dtype)

    def encode(self, values: Floats, rng: np.random.Generator) -> Elements:
        """Elements of values (m, columns), rounded up or down at random without bias.

        Raises
        ------
        TrainingDiverged : a value over its bound, or not finite.
        """
        made = np.empty(values.shape, dtype=self.dtype)
        signed = np.dtype(f"i{self.dtype.itemsize}")
        for i, bound in enumerate(self.bounds):
            scaled = values[:, i] * (2.0**self.fraction / bound)
            largest = float(np.abs(scaled).max(initial=0.0))
            if not largest <= 2.0**self.fraction * (1 + 1e-12):
                problem = f"a gradient of {largest * bound * 2.0**-self.fraction:.4g}"
                raise TrainingDiverged(f"{problem}; allowed: up to {bound:.4g}")
            np.clip(np.floor(scaled + rng.random(len(scaled))), -(2.0**self.fraction), 2.0**self.fraction, out=scaled)
            made[:, i] = scaled.astype(signed).view(self.dtype)
        return made

    def decode(self, sums: Elements) -> Floats:
        """Sums (…, columns) as numbers."""
        return ring.decode(sums, self.fraction) * np.array(self.bounds)


# ---- candidates


class Candidates:
    """A party's candidate splits in a secret order.

    Parameters
    ----------
    sizes : (d,) codes of each feature. order : (K,) a kept order; a fresh one of the operating system without it.
    """

    def __init__(self, sizes: NDArray[np.int64], order: Rows | None = None) -> None:
        features, cuts = candidate_cuts(sizes)
        self.order = random_order(len(features)) if order is None else order
        self.features, self.cuts = features[self.order], cuts[self.order].astype(np.uint8)

    def __len__(self) -> int:
        return len(self.order)

    def columns(self, codes: Codes, rows: Rows, dtype: np.dtype[Any]) -> Columns:
        """Rows of the 0/1 matrix code ≤ cut, made where they are asked for.

        Parameters
        ----------
        rows : (n,) which rows of `codes` the matrix has, in order.
        """

        def made(start: int, stop: int) -> Elements:
            chosen = codes[rows[start:stop]]
            return np.asarray(np.take(chosen, self.features, axis=1) <= self.cuts).astype(dtype)

        return made


# ---- row sets


def pack_rows(rows: Rows, n: int) -> NDArray[np.uint8]:
    """Ascending row numbers under `n` as a bit a row."""
    flags = np.zeros(n, dtype=bool)
    flags[rows] = True
    return np.packbits(flags)


def unpack_rows(data: NDArray[np.uint8], n: int, count: int, source: str, step: str) -> Rows:
    """What `pack_rows` packs; `BadFrame` where these are not `count` rows under `n`."""
    rows = np.flatnonzero(np.unpackbits(data))
    if len(rows) != count or (count and rows[-1] >= n):
        raise BadFrame(source, step, f"a set of {len(rows)} rows instead of {count} of {n}")
    return rows


def packed_size(n: int) -> int:
    """Bytes of a bit for each of `n` rows."""
    return (n + 7) // 8


# ---- the active party


class Opener:
    """Opens nodes at the active party.

    Parameters
    ----------
    matrices : the masked columns of each passive party, numbered at the dealer in this order.
    rows : of the matrices. columns : numbers a row, g and h for instance.
    """

    def __init__(self, dealt: Dealt, matrices: dict[str, PeerMatrix], rows: int, columns: int) -> None:
        self._dealt, self._matrices, self._rows, self._columns = dealt, matrices, rows, columns

    @staticmethod
    def begin(dealt: Dealt, widths: dict[str, int], rows: int, columns: int, dtype: np.dtype[Any]) -> Opener:
        """Take the masked columns of all passive parties; `widths`: how many each has."""
        script = Script()
        for owner, width in widths.items():
            script.matrix(owner, rows, width, 8 * dtype.itemsize)
        dealt.order(script)
        matrices = {owner: dealt.peer_matrix(owner, (rows, width), dtype) for owner, width in widths.items()}
        return Opener(dealt, matrices, rows, columns)

    def open(
        self, sets: Sequence[Rows], vectors: Sequence[Elements], meanwhile: Callable[[], None] = lambda: None
    ) -> list[list[Elements]]:
        """Sums over each row set; no message but an empty one where there is none.

        Parameters
        ----------
        sets : ascending positions in the matrices. vectors : (rows of the set, columns) each.
        meanwhile : what to do while the others work.

        Returns
        -------
        For each party, for each set, (candidates, columns) elements.
        """
        if sets:
            self._order(sets)
        for owner, matrix in self._matrices.items():
            send_nodes(self._dealt.channel, owner, sets, [matrix.mask(vector) for vector in vectors], self._rows)
        meanwhile()
        work = [(vector, self._span(rows)) for rows, vector in zip(sets, vectors, strict=True)]
        shares = [[matrix.share(*item, transposed=True) for item in work] for matrix in self._matrices.values()]
        for owner, own in zip(self._matrices, shares, strict=True):
            size = sum(share.nbytes for share in own)
            data = self._dealt.channel.recv_exactly(owner, step=SHARE, size=size) if size else b""
            at = 0
            for share in own:
                share += np.frombuffer(data, share.dtype, share.size, at).reshape(share.shape)
                at += share.nbytes
        return shares

    def _span(self, rows: Rows) -> Rows | slice:
        return rows if len(rows) < self._rows else slice(0, self._rows)

    def _order(self, sets: Sequence[Rows]) -> None:
        script = Script()
        numbers = [script.row_set(rows) for rows in sets]
        for number in range(len(self._matrices)):
            script.histograms(number, self._dealt.channel.me, numbers, self._columns)
        self._dealt.order(script)


# ---- a passive party


class Answerer:
    """Answers `Opener.open` at a passive party.

    Parameters
    ----------
    elements : rows of its 0/1 matrix. shape : of it. columns : numbers a row.
    most : sets a message has at most. least : rows a set has at least.
    """

    def __init__(
        self, dealt: Dealt, active: str, elements: Columns, shape: tuple[int, int], dtype: np.dtype[Any], *,
        columns: int, most: int, least: int,
    ) -> None:  # fmt: skip
        self._dealt, self._active, self._dtype = dealt, active, dtype
        self._rows, self._columns, self._most, self._least = shape[0], columns, most, least
        self._matrix = dealt.own_matrix([active], elements, shape, dtype)

    def answer(self) -> int:
        """Answer one message; how many nodes it opened.

        Raises
        ------
        BadFrame : another shape, rows that do not exist, or a set of too few.
        """
        sets, masked = recv_nodes(
            self._dealt.channel,
            self._active,
            self._rows,
            self._columns,
            self._dtype,
            most=self._most,
            least=self._least,
        )
        if sets:
            shares = self._matrix.shares(masked, sets)
            self._dealt.channel.send(self._active, *map(np.ascontiguousarray, shares), step=SHARE)
        return len(sets)


# ---- nodes to be opened


def send_nodes(channel: Channel, to: str, sets: Sequence[Rows], masked: Sequence[Elements], rows: int) -> None:
    """Send row sets of nodes and the masked numbers of their rows; `rows` there are in all."""
    head = np.array([len(sets), *map(len, sets)], dtype="<i8")
    parts = [pack_rows(chosen, rows) for chosen in sets if len(chosen) < rows]
    channel.send(to, head, *map(np.ascontiguousarray, masked), *parts, step=OPEN)


def recv_nodes(
    channel: Channel, source: str, rows: int, columns: int, dtype: np.dtype[Any], *, most: int, least: int
) -> tuple[list[Rows], list[Elements]]:
    """What `send_nodes` sends: row sets and (rows of the set, columns) elements.

    Parameters
    ----------
    most : nodes at most. least : rows of each at least.

    Raises
    ------
    BadFrame : another shape, rows that do not exist, or a set of too few.
    """
    row, bits = columns * dtype.itemsize, packed_size(rows)
    limit = _WORD * (1 + most) + most * (rows * row + bits)
    data = np.frombuffer(channel.recv(source, step=OPEN, max_bytes=limit), dtype=np.uint8)
    count = int(data[:_WORD].view("<i8")[0]) if len(data) >= _WORD else -1
    if not 0 <= count <= most or len(data) < _WORD * (1 + count):
        raise BadFrame(source, OPEN, f"{count} nodes; allowed: up to {most}")
    sizes = data[_WORD : _WORD * (1 + count)].view("<i8").tolist()
    if any(not least <= size <= rows for size in sizes):
        problem = f"a node of {min(sizes)} to {max(sizes)} rows; allowed: {least} to {rows}"
        raise BadFrame(source, OPEN, problem)
    due = _WORD * (1 + count) + sum(size * row + bits * (size < rows) for size in sizes)
    if len(data) != due:
        raise BadFrame(source, OPEN, f"{len(data)} bytes instead of {due}")
    masked, sets, at = [], [], _WORD * (1 + count)
    for size in sizes:
        part = np.frombuffer(data, dtype, size * columns, at)
        masked.append(part.reshape(size, columns))
        at += part.nbytes
    for size in sizes:
        part_bits = bits if size < rows else 0
        part_rows = data[at : at + part_bits]
        sets.append(unpack_rows(part_rows, rows, size, source, OPEN) if part_bits else np.arange(size))
        at += part_bits
    return sets, masked


def recv_width(channel: Channel, source: str, *, step: str, most: int, least: int = 1) -> int:
    """How many of something a peer has; `BadFrame` for fewer than `least` or more than `most`."""
    width = int.from_bytes(channel.recv_exactly(source, step=step, size=_WORD), "little")
    if not least <= width <= most:
        raise BadFrame(source, step, f"{width}; allowed: {least} to {most}")
    return width


def send_width(channel: Channel, to: str, width: int, *, step: str) -> None:
    """What `recv_width` takes."""
    channel.send(to, width.to_bytes(_WORD, "little"), step=step)
