"""Private set intersection as a party program: agree on the plan, tell sizes, run the protocol that the plan names.

`align` is every party's program, `compare` that of the comparer, where the plan has one.  Before anything else each
member tells the others a digest of its plan and the size of its list, padded where the plan pads.

Who learns what is the protocol's (`cm20`, `ecdh`, `ring`); all of them tell the set sizes to everybody in the session.
Padding hides a size up to the public bound.  An empty set makes an empty result, which its size tells already.

A cardinality is refused where a set is smaller than `MIN_CARDINALITY_SET`: of a set of one its size is a membership
test.  With padding each party can check that only for itself, and made-up ids count: it holds back the curious, not
one who lies.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.errors import BadFrame, DataError, JobFailed, JobFileError, RefusedError, UsageError
from fl_core.protocols.psi import cm20, ecdh, ring
from fl_core.protocols.psi.ids import HASH_BYTES, repeats
from fl_core.protocols.psi.parameters import MAX_ITEMS, MIN_CARDINALITY_SET
from fl_core.trust import canonical

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]

PROTOCOLS = ("auto", "cm20", "ecdh")
OUTPUTS = ("receivers", "cardinality", "union")
#: Up to so many ids in both sets `auto` takes `ecdh`, which costs no more there and bounds a receiver that deviates.
SMALL = 1024

_STEP = "psi plan"
_HELLO = struct.Struct(">32sQ")


@dataclass(frozen=True)
class Plan:
    """What all members of a session must agree on.

    parties : two or more, in the job's order. receivers : who learns the result, all by default; with `union` it must
    be all. protocol : `auto`, `cm20`, `ecdh`. output : `receivers` (rows of the intersection), `cardinality`, `union`.
    comparer : the keyless member, exactly where `needs_comparer`. pad_to : every list is filled up to so many.
    """

    parties: tuple[str, ...]
    receivers: tuple[str, ...] = ()
    protocol: str = "auto"
    output: str = "receivers"
    comparer: str | None = None
    pad_to: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "receivers", tuple(p for p in self.parties if p in self._named_receivers()))
        for key, value, allowed in (("protocol", self.protocol, PROTOCOLS), ("output", self.output, OUTPUTS)):
            if value not in allowed:
                raise JobFileError(f"psi.{key}", f"{value!r}", allowed=", ".join(allowed))
        if len(self.parties) < 2 or len(set(self.parties)) < len(self.parties):
            raise JobFileError("party", f"{len(self.parties)} parties", allowed="two or more, each once")
        if self.pad_to is not None and not 1 <= self.pad_to <= MAX_ITEMS:
            raise JobFileError("psi.pad_to", str(self.pad_to), allowed=f"1 to {MAX_ITEMS}")
        if self.protocol == "cm20" and (len(self.parties) > 2 or self.output != "receivers"):
            problem = f"cm20 with {len(self.parties)} parties and output {self.output!r}"
            raise JobFileError("psi.protocol", problem, allowed="two parties and output 'receivers', or ecdh")
        if self.output == "union" and self.receivers != self.parties:
            raise JobFileError("psi.receivers", "not all parties with output 'union'", allowed="all, or leave it out")
        self._check_comparer()

    def _named_receivers(self) -> Sequence[str]:
        strangers = [name for name in self.receivers if name not in self.parties]
        if strangers:
            raise JobFileError("psi.receivers", f"{strangers[0]!r} is no party", allowed=", ".join(self.parties))
        return self.receivers or self.parties

    def _check_comparer(self) -> None:
        if self.needs_comparer and (self.comparer is None or self.comparer in self.parties):
            raise UsageError(f"the comparer is {self.comparer!r}; allowed: a member who is no party")
        if not self.needs_comparer and self.comparer is not None:
            raise UsageError(f"two parties with output {self.output!r} need no comparer; allowed: none")

    @property
    def needs_comparer(self) -> bool:
        """Whether a keyless member must compare: for three and more parties, and for every union."""
        return needs_comparer(self.parties, self.output)

    @property
    def may_be_cm20(self) -> bool:
        """Whether the sizes may yet choose `cm20`."""
        return self.protocol != "ecdh" and len(self.parties) == 2 and self.output == "receivers"

    @property
    def members(self) -> tuple[str, ...]:
        """Parties, and the comparer if there is one."""
        return self.parties if self.comparer is None else (*self.parties, self.comparer)

    def digest(self) -> bytes:
        """SHA-256 of all that must be agreed."""
        fields = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items() if v is not None}
        return bytes.fromhex(canonical.digest({"v": "fedseal/psi-plan/v1", **fields}))


@dataclass(frozen=True, eq=False)
class Alignment:
    """What a party has in the end.

    protocol : that was run. sizes : of each party's list, padded where the plan pads.
    rows : a receiver's items in the intersection, (rows,) int64 into its own, in the order common to all receivers; for
        a union the item in each of its rows or -1 for none; None where this party learns none.
    count : ids in the intersection, where this party learns it.
    """

    protocol: str
    sizes: Mapping[str, int]
    rows: Index | None = None
    count: int | None = None


def needs_comparer(parties: Sequence[str], output: str) -> bool:
    """Whether a plan for these must name a comparer."""
    return len(parties) > 2 or output == "union"


def choose(plan: Plan, sizes: Mapping[str, int]) -> str:
    """The protocol to run, `cm20` or `ecdh`; the same at all, for all know the sizes.

    What the plan says; with `auto`, `cm20` for the intersection of two sets of which one has more than `SMALL` ids.
    """
    if plan.protocol != "auto":
        return plan.protocol
    large = max(sizes.values()) > SMALL
    return "cm20" if len(plan.parties) == 2 and plan.output == "receivers" and large else "ecdh"


def first_receiver(plan: Plan, sizes: Mapping[str, int]) -> str:
    """Which of two parties finds the result: a sole receiver, else the one with the smaller set, else the first.

    In `cm20` columns are as long as this one's set, so it should be the smaller.
    """
    return min(plan.receivers, key=lambda party: sizes[party])


def align(channel: Channel, items: Bytes, plan: Plan, *, threads: int = 1) -> Alignment:
    """A party's part.

    Parameters
    ----------
    items : (n, 32) uint8, distinct hashes of ids (`ids`).
    plan : the same at all members.
    threads : for the parts of the work that leave Python free.

    Raises
    ------
    DataError : more ids than `pad_to`, an item twice. RefusedError : another member has another plan; a set too small
    for a cardinality. BadFrame : a message that the protocol does not allow.
    """
    where = f"party {channel.me}"
    if channel.me not in plan.parties:
        raise UsageError(f"{where}: no party of the plan; allowed: {', '.join(plan.parties)}")
    if items.ndim != 2 or items.shape[1] != HASH_BYTES or items.dtype != np.uint8:
        raise ValueError(f"items of shape {items.shape} and {items.dtype}, not (n, {HASH_BYTES}) and uint8")
    items, bound = np.ascontiguousarray(items), MAX_ITEMS if plan.pad_to is None else plan.pad_to
    if len(items) > bound:
        raise DataError(where, f"{len(items)} ids", allowed=f"at most {bound}")
    if len(repeats(items)[0]):
        raise DataError(where, "an id twice", allowed="each once")
    if plan.output == "cardinality":
        _refuse_small(channel.me, len(items))
    padded = _pad(items, plan.pad_to)
    sizes = _greet(channel, plan, len(padded))
    if plan.output == "receivers" and min(sizes.values()) == 0:
        rows = np.empty(0, dtype=np.int64) if channel.me in plan.receivers else None
        return Alignment(choose(plan, sizes), sizes, rows, None if rows is None else 0)
    result = _run(channel, padded, plan, sizes, threads)
    return _without_padding(channel.me, result, len(items), plan)


def compare(channel: Channel, plan: Plan) -> None:
    """The comparer's part; it brings nothing and gets nothing."""
    if plan.comparer != channel.me:
        raise UsageError(f"{channel.me}: not the comparer of the plan; allowed: {plan.comparer}")
    sizes = _greet(channel, plan, 0)
    circle = ring.Ring(sizes, channel.me)
    if plan.output == "union":
        ring.compare_union(channel, circle)
    elif plan.output == "cardinality":
        ring.compare_count(channel, circle, plan.receivers)
    elif min(sizes.values()) > 0:
        ring.compare_intersection(channel, circle, plan.receivers)


