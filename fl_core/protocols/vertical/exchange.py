"""Small messages between the parties of a vertical training: elements of a ring, numbers, and what is opened to all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import U64, Elements, Floats, Stream
from fl_core.errors import BadFrame

_KEY = "zero shares"
FRACTION = 32  # of scores that travel as elements


def send_elements(channel: Channel, to: str, elements: Elements, *, step: str) -> None:
    """Send an array of elements."""
    channel.send(to, np.ascontiguousarray(elements), step=step)


def recv_elements(
    channel: Channel, source: str, *shape: int, step: str, dtype: np.dtype[Any] = U64
) -> Elements:
    """Receive an array of elements of a known shape."""
    data = channel.recv_exactly(source, step=step, size=int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def recv_floats(channel: Channel, source: str, *shape: int, step: str) -> Floats:
    """Receive float64 of a known shape, all finite."""
    data = channel.recv_exactly(source, step=step, size=int(np.prod(shape)) * 8)
    values = np.frombuffer(data, dtype="<f8").reshape(shape)
    if not np.isfinite(values).all():
        raise BadFrame(source, step, "a number that is not finite")
    return values


def open_to_all(channel: Channel, others: Sequence[str], mine: Elements, *, step: str) -> Elements:
    """The sum of all holders' parts; every holder sends its own to every other one."""
    for peer in others:
        send_elements(channel, peer, mine, step=step)
    total = mine.copy()
    for peer in others:
        total += recv_elements(channel, peer, *mine.shape, step=step)
    return total


class ZeroShares:
    """Elements that add up to zero over a group, fresh ones each time: they hide who added what to a sum.

    Who learns what: of a sum of values masked in this way, whoever adds up learns the sum.  All members but one must
    not collude with it.
    """

    def __init__(self, channel: Channel, group: Sequence[str]) -> None:
        me, self._streams = list(group).index(channel.me), {}
        for number, peer in enumerate(group):
            if number > me:
                key = ring.new_key()
                channel.send(peer, key, step=_KEY)
                self._streams[peer] = Stream(key), 1
        for peer in group[:me]:
            self._streams[peer] = Stream(bytes(channel.recv_exactly(peer, step=_KEY, size=ring.KEY_BYTES))), -1

    def draw(self, *shape: int) -> Elements:
        """This party's next share of zero."""
        total = np.zeros(shape, dtype=U64)
        for stream, sign in self._streams.values():
            total = total + stream.draw(*shape) if sign > 0 else total - stream.draw(*shape)
        return total

