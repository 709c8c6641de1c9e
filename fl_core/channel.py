"""What a party program talks through: named peers, whole messages, in order.

A party program is a plain function over a `Channel`.  `MemoryChannel` joins threads of one process, for tests and for
comparing a protocol with its slow reference; a job's channel goes through the exchange, sealed from party to party.

Both ends name the step that a message belongs to.  The name travels with it, so that two programs that have lost each
other's place end with an error that says where, and not with one side's bytes taken for another thing.
"""

from __future__ import annotations

import hashlib
import queue
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_core.errors import BadFrame, PeerLost, PeerTimeout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Buffer = bytes | bytearray | memoryview | NDArray[Any]

MAX_STEP = 80


@dataclass
class Traffic:
    """Bytes of messages, without what sealing and transport add."""

    sent: int = 0
    received: int = 0


class Channel(ABC):
    """One party's end in a session.

    Parameters
    ----------
    me : this party.
    peers : the others, in the session's order.
    session : names the session, the same at every party; not secret.
    timeout : seconds a `recv` waits where it is not told otherwise.
    """

    def __init__(self, me: str, peers: Sequence[str], *, session: bytes, timeout: float) -> None:
        self.me, self.peers, self.session, self.timeout = me, tuple(peers), session, timeout
        self.traffic = {peer: Traffic() for peer in self.peers}

    def send(self, to: str, *parts: Buffer, step: str) -> None:
        """Send one message, the concatenation of `parts`.

        Returns once the channel has taken it; it may block while the peer does not read.

        Raises
        ------
        PeerLost, PeerTimeout : the peer is gone, or takes nothing for `timeout` seconds.
        """
        views = [_bytes_of(part) for part in parts]
        self._send(to, views, step)
        self.traffic[to].sent += sum(len(view) for view in views)

    def recv(self, source: str, *, step: str, max_bytes: int, timeout: float | None = None) -> bytearray:
        """The next message of a peer.

        Parameters
        ----------
        step : what it must be for.
        max_bytes : a longer message is refused before it is read whole.
        timeout : seconds to wait, instead of the channel's.

        Raises
        ------
        PeerLost, PeerTimeout : it does not come.
        BadFrame : it is too long, or of another step.
        """
        message = self._recv(source, step, max_bytes, self.timeout if timeout is None else timeout)
        self.traffic[source].received += len(message)
        return message

    def recv_exactly(self, source: str, *, step: str, size: int, timeout: float | None = None) -> bytearray:
        """The next message of a peer, which must have `size` bytes."""
        message = self.recv(source, step=step, max_bytes=size, timeout=timeout)
        if len(message) != size:
            raise BadFrame(source, step, f"{len(message)} bytes instead of {size}")
        return message

    @abstractmethod
    def wait_any(self, *, timeout: float) -> str | None:
        """A peer from which a message waits, or None after `timeout` seconds."""

    @abstractmethod
    def transcript(self, peer: str) -> str:
        """A digest of all that went between this party and `peer`, hex; both have the same when nothing was lost."""

    @abstractmethod
    def _send(self, to: str, parts: Sequence[memoryview], step: str) -> None: ...

    @abstractmethod
    def _recv(self, source: str, step: str, max_bytes: int, timeout: float) -> bytearray: ...


class Transcript:
    """Running digests of the two directions between two parties."""

    def __init__(self, me: str, peer: str) -> None:
        self._hashes = {me: hashlib.sha256(me.encode()), peer: hashlib.sha256(peer.encode())}

    def add(self, sender: str, data: bytes) -> None:
        """Note what `sender` sent: the same pieces in the same order at both ends."""
        self._hashes[sender].update(struct.pack(">Q", len(data)))
        self._hashes[sender].update(data)

    def hexdigest(self) -> str:
        """One digest of both directions, the same whoever asks."""
        both = b"".join(self._hashes[name].digest() for name in sorted(self._hashes))
        return hashlib.sha256(both).hexdigest()


_Message = tuple[str, bytes]


class MemoryChannel(Channel):
    """A channel between threads; made by `mesh`."""

    def __init__(
        self,
        me: str,
        inboxes: Mapping[tuple[str, str], queue.Queue[_Message]],
        ended: Mapping[str, threading.Event],
        **settings: float,
    ) -> None:
        peers = [name for name in ended if name != me]
        super().__init__(me, peers, session=b"memory", timeout=settings["timeout"])
        self._inboxes, self._ended = inboxes, ended
        self._transcripts = {peer: Transcript(me, peer) for peer in peers}

    def close(self) -> None:
        """Go; who waits for this party learns it."""
        self._ended[self.me].set()

    def wait_any(self, *, timeout: float) -> str | None:
        """As `Channel.wait_any`."""
        end = time.monotonic() + timeout
        while True:
            for peer in self.peers:
                if not self._inboxes[peer, self.me].empty():
                    return peer
            if time.monotonic() > end:
                return None
            time.sleep(0.005)

    def transcript(self, peer: str) -> str:
        """As `Channel.transcript`."""
        return self._transcripts[peer].hexdigest()

    def _send(self, to: str, parts: Sequence[memoryview], step: str) -> None:
        data = b"".join(parts)
        self._transcripts[to].add(self.me, data)
        self._inboxes[self.me, to].put((step, data))

    def _recv(self, source: str, step: str, max_bytes: int, timeout: float) -> bytearray:
        said, data = self._next(source, step, timeout)
        check_message(source, step, said, len(data), max_bytes)
        self._transcripts[source].add(source, data)
        return bytearray(data)

    def _next(self, source: str, step: str, timeout: float) -> _Message:
        inbox, end = self._inboxes[source, self.me], time.monotonic() + timeout
        while True:
            gone = self._ended[source].is_set()  # looked up first: what it sent before it went still counts
            try:
                return inbox.get(timeout=0.0 if gone else 0.02)
            except queue.Empty:
                if gone:
                    raise PeerLost(source, step) from None
                if time.monotonic() > end:
                    raise PeerTimeout(source, step, timeout) from None


def mesh(names: Sequence[str], *, timeout: float = 60.0) -> dict[str, MemoryChannel]:
    """Channels in memory between all of `names`."""
    inboxes: dict[tuple[str, str], queue.Queue[_Message]]
    inboxes = {(a, b): queue.Queue() for a in names for b in names if a != b}
    ended = {name: threading.Event() for name in names}
    return {name: MemoryChannel(name, inboxes, ended, timeout=timeout) for name in names}


def _bytes_of(data: Any) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty array of two dimensions cannot be cast


def check_message(source: str, step: str, said: str, size: int, max_bytes: int) -> None:
    """`BadFrame` for a message of another step or longer than what the program takes."""
    if said != step:
        raise BadFrame(source, step, f"a message of step {said[:MAX_STEP]!r}")
    if size > max_bytes:
        raise BadFrame(source, step, f"a message of {size} bytes, at most {max_bytes} are taken")
