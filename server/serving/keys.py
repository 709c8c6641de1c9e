"""Clients' public keys at a model's owner: read once, kept under their digest while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fl_core.crypto.linear_inference import PublicKey
from fl_core.crypto.linear_ring import SETS as LINEAR_SETS
from fl_core.crypto.linear_ring import open_ring
from fl_core.errors import BadMessage
from fl_core.serving import digest

MAX_ROTATIONS = 128
ROOM = 2 << 30  # bytes of all keys
EACH = 8  # keys of one client
_SMALL = 1 << 20  # what a linear model's key takes at most
Name = tuple[str, str, str]  # client, set, digest


@dataclass(frozen=True, eq=False)
class HeldKey:
    """Ready for use: a `PublicKey` or `EvaluationKeys`, for which rotations, and how many bytes it takes."""

    key: Any
    rotations: tuple[int, ...]
    bytes: int


def open_key(parameters: str, rotations: tuple[int, ...], name: str, parts: Iterator[bytes]) -> HeldKey:
    """Read a key of a parameter set from its parts.

    Raises
    ------
    BadMessage : another size than the set's and the rotations', another digest than `name`, or no key.
    """
    if parameters in LINEAR_SETS:
        ring = open_ring(parameters)
        data = joined(parts, ring.public_form.bytes, name)
        return HeldKey(PublicKey(ring, data), (), _SMALL)
    from fl_core.crypto.network_inference import EvaluationKeys
    from fl_core.crypto.network_ring import open_network_ring

    network = open_network_ring(parameters)
    held = EvaluationKeys(network, rotations, joined(parts, network.key_bytes(rotations), name))
    return HeldKey(held, rotations, held.bytes)


def joined(parts: Iterator[bytes], size: int, name: str) -> bytes:
    """A public key of `size` bytes from its parts.  Raises `BadMessage` for another size, or another digest."""
    data = bytearray()
    for part in parts:
        data += part
        if len(data) > size:
            break
    key = bytes(data)
    if len(key) != size or digest([key]) != name:
        raise BadMessage(f"a public key of another size than {size} bytes, or of another digest than signed")
    return key


class Keys:
    """Those that are here; a client's oldest goes where it has many, anybody's oldest where all take too much room."""

    def __init__(self, room: int = ROOM, each: int = EACH) -> None:
        self._room, self._each, self._lock = room, each, threading.Lock()
        self._held: OrderedDict[Name, HeldKey] = OrderedDict()

    def keep(self, name: Name, key: HeldKey) -> None:
        """Keep one, and let others go for it."""
        with self._lock:
            self._held[name] = key
            self._held.move_to_end(name)
            own = [other for other in self._held if other[0] == name[0]]
            for old in own[: max(len(own) - self._each, 0)]:
                del self._held[old]
            while len(self._held) > 1 and sum(held.bytes for held in self._held.values()) > self._room:
                self._held.popitem(last=False)

    def get(self, name: Name) -> HeldKey | None:
        """One that is here."""
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
            return self._held.get(name)