def _pad(items: Bytes, pad_to: int | None) -> Bytes:
    """Random items, which are nobody's, up to the bound."""
    if pad_to is None:
        return items
    missing = pad_to - len(items)
    return np.concatenate([items, np.frombuffer(os.urandom(missing * HASH_BYTES), np.uint8).reshape(-1, HASH_BYTES)])


def _without_padding(me: str, result: Alignment, n: int, plan: Plan) -> Alignment:
    if plan.pad_to is None or result.rows is None:
        return result
    rows = np.where(result.rows < n, result.rows, -1)
    if plan.output != "union" and (rows < 0).any():
        raise JobFailed(f"party {me}: padding is in the intersection, a chance of 2^-40; run it again")
    return Alignment(result.protocol, result.sizes, rows, result.count)


def _greet(channel: Channel, plan: Plan, size: int) -> dict[str, int]:
    """Tell plan and size to all members; returns the parties' sizes."""
    absent = [name for name in plan.members if name != channel.me and name not in channel.peers]
    if absent:
        raise UsageError(f"{absent[0]} is not in the session; allowed: {', '.join(channel.peers)}")
    others, mine = [name for name in plan.members if name != channel.me], plan.digest()
    for name in others:
        channel.send(name, _HELLO.pack(mine, size), step=_STEP)
    told = {channel.me: size}
    for name in others:
        theirs, told[name] = _HELLO.unpack(channel.recv_exactly(name, step=_STEP, size=_HELLO.size))
        if theirs != mine:
            raise RefusedError(f"party {name} has another plan for the intersection; allowed: that of {channel.me}")
        _check_size(name, told[name], plan)
    return {name: told[name] for name in plan.parties}


