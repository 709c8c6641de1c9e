"""What the parties of a tree training tell each other beside histograms: chosen splits, sides of rows, turns."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.errors import BadFrame
from fl_core.protocols.vertical.histograms import Rows, pack_rows, packed_size, unpack_rows

SPLITS, SIDES, TURN = "chosen splits", "sides of rows", "tree"
_HEAD = np.dtype([("output", "<u4"), ("node", "<u4"), ("candidate", "<u4"), ("rows", "<u4"), ("gain", "<f8")])
_COUNT = 8
_TURN = struct.Struct(">?I")


@dataclass(frozen=True, eq=False)
class Chosen:
    """A split that a passive party makes.

    Attributes
    ----------
    output, node : which tree of the round, which inner node. candidate : in the owner's secret order.
    rows : positions in the common order of the rows that come to this node. gain : rounded when sent.
    """

    output: int
    node: int
    candidate: int
    rows: Rows
    gain: float


@dataclass(frozen=True)
class Limits:
    """What a passive party takes: outputs and candidates there are, rows of the common order, which of them count."""

    outputs: int
    candidates: int
    used: NDArray[np.bool_]


def send_splits(channel: Channel, to: str, chosen: Sequence[Chosen], rows: int) -> None:
    """Tell a passive party which of its splits were chosen on this level; `rows` of the common order."""
    head = np.array([(c.output, c.node, c.candidate, len(c.rows), float(f"{c.gain:.3g}")) for c in chosen], dtype=_HEAD)
    parts = [pack_rows(c.rows, rows) for c in chosen]
    channel.send(to, len(chosen).to_bytes(_COUNT, "little"), head, *parts, step=SPLITS)


def recv_splits(channel: Channel, active: str, level: int, limits: Limits) -> list[Chosen]:
    """What `send_splits` sends on a level.

    Raises
    ------
    BadFrame : another shape, a tree, node or candidate that there is not, rows that do not count.
    """
    n = len(limits.used)
    most, bits = limits.outputs * 2**level, packed_size(n)
    size = _HEAD.itemsize + bits
    data = np.frombuffer(channel.recv(active, step=SPLITS, max_bytes=_COUNT + most * size), dtype=np.uint8)
    count = int.from_bytes(data[:_COUNT].tobytes(), "little")
    if len(data) < _COUNT or len(data) != _COUNT + count * size:
        raise BadFrame(active, SPLITS, f"{len(data)} bytes for {count} splits")
    heads = np.frombuffer(data, _HEAD, count, _COUNT) if count else np.empty(0, _HEAD)
    made, first = [], 2**level - 1
    for number, head in enumerate(heads):
        output, node, candidate = int(head["output"]), int(head["node"]), int(head["candidate"])
        if output >= limits.outputs or not first <= node <= 2 * first or candidate >= limits.candidates:
            raise BadFrame(active, SPLITS, f"candidate {candidate} in node {node} of tree {output}")
        at = _COUNT + count * _HEAD.itemsize + number * bits
        rows = unpack_rows(data[at : at + bits], n, int(head["rows"]), active, SPLITS)
        if not limits.used[rows].all() or not np.isfinite(head["gain"]):
            raise BadFrame(active, SPLITS, f"rows or a gain that do not belong to node {node}")
        made.append(Chosen(output, node, candidate, rows, float(head["gain"])))
    if len({(c.output, c.node) for c in made}) < count:
        raise BadFrame(active, SPLITS, "a node twice")
    return made


def send_sides(channel: Channel, to: str, sides: Sequence[NDArray[np.bool_]]) -> None:
    """For each split, for each row of its node whether it goes right; nothing is sent where there is no split."""
    if sides:
        channel.send(to, *map(np.packbits, sides), step=SIDES)


def recv_sides(channel: Channel, source: str, sizes: Sequence[int]) -> list[NDArray[np.bool_]]:
    """What `send_sides` sends, for splits of so many rows; `BadFrame` where it is of another size."""
    if not sizes:
        return []
    bits = [packed_size(size) for size in sizes]
    data = np.frombuffer(channel.recv_exactly(source, step=SIDES, size=sum(bits)), dtype=np.uint8)
    made, at = [], 0
    for size, length in zip(sizes, bits, strict=True):
        flags = np.unpackbits(data[at : at + length]).astype(bool)
        if flags[size:].any():
            raise BadFrame(source, SIDES, f"sides of more than {size} rows")
        made.append(flags[:size])
        at += length
    return made


def send_turn(channel: Channel, to: str, *, more: bool, keep: int) -> None:
    """Before each round, and at the end: whether one more follows, how many rounds count up to now."""
    channel.send(to, _TURN.pack(more, keep), step=TURN)


def recv_turn(channel: Channel, active: str, done: int, trees: int) -> tuple[bool, int]:
    """What `send_turn` sends, after `done` of at most `trees` rounds."""
    data = channel.recv_exactly(active, step=TURN, size=_TURN.size)
    more, keep = _TURN.unpack(data)
    if data[0] > 1 or keep > done or (more and (done >= trees or keep != done)):
        raise BadFrame(active, TURN, f"{keep} rounds to keep after {done} of {trees}")
    return more, keep
