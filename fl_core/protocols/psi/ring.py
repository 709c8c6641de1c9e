"""Sets of two and more parties, compared by one who holds no key and no ids.

Each list goes round a ring, masked by every party on the way (Diffie-Hellman as in `ecdh`), and the last one sends it
to the comparer, who sees equal values where ids are equal and nothing else.  The comparer is a party program of its
own; in a job the coordinator takes the place.

Who learns what
---------------
Every party: all set sizes.  Receivers: the rows of their own list that are in the intersection of all (`receivers`),
or its size (`cardinality`); each party, where its rows stand in the union, and how many rows that has (`union`), by
which it knows what the union adds to its own and, with two parties, the size of the intersection; never whose the other
rows are.  Nobody learns which of its ids another party has as well, unless all have it.  Comparer: all sizes, and how
many ids lie in each intersection and difference of the sets (the Venn diagram's numbers).  The exchange: sizes.

Who must not collude
--------------------
The comparer with a party: together they see which of that party's ids each other party has.  Parties among each other
(three and more): two can strip their own masks from what passes them and learn which of the ids of one are in a third
party's set, even where not all have them.

A party sees each list under a different set of masks, and of its own list nothing after the first: with its own key
alone it can bring no two of them together.  The lists that it sends to the comparer are its neighbour's only.

Honest-but-curious, 128 bits, statistical 2^-40 over all pairs of values.  A party that deviates can bring ids that are
not its own and make the result wrong; a comparer that deviates, only the latter.

Order
-----
Part by part of all lists: a party masks and passes on its own, then what its predecessor gave it of each other list.
The comparer tells each receiver positions in that receiver's own list as it was sent, which that one had shuffled; the
messages are as long whatever the result.  The order of rows is random, drawn by the comparer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.curve25519 import POINT_BYTES, hash_to_curve, mask, new_key
from fl_core.errors import BadFrame
from fl_core.protocols.psi.ecdh import (
    mask_received,
    parts,
    point_tag,
    recv_count,
    recv_positions,
    send_positions,
)
from fl_core.protocols.psi.outputs import split
from fl_core.protocols.psi.parameters import output_bytes
from fl_core.protocols.psi.shuffle import random_order
from fl_core.protocols.stream import recv_bytes, send_bytes

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]

_RING, _COMPARE, _RESULT = "psi ring", "psi compare", "psi result"


@dataclass(frozen=True)
class Ring:
    """Who is there.

    sizes : of each party's list, in the ring's order; two parties or more. comparer : none of them.
    """

    sizes: Mapping[str, int]
    comparer: str

    @property
    def parties(self) -> Sequence[str]:
        """In the ring's order."""
        return tuple(self.sizes)

    @property
    def value_bytes(self) -> int:
        """Of a fully masked value, cut so that no two of all that are compared fall together."""
        total = sum(self.sizes.values())
        return output_bytes(total * (total - 1) // 2)

    def before(self, party: str, steps: int) -> str:
        """The party so many places before another."""
        return self.parties[(self.parties.index(party) - steps) % len(self.parties)]


def intersect(channel: Channel, ring: Ring, items: Bytes, *, told: bool, threads: int = 1) -> Index | None:
    """A party's part, for the intersection of all.

    Parameters
    ----------
    items : (n, 32) uint8, distinct hashes of ids.
    told : this party is a receiver; the same at the comparer.
    threads : for scalar multiplications.

    Returns
    -------
    (rows,) int64, the items in the intersection, in the order that is common to all; None where `told` is false.

    Raises
    ------
    BadFrame : a message that the protocol does not allow.
    """
    order = _go_round(channel, ring, items, threads)
    if not told:
        return None
    least = min(ring.sizes.values())
    return order[recv_positions(channel, ring.comparer, len(items), least, step=_RESULT)]


def unite(channel: Channel, ring: Ring, items: Bytes, *, threads: int = 1) -> Index:
    """A party's part, for the union; parameters as for `intersect`.

    Returns
    -------
    (rows of the union,) int64, in the order that is common to all: which item stands there, or -1 for none.
    """
    order = _go_round(channel, ring, items, threads)
    total = recv_count(channel, ring.comparer, sum(ring.sizes.values()), step=_RESULT)
    places = recv_bytes(channel, ring.comparer, 4 * len(items), step=_RESULT).view("<u4").astype(np.int64)
    if (places >= total).any() or len(np.unique(places)) != len(items):
        raise BadFrame(ring.comparer, _RESULT, f"places that are no rows of a union of {total}")
    rows = np.full(total, -1, dtype=np.int64)
    rows[places] = order
    return rows


def count(channel: Channel, ring: Ring, items: Bytes, *, told: bool, threads: int = 1) -> int | None:
    """A party's part, for the size of the intersection of all; parameters as for `intersect`."""
    _go_round(channel, ring, items, threads)
    return recv_count(channel, ring.comparer, min(ring.sizes.values()), step=_RESULT) if told else None


def compare_intersection(channel: Channel, ring: Ring, receivers: Sequence[str]) -> None:
    """The comparer's part in `intersect`."""
    lists = _Lists(channel, ring)
    common = lists.common()
    common = common[random_order(len(common))]
    least = min(ring.sizes.values())
    for party in receivers:
        send_positions(channel, party, lists.positions(party)[common], least, step=_RESULT)


def compare_union(channel: Channel, ring: Ring) -> None:
    """The comparer's part in `unite`."""
    lists = _Lists(channel, ring)
    places = random_order(lists.distinct)
    for party, values in lists.numbers.items():
        channel.send(party, struct.pack(">Q", lists.distinct), step=_RESULT)
        send_bytes(channel, party, places[values].astype("<u4").view(np.uint8), step=_RESULT)


def compare_count(channel: Channel, ring: Ring, receivers: Sequence[str]) -> None:
    """The comparer's part in `count`."""
    size = len(_Lists(channel, ring).common())
    for party in receivers:
        channel.send(party, struct.pack(">Q", size), step=_RESULT)


def _go_round(channel: Channel, ring: Ring, items: Bytes, threads: int) -> Index:
    """Mask the own list and what passes by; returns the item at each place of the own list as sent."""
    key, order = new_key(), random_order(len(items))
    last = len(ring.sizes) - 1
    source, target = ring.before(channel.me, 1), ring.before(channel.me, -1)
    for part in parts(max(ring.sizes.values())):
        for passed in range(last + 1):
            owner = ring.before(channel.me, passed)
            here = len(range(ring.sizes[owner])[part])
            if not here:
                continue
            if passed:
                points = recv_bytes(channel, source, here, POINT_BYTES, step=_RING)
                masked = mask_received(points, key, source, step=_RING, threads=threads)
            else:
                points = hash_to_curve(items[order[part]], tag=point_tag(channel), threads=threads)
                masked = mask(points, key, threads=threads)
            if passed < last:
                send_bytes(channel, target, masked, step=_RING)
            else:
                cut = np.ascontiguousarray(masked[:, : ring.value_bytes])
                send_bytes(channel, ring.comparer, cut, step=_COMPARE)
    return order


class _Lists:
    """All lists at the comparer.

    distinct : how many values there are. numbers : for each party the number of each value of its list; equal values
    have equal numbers.
    """

    def __init__(self, channel: Channel, ring: Ring) -> None:
        values = {party: np.empty((n, ring.value_bytes), dtype=np.uint8) for party, n in ring.sizes.items()}
        for part in parts(max(ring.sizes.values())):
            for party, own in values.items():
                if here := len(own[part]):
                    source = ring.before(party, 1)
                    own[part] = recv_bytes(channel, source, here, ring.value_bytes, step=_COMPARE)
        keys = split(np.concatenate(list(values.values())))
        order = np.lexsort((keys.low, keys.high))
        high, low = keys.high[order], keys.low[order]
        new = np.append(True, (high[1:] != high[:-1]) | (low[1:] != low[:-1]))[: len(order)]
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.cumsum(new) - 1
        self.distinct = int(new.sum())
        ends = np.cumsum([*ring.sizes.values()])[:-1]
        self.numbers = dict(zip(ring.parties, np.split(numbers, ends), strict=True))
        for party, own_numbers in self.numbers.items():
            if len(np.unique(own_numbers)) != len(own_numbers):
                raise BadFrame(ring.before(party, 1), _COMPARE, f"a value twice in the list of party {party}")

    def common(self) -> Index:
        """The numbers that every party has."""
        holders = np.zeros(self.distinct, dtype=np.int64)
        for numbers in self.numbers.values():
            holders[numbers] += 1
        return np.flatnonzero(holders == len(self.numbers))

    def positions(self, party: str) -> Index:
        """Where in a party's list each number stands; -1 for nowhere."""
        places = np.full(self.distinct, -1, dtype=np.int64)
        places[self.numbers[party]] = np.arange(len(self.numbers[party]))
        return places
