"""CM20: the intersection of two sets from a multi-point oblivious pseudo-random function.

Chase and Miao, "Private Set Intersection in the Internet Setting From Lightweight Oblivious PRF", CRYPTO 2020, ePrint
2020/729; random oblivious transfers and a PRG stand in for the transfers of whole columns, as the paper proposes.

Who learns what
---------------
Receiver: the intersection, the sender's set size.  Sender: the receiver's set size, and the intersection only where
the receiver tells it, as the plan says; else nothing that it gets depends on the intersection.  The exchange: both
sizes.  There is nobody to collude with.

Honest-but-curious parties, 128 bits, statistical 2^-40 (`parameters`).  A receiver that deviates can send columns D
of zeros, then knows the function everywhere and can test a whole id space against the sender's set: an owner whose
ids can be enumerated should demand `ecdh`, which bounds the receiver to the items it sent.  A sender that deviates
can make the result wrong; the paper's proof against one needs outputs of 120 bits and more, which these are not.

Order
-----
1. The sender draws s ∈ {0,1}^w and chooses by it in w random oblivious transfers: the receiver has seeds k0, k1 of
   each column, the sender one of them.
2. Only now, with s fixed, the receiver draws the key of the PRF that maps an item to a position in each column, and
   sends it.  (A key known before could be searched for one that makes chosen items meet.)
3. Column by column: D is all ones, but zero where the receiver's items point; A = PRG(k0).  The receiver sends
   A ⊕ D ⊕ PRG(k1).  The sender has C = A where s is 0, A ⊕ D where it is 1.
4. An item's value is the hash of the bits at its positions, in A for the receiver, in C for the sender: the same
   where D is zero at all of them, which holds for the receiver's items.
5. The sender sends its values in ascending order, an order that says nothing about its items.  The receiver finds its
   own among them and, where the plan says so, marks which they were: one bit for each value of the sender.

Rows of the result stand in the order of the values, which is random and the same at both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.oblivious_transfer import choose_keys, send_keys
from fl_core.errors import BadFrame
from fl_core.protocols.psi.matrix import PRF_KEY_BYTES, ItemRows, expand
from fl_core.protocols.psi.outputs import match, sort, split
from fl_core.protocols.psi.parameters import Matrix, output_bytes
from fl_core.protocols.stream import in_order, recv_bytes, send_bytes

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]

_LABEL = b"fedseal/cm20/seeds/v1"
_KEY, _COLUMNS, _VALUES, _MATCHES = "psi key", "psi columns", "psi values", "psi matches"
_MESSAGE = 1 << 21  # columns of small sets travel together up to this size
_HASHED_A_SECOND = 200_000  # rows, by a slow party: how long to wait for what comes after


def receive(channel: Channel, sender: str, items: Bytes, *, sender_size: int, tell: bool, threads: int = 1) -> Index:
    """The receiver's part.

    Parameters
    ----------
    items : (n ≥ 1, 32) uint8, distinct hashes of ids.
    sender_size : items of the sender, at least 1; both know both sizes.
    tell : the sender learns the intersection too; the same at both.
    threads : for the work on columns.

    Returns
    -------
    (rows,) int64, the items in the intersection, in the order that is common to both.

    Raises
    ------
    BadFrame : a message of the sender that the protocol does not allow.
    """
    mine, order = sort(_receiver_values(channel, sender, items, sender_size, threads))
    size = output_bytes(sender_size * len(items))
    patience = channel.timeout + sender_size / _HASHED_A_SECOND
    theirs = split(recv_bytes(channel, sender, sender_size, size, step=_VALUES, timeout=patience))
    if not theirs.ascending():
        raise BadFrame(sender, _VALUES, "values that are not in ascending order")
    own, others = match(mine, theirs)
    if tell:
        marks = np.zeros(sender_size, dtype=np.uint8)
        marks[others] = 1
        send_bytes(channel, sender, np.packbits(marks), step=_MATCHES)
    return order[own]


def send(
    channel: Channel, receiver: str, items: Bytes, *, receiver_size: int, told: bool, threads: int = 1
) -> Index | None:
    """The sender's part; parameters as for `receive`.

    Returns
    -------
    (rows,) int64, the items in the intersection, in the order that is common to both; None where `told` is false.
    """
    values = _sender_values(channel, receiver, items, receiver_size, threads)
    _, order = sort(values)
    send_bytes(channel, receiver, values[order], step=_VALUES)
    if not told:
        return None
    patience = channel.timeout + receiver_size / _HASHED_A_SECOND
    marks = np.unpackbits(recv_bytes(channel, receiver, -(-len(items) // 8), step=_MATCHES, timeout=patience))
    if marks[len(items) :].any():
        raise BadFrame(receiver, _MATCHES, f"a mark behind the {len(items)} values")
    return order[np.flatnonzero(marks)]


def _receiver_values(channel: Channel, sender: str, items: Bytes, sender_size: int, threads: int) -> Bytes:
    """Steps 1 to 4 at the receiver: (n, output_bytes) uint8, a value for each item."""
    matrix = Matrix.of(n_sender=sender_size, n_receiver=len(items))
    seeds = send_keys(channel, sender, matrix.width, label=_LABEL)
    key = os.urandom(PRF_KEY_BYTES)
    channel.send(sender, key, step=_KEY)
    rows = ItemRows(items, key, matrix)

    def offer(span: range) -> list[Bytes]:
        return [_offer_group(rows, group, seeds[8 * group : 8 * group + 8]) for group in span]

    for columns in in_order(offer, _spans(matrix), threads):
        send_bytes(channel, sender, np.concatenate(columns), step=_COLUMNS)
    return rows.outputs(channel.session)


def _sender_values(channel: Channel, receiver: str, items: Bytes, receiver_size: int, threads: int) -> Bytes:
    """Steps 1 to 4 at the sender: (n, output_bytes) uint8, a value for each item."""
    matrix = Matrix.of(n_sender=len(items), n_receiver=receiver_size)
    secret = np.unpackbits(np.frombuffer(os.urandom(matrix.groups), dtype=np.uint8))[: matrix.width]
    seeds = choose_keys(channel, receiver, secret == 1, label=_LABEL)
    key = bytes(channel.recv_exactly(receiver, step=_KEY, size=PRF_KEY_BYTES))
    rows = ItemRows(items, key, matrix)

    def arrive() -> Iterator[tuple[range, Bytes]]:
        for span in _spans(matrix):
            count = min(8 * span.stop, matrix.width) - 8 * span.start
            yield span, recv_bytes(channel, receiver, count, matrix.column_bytes, step=_COLUMNS)

    def take(received: tuple[range, Bytes]) -> None:
        span, columns = received
        for place, group in enumerate(span):
            part = slice(8 * group, 8 * group + 8)
            _take_group(rows, group, columns[8 * place : 8 * place + 8], seeds[part], secret[part])

    for _ in in_order(take, arrive(), threads):
        pass
    return rows.outputs(channel.session)


def _spans(matrix: Matrix) -> Iterator[range]:
    """Groups of columns that are sent together."""
    together = max(1, _MESSAGE // (8 * matrix.column_bytes))
    for start in range(0, matrix.groups, together):
        yield range(start, min(start + together, matrix.groups))


def _offer_group(rows: ItemRows, group: int, seeds: list[tuple[bytes, bytes]]) -> Bytes:
    """A ⊕ D ⊕ PRG(k1), a row for each of the group's columns."""
    size = rows.matrix.column_bytes
    a = np.stack([expand(seed, size) for seed, _ in seeds])
    offered = rows.gather_and_mark(group, a)
    offered ^= a
    for column, (_, seed) in zip(offered, seeds, strict=True):
        column ^= expand(seed, size)
    return offered


def _take_group(rows: ItemRows, group: int, offered: Bytes, seeds: list[bytes], secret: Bytes) -> None:
    """C = PRG(k_s) ⊕ s · (what was offered)."""
    c = np.stack([expand(seed, rows.matrix.column_bytes) for seed in seeds])
    np.bitwise_xor(c, offered, out=c, where=secret[:, None] == 1)
    rows.gather(group, c)