def _check_size(name: str, size: int, plan: Plan) -> None:
    if name == plan.comparer:
        expected, allowed = size == 0, "0"
    elif plan.pad_to is not None:
        expected, allowed = size == plan.pad_to, str(plan.pad_to)
    else:
        expected, allowed = size <= MAX_ITEMS, f"at most {MAX_ITEMS}"
    if not expected:
        raise BadFrame(name, _STEP, f"a list of {size} ids; allowed: {allowed}")
    if plan.output == "cardinality" and name in plan.parties:
        _refuse_small(name, size)


def _refuse_small(party: str, size: int) -> None:
    if size < MIN_CARDINALITY_SET:
        problem = f"party {party} has {size} ids, too few for a cardinality"
        raise RefusedError(f"{problem}; allowed: {MIN_CARDINALITY_SET} or more")


def _run(channel: Channel, items: Bytes, plan: Plan, sizes: Mapping[str, int], threads: int) -> Alignment:
    protocol = choose(plan, sizes)
    if plan.comparer is not None:
        return _run_ring(channel, items, plan, ring.Ring(sizes, plan.comparer), threads)
    (peer,) = (party for party in plan.parties if party != channel.me)
    finds = first_receiver(plan, sizes) == channel.me
    both = len(plan.receivers) == 2
    if plan.output == "cardinality":
        count: int | None
        if finds:
            count = ecdh.count(channel, peer, items, helper_size=sizes[peer], tell=both, threads=threads)
        else:
            count = ecdh.help_count(channel, peer, items, receiver_size=sizes[peer], told=both, threads=threads)
        return Alignment(protocol, sizes, None, count)
    rows: Index | None
    if protocol == "cm20" and finds:
        rows = cm20.receive(channel, peer, items, sender_size=sizes[peer], tell=both, threads=threads)
    elif protocol == "cm20":
        rows = cm20.send(channel, peer, items, receiver_size=sizes[peer], told=both, threads=threads)
    elif finds:
        rows = ecdh.receive(channel, peer, items, helper_size=sizes[peer], tell=both, threads=threads)
    else:
        rows = ecdh.help_receive(channel, peer, items, receiver_size=sizes[peer], told=both, threads=threads)
    return Alignment(protocol, sizes, rows, None if rows is None else len(rows))


def _run_ring(channel: Channel, items: Bytes, plan: Plan, circle: ring.Ring, threads: int) -> Alignment:
    told = channel.me in plan.receivers
    if plan.output == "union":
        return Alignment("ecdh", circle.sizes, ring.unite(channel, circle, items, threads=threads))
    if plan.output == "cardinality":
        count = ring.count(channel, circle, items, told=told, threads=threads)
        return Alignment("ecdh", circle.sizes, None, count)
    rows = ring.intersect(channel, circle, items, told=told, threads=threads)
    return Alignment("ecdh", circle.sizes, rows, None if rows is None else len(rows))
