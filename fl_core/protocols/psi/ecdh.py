"""Intersection of two sets by Diffie-Hellman on hashed ids.

Meadows (1986), Huberman, Franklin and Hogg (1999); its cardinality as De Cristofaro, Gasti and Tsudik (CANS 2012) have
it.  Curve25519, hashed to soundly (`fl_core.crypto.curve25519`), a fresh key a party and session.

Who learns what
---------------
Receiver: the intersection (`receive`) or only its size (`count`), and the helper's set size.  Helper: the receiver's
set size, and the result only where the receiver tells it; else nothing that it gets depends on the intersection.  The
exchange: both sizes.  There is nobody to collude with.

Honest-but-curious parties, 128 bits (decisional Diffie-Hellman, the hash as random oracle), statistical 2^-40.  A
receiver that deviates learns of no more ids than it sent: it cannot test an id space, unlike with `cm20`.  Sets are
not authenticated: either party can bring ids that are not its own; of the size of an intersection with ten ids, nine
of them made up, one can read the membership of the tenth.  A helper that deviates can make the result wrong.

Order
-----
Parts of both lists take turns, so that both compute at once and neither waits with a full buffer.
1. Both send their items, hashed to the curve and masked by their key, in random order.
2. The helper masks the receiver's list as well and sends it back, cut to the bytes that tell values apart: in the
   receiver's order, or for the size alone in ascending order, in which the receiver recognises nothing.
3. The receiver masks the helper's list, cuts and compares.  Where the plan says so, it tells the helper the positions
   in the helper's list, or the size; the message is as long whatever the result.

Rows of the result stand in the order of the masked values, which is random and the same at both.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.curve25519 import POINT_BYTES, check_points, hash_to_curve, mask, new_key
from fl_core.errors import BadFrame, BadMessage
from fl_core.protocols.psi.outputs import match, sort
from fl_core.protocols.psi.parameters import output_bytes
from fl_core.protocols.psi.shuffle import random_order
from fl_core.protocols.stream import recv_bytes, send_bytes

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]
PART = 1 << 13  # items that are masked and sent at a time, 256 KiB

_MASKED, _TWICE, _RESULT = "psi masked", "psi masked twice", "psi result"
_NOBODY = np.uint32(0xFFFFFFFF)


def receive(channel: Channel, helper: str, items: Bytes, *, helper_size: int, tell: bool, threads: int = 1) -> Index:
    """The receiver's part, for the intersection.

    Parameters
    ----------
    items : (n ≥ 1, 32) uint8, distinct hashes of ids.
    helper_size : items of the helper, at least 1; both know both sizes.
    tell : the helper learns the intersection too; the same at both.
    threads : for scalar multiplications.

    Returns
    -------
    (rows,) int64, the items in the intersection, in the order that is common to both.

    Raises
    ------
    BadFrame : a message of the helper that the protocol does not allow.
    """
    run = _Run(channel, helper, items, helper_size, threads)
    mine = np.empty((len(items), run.size), dtype=np.uint8)
    for part in run.exchange():
        if part.start < len(items):
            count = len(mine[part])
            mine[part] = recv_bytes(channel, helper, count, run.size, step=_TWICE)
    own_values, own_order = sort(mine)
    their_values, their_order = sort(run.masked)
    own, others = match(own_values, their_values)
    if tell:
        send_positions(channel, helper, their_order[others], run.least, step=_RESULT)
    return run.order[own_order[own]]


def help_receive(
    channel: Channel, receiver: str, items: Bytes, *, receiver_size: int, told: bool, threads: int = 1
) -> Index | None:
    """The helper's part in `receive`: the same rows as the receiver's, or None where `told` is false."""
    run = _Run(channel, receiver, items, receiver_size, threads)
    for part in run.exchange():
        if part.start < receiver_size:
            send_bytes(channel, receiver, run.masked[part], step=_TWICE)
    if not told:
        return None
    return run.order[recv_positions(channel, receiver, len(items), run.least, step=_RESULT)]


def count(channel: Channel, helper: str, items: Bytes, *, helper_size: int, tell: bool, threads: int = 1) -> int:
    """The receiver's part, for the size of the intersection; parameters as for `receive`."""
    run = _Run(channel, helper, items, helper_size, threads)
    for _ in run.exchange():
        pass
    mine, _ = sort(recv_bytes(channel, helper, len(items), run.size, step=_TWICE))
    theirs, _ = sort(run.masked)
    size = len(match(mine, theirs)[0])
    if tell:
        channel.send(helper, struct.pack(">Q", size), step=_RESULT)
    return size


