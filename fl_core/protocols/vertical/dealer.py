"""Correlated randomness from a dealer: products of numbers that two parties hold, without showing them.

Roles: the dealer makes random masks and what belongs to them; it holds no data.  Parties mask their numbers with it.

Who learns what.  A party sees uniform elements only.  The dealer sees which operations are asked for: sizes, and for a
product over chosen rows which positions of the common order are chosen; no number, masked or not, passes it.  A dealer
that colludes with one party of a product learns the other's numbers: with the masks, X = E + A and v = f + b.

Honest but curious; perfect secrecy given uniform masks, which are AES-256 in counter mode under keys that the dealer
draws from its operating system for each session.

The operations (D. Beaver, CRYPTO 1991; with a matrix that is masked once: PROTOCOLS, vertical logistic regression)

- product of an owner's matrix X and another party's vector v.  Once: E = X - A goes to the other party.  Each time,
  with a fresh b: f = v - b goes to the owner, who has A·f + c1; the other has E·v + c2; c1 + c2 = A·b.  Xᵀ likewise.
- truncation of shared numbers x, |x| < 2^62: c = x + 2^62 + r is opened; ⌊x/2^k⌋ follows from c and shares of ⌊r/2^k⌋
  and of r's highest bit, off by at most one, without bias.  (Local truncation is off by 2^(64-k) now and then.)
- scaling of shared numbers by fixed shared ones (the weights of rows), and the scalar product of two masked vectors.
- product, element by element, of shared numbers x = Σ x_i and another party's own c: each holder sends x_i - a_i to it
  and gets c - b from it; Σ x_i (c - b) + b·Σ (x_i - a_i) + b·Σ a_i = x c.  Where only sums of products are needed, so
  many elements are dealt.

What can be drawn from a stream that the dealer shares with a party is not sent; the rest of what a *script* of
operations needs goes to each party in one message.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import U32, U64, Elements, Mask, Stream
from fl_core.errors import BadFrame
from fl_core.trust import canonical

STEP = "dealer"
ORDER = "order"
#: The active party's words to the coordinator between parts of a job: deal from here on; nothing more to come.
PHASE = "what comes next"
DEAL, OVER = b"deal", b"over"
MAX_SCRIPT = 64 << 20
MAX_DEAL = 1 << 30
MAX_ROWS, MAX_COLUMNS = 1 << 31, 1 << 20
MAX_PRODUCTS = 1 << 26  # of one operation
_HEAD = struct.Struct(">I")
_DTYPES: dict[int, np.dtype[Any]] = {32: U32, 64: U64}
HALF = np.uint64(1 << 62)
Rows = NDArray[np.int64] | slice
Op = dict[str, Any]
Work = Callable[[Op], None]


# ---- scripts


@dataclass
class Script:
    """Operations in the order in which every party takes part in them; row sets travel beside them as bits."""

    ops: list[Op] = field(default_factory=list)
    sets: list[bytes] = field(default_factory=list)

    def matrix(self, owner: str, rows: int, columns: int, bits: int) -> None:
        """The owner masks a new matrix; matrices are numbered from 0."""
        self.ops.append({"op": "matrix", "owner": owner, "rows": rows, "columns": columns, "bits": bits})

    def product(self, matrix: int, to: str, rows: Rows, count: int, *, transposed: bool) -> None:
        """X[rows]·v, or X[rows]ᵀ·v: `count` columns of v at party `to`."""
        op: Op = {"op": "product", "matrix": matrix, "to": to, "count": count, "t": int(transposed)}
        if isinstance(rows, slice):
            op |= {"start": rows.start, "stop": rows.stop}
        else:
            op["set"] = self.row_set(rows)
        self.ops.append(op)

    def histograms(self, matrix: int, to: str, sets: Sequence[int], count: int) -> None:
        """X[rows]ᵀ·v for several row sets, numbered as `row_set` gave them: products with `count` columns of v each."""
        self.ops.append({"op": "histograms", "matrix": matrix, "to": to, "sets": list(sets), "count": count})

    def row_set(self, rows: NDArray[np.int64]) -> int:
        """The number of a row set that operations can share."""
        self.sets.append(to_bits(rows))
        return len(self.sets) - 1

    def truncate(self, holders: Sequence[str], size: int, shift: int) -> None:
        """`size` numbers shared among `holders` are divided by 2^shift."""
        self.ops.append({"op": "truncate", "holders": list(holders), "size": size, "shift": shift})

    def weights(self, holders: Sequence[str], size: int) -> None:
        """Shared numbers that others are scaled by from now on."""
        self.ops.append({"op": "weights", "holders": list(holders), "size": size})

    def scale(self, start: int, stop: int, count: int) -> None:
        """Shared numbers of rows start … stop times the weights of these rows."""
        self.ops.append({"op": "scale", "start": start, "stop": stop, "count": count})

    def multiply(
        self, holders: Sequence[str], other: str, rows: int, widths: Sequence[int], *, summed: bool, bits: int
    ) -> None:
        """Numbers shared among `holders`, (rows, Σ widths), times those of party `other`, who holds a share too then.

        summed : over the columns of each of the `widths`.
        """
        self.ops.append({
            "op": "multiply", "holders": list(holders), "other": other, "rows": rows, "widths": list(widths),
            "summed": int(summed), "bits": bits,
        })  # fmt: skip

    def dot(self, left: str, right: str) -> None:
        """The scalar product of what two parties masked last (for transposed products)."""
        self.ops.append({"op": "dot", "left": left, "right": right})

    def encode(self) -> list[bytes]:
        """Parts of the message."""
        head = canonical.encode({"ops": self.ops, "sets": [len(s) for s in self.sets]})
        return [_HEAD.pack(len(head)), head, *self.sets]


def to_bits(rows: NDArray[np.int64]) -> bytes:
    """Ascending row numbers as a bit a row."""
    flags = np.zeros(int(rows[-1]) + 1 if len(rows) else 0, dtype=bool)
    flags[rows] = True
    return np.packbits(flags).tobytes()


def from_bits(data: bytes | bytearray | memoryview) -> NDArray[np.int64]:
    """The row numbers again."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(data, dtype=np.uint8)))