def help_count(
    channel: Channel, receiver: str, items: Bytes, *, receiver_size: int, told: bool, threads: int = 1
) -> int | None:
    """The helper's part in `count`: the size, or None where `told` is false."""
    run = _Run(channel, receiver, items, receiver_size, threads)
    for _ in run.exchange():
        pass
    _, order = sort(run.masked)
    send_bytes(channel, receiver, run.masked[order], step=_TWICE)
    return recv_count(channel, receiver, run.least, step=_RESULT) if told else None


class _Run:
    """One party's list on its way out, the peer's on its way in.

    order : the item at each place of the list as sent. masked : (peer's size, size) uint8, the peer's list under both
    masks, cut. least : what an intersection has at most.
    """

    def __init__(self, channel: Channel, peer: str, items: Bytes, peer_size: int, threads: int) -> None:
        self._channel, self._peer, self._items, self._threads = channel, peer, items, threads
        self._key, self.order = new_key(), random_order(len(items))
        self.size = output_bytes(len(items) * peer_size)
        self.least = min(len(items), peer_size)
        self.masked = np.empty((peer_size, self.size), dtype=np.uint8)

    def exchange(self) -> Iterator[slice]:
        """Part by part: send own items, mask the peer's; yields where in both lists this was."""
        for part in parts(max(len(self.order), len(self.masked))):
            own = self._items[self.order[part]]
            if len(own):
                points = hash_to_curve(own, tag=point_tag(self._channel), threads=self._threads)
                send_bytes(self._channel, self._peer, mask(points, self._key, threads=self._threads), step=_MASKED)
            if room := len(self.masked[part]):
                points = recv_bytes(self._channel, self._peer, room, POINT_BYTES, step=_MASKED)
                masked = mask_received(points, self._key, self._peer, step=_MASKED, threads=self._threads)
                self.masked[part] = masked[:, : self.size]
            yield part


def parts(n: int) -> Iterator[slice]:
    """The parts in which lists of up to `n` items travel."""
    for start in range(0, n, PART):
        yield slice(start, start + PART)


def point_tag(channel: Channel) -> bytes:
    """Separates the points of sessions."""
    return b"fedseal/psi-point/v1\0" + channel.session


def mask_received(points: Bytes, key: bytes, source: str, *, step: str, threads: int) -> Bytes:
    """`mask` for points that another party sent; `BadFrame` names it."""
    try:
        check_points(points)
        return mask(points, key, threads=threads)
    except BadMessage as error:
        raise BadFrame(source, step, str(error)) from None


def send_positions(channel: Channel, to: str, positions: Index, most: int, *, step: str) -> None:
    """Positions in the receiver's list, in a message as long as `most` of them would need."""
    message = np.full(most, _NOBODY, dtype="<u4")
    message[: len(positions)] = positions
    send_bytes(channel, to, message.view(np.uint8), step=step)


def recv_positions(channel: Channel, source: str, n: int, most: int, *, step: str) -> Index:
    """What `send_positions` sends, each in a list of `n` and there once; else `BadFrame`."""
    message = recv_bytes(channel, source, 4 * most, step=step).view("<u4")
    found = message != _NOBODY
    positions = message[found].astype(np.int64)
    if found[len(positions) :].any() or (positions >= n).any() or len(np.unique(positions)) != len(positions):
        raise BadFrame(source, step, f"positions that are no rows of a list of {n}")
    return positions


def recv_count(channel: Channel, source: str, most: int, *, step: str) -> int:
    """A number up to `most`; else `BadFrame`."""
    (size,) = struct.unpack(">Q", channel.recv_exactly(source, step=step, size=8))
    if size > most:
        raise BadFrame(source, step, f"a count of {size}, at most {most} is possible")
    return int(size)