# ---- the dealer


class Dealer:
    """The dealer's side of one session.

    Parameters
    ----------
    active : orders scripts. parties : all who take part, the active one among them.
    more : other operations by name, for a coordinator that does more than deal; each is given the operation.
    """

    def __init__(
        self, channel: Channel, active: str, parties: Sequence[str], more: Mapping[str, Work] | None = None
    ) -> None:
        self._channel, self._active, self._more = channel, active, dict(more or {})
        self._own = Stream(ring.new_key())
        self._streams: dict[str, Stream] = {}
        self._matrices: list[tuple[str, Mask]] = []
        self._masks: dict[tuple[str, str], Elements] = {}
        self._weights: tuple[list[str], Elements] | None = None
        self._parts: dict[str, list[Elements]] = {}
        for party in parties:
            key = ring.new_key()
            self._streams[party] = Stream(key)
            channel.send(party, key, step=STEP)

    def serve(self) -> None:
        """Work off orders until the active party says that it needs no more."""
        ops: list[Op] = []
        sets: list[NDArray[np.int64]] = []
        for order in orders(self._channel, self._active):
            if order != AGAIN:
                ops, sets = _parse(order, self._active)
            self._parts = {party: [] for party in self._streams}
            for op in ops:
                try:
                    self._do(op, sets)
                except (KeyError, IndexError, TypeError, ValueError) as error:
                    problem = f"an operation that cannot be done ({type(error).__name__})"
                    raise BadFrame(self._active, ORDER, problem) from None
            for party, parts in self._parts.items():
                if any(part.size for part in parts):
                    self._channel.send(party, *map(np.ascontiguousarray, parts), step=STEP)

    def _do(self, op: Op, sets: list[NDArray[np.int64]]) -> None:
        match op["op"]:
            case "matrix":
                self._matrix(op)
            case "product":
                self._product(op, sets)
            case "histograms":
                self._histograms(op, sets)
            case "truncate":
                self._truncate(op)
            case "weights":
                self._begin_weights(op)
            case "scale":
                self._scale(op)
            case "multiply":
                self._multiply(op)
            case "dot":
                self._dot(op)
            case name if name in self._more:
                self._more[name](op)
            case _:
                raise ValueError(op["op"])

    def _matrix(self, op: Op) -> None:
        rows, columns = op["rows"], op["columns"]
        if not (0 <= rows <= MAX_ROWS and 0 <= columns <= MAX_COLUMNS):
            raise ValueError("size")
        self._matrices.append((op["owner"], Mask(self._streams[op["owner"]].key(), rows, columns, _DTYPES[op["bits"]])))

    def _product(self, op: Op, sets: list[NDArray[np.int64]]) -> None:
        owner, mask = self._matrices[op["matrix"]]
        rows: Rows = sets[op["set"]] if "set" in op else slice(op["start"], op["stop"])
        count, size = op["count"], check_rows(rows, mask.shape[0])
        shape = (size, mask.shape[1]) if op["t"] else (mask.shape[1], size)
        b = self._streams[op["to"]].draw(shape[0], count, dtype=mask.dtype)
        c = (ring.rows_product_t if op["t"] else ring.rows_product)(mask, rows, b)
        self._parts[op["to"]].append(c - self._streams[owner].draw(shape[1], count, dtype=mask.dtype))
        if op["t"]:
            self._masks[op["to"], owner] = b

    def _histograms(self, op: Op, sets: list[NDArray[np.int64]]) -> None:
        owner, mask = self._matrices[op["matrix"]]
        chosen, count = [sets[number] for number in op["sets"]], op["count"]
        shapes = [(check_rows(rows, mask.shape[0]), count) for rows in chosen]
        b = [self._streams[op["to"]].draw(*shape, dtype=mask.dtype) for shape in shapes]
        for c in ring.rows_products_t(mask, chosen, b):
            self._parts[op["to"]].append(c - self._streams[owner].draw(*c.shape, dtype=mask.dtype))

    def _truncate(self, op: Op) -> None:
        *others, last = op["holders"]
        r = self._own.draw(op["size"])
        for whole in (r, r >> np.uint64(op["shift"]), r >> np.uint64(63)):
            self._parts[last].append(whole - _sum(self._streams[p].draw(op["size"]) for p in others))

    def _begin_weights(self, op: Op) -> None:
        self._weights = op["holders"], _sum(self._streams[p].draw(op["size"]) for p in op["holders"])

    def _scale(self, op: Op) -> None:
        assert self._weights is not None
        holders, mask = self._weights
        rows = mask[op["start"] : op["stop"], None]
        shape = (len(rows), op["count"])
        made = rows * _sum(self._streams[p].draw(*shape) for p in holders)
        *others, last = holders
        self._parts[last].append(made - _sum(self._streams[p].draw(*shape) for p in others))

    def _multiply(self, op: Op) -> None:
        holders, other, widths, dtype = op["holders"], op["other"], op["widths"], _DTYPES[op["bits"]]
        rows, columns = op["rows"], sum(widths)
        if not (0 <= rows <= MAX_ROWS and min(widths) >= 0 and rows * columns <= MAX_PRODUCTS) or other in holders:
            raise ValueError("size")
        made = self._streams[other].draw(rows, columns, dtype=dtype)
        made = made * _sum(self._streams[p].draw(rows, columns, dtype=dtype) for p in holders)
        if op["summed"]:
            made = sums(made, widths)
        self._parts[other].append(made - _sum(self._streams[p].draw(*made.shape, dtype=dtype) for p in holders))

    def _dot(self, op: Op) -> None:
        left, right = op["left"], op["right"]
        whole = (self._masks[left, right] * self._masks[right, left]).sum(axis=0, dtype=np.uint64)
        self._parts[right].append(whole - self._streams[left].draw(len(whole)))


AGAIN = b"again"
_END = b""


def orders(channel: Channel, active: str) -> Iterator[bytes]:
    """Orders of the active party, until the empty one."""
    while True:
        order = bytes(channel.recv(active, step=ORDER, max_bytes=MAX_SCRIPT))
        if order == _END:
            return
        yield order


def _parse(order: bytes, active: str) -> tuple[list[Op], list[NDArray[np.int64]]]:
    (length,) = _HEAD.unpack_from(order.ljust(_HEAD.size, b"\0"))
    head = canonical.decode(order[_HEAD.size : _HEAD.size + length], max_bytes=MAX_SCRIPT)
    if not isinstance(head, dict) or set(head) != {"ops", "sets"}:
        raise BadFrame(active, ORDER, "an order of another shape")
    sets, at = [], _HEAD.size + length
    for size in head["sets"]:
        sets.append(from_bits(order[at : at + size]))
        at += size
    if at != len(order):
        raise BadFrame(active, ORDER, f"an order of {len(order)} bytes instead of {at}")
    return head["ops"], sets


def check_rows(rows: Rows, total: int) -> int:
    """How many rows are chosen; `ValueError` where they are not rows of a matrix of `total`."""
    if isinstance(rows, slice):
        if not 0 <= rows.start <= rows.stop <= total:
            raise ValueError("rows")
        return int(rows.stop - rows.start)
    if len(rows) and rows[-1] >= total:
        raise ValueError("rows")
    return len(rows)


def sums(elements: Elements, widths: Sequence[int]) -> Elements:
    """(n, Σ widths) → (n, len(widths)): the sums over the first `widths[0]` columns, over the next ones, and so on."""
    ends = np.cumsum([0, *widths]).tolist()
    made = [elements[:, a:b].sum(axis=1, dtype=elements.dtype) for a, b in pairwise(ends)]
    return np.stack(made, axis=1) if made else np.zeros((len(elements), 0), elements.dtype)


def _sum(shares: Iterator[Elements]) -> Elements:
    total = next(shares)
    for share in shares:
        total = total + share
    return total
