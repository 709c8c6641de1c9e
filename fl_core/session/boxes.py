"""Between a party and one peer: what is sent and not yet acknowledged, and what came and is not yet read.

State only: no waiting, no locks, no sealing; the channel holds its lock around every call.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fl_core.errors import BadMessage


@dataclass
class Outbox:
    """Sealed pieces in their order; what the peer has not read stays, so that a lost connection loses nothing.

    `epoch` is the peer's last `Resume`; 0: it has not asked for anything yet, and nothing is sent.
    """

    epoch: int = 0
    first: int = 0  # number of the oldest held
    cursor: int = 0  # number of the next to send
    held: deque[tuple[int, bytes]] = field(default_factory=deque)  # kind and sealed bytes
    unread: int = 0  # bytes held

    @property
    def end(self) -> int:
        """How many pieces there were so far."""
        return self.first + len(self.held)

    def add(self, kind: int, sealed: bytes) -> None:
        """A new piece, numbered `end`."""
        self.held.append((kind, sealed))
        self.unread += len(sealed)

    @property
    def ready(self) -> bool:
        """Whether there is something to send now."""
        return self.epoch > 0 and self.cursor < self.end

    def next(self) -> tuple[int, int, bytes]:
        """Number, kind and bytes of the next piece to send."""
        number, self.cursor = self.cursor, self.cursor + 1
        return number, *self.held[number - self.first]

    def acknowledge(self, read: int) -> None:
        """The peer has read all below `read`.  Raises `BadMessage`."""
        if read > self.cursor:
            raise BadMessage(f"it acknowledges {read} pieces; {self.cursor} were sent")
        while self.first < read:
            self.unread -= len(self.held.popleft()[1])
            self.first += 1

    def resume(self, epoch: int, following: int) -> None:
        """Send again from `following` on.  Raises `BadMessage`."""
        if epoch <= self.epoch:
            return
        if not self.first <= following <= self.end:
            raise BadMessage(f"it asks for piece {following}; held are {self.first} to {self.end}")
        self.epoch, self.cursor = epoch, following


@dataclass
class Inbox:
    """Sealed pieces that arrived in their order."""

    epoch: int = 0
    expected: int = 0  # number of the next to arrive
    consumed: int = 0  # number of the next to read
    ended: bool = False
    held: deque[bytes] = field(default_factory=deque)
    unread: int = 0  # bytes held

    def add(self, epoch: int, number: int, sealed: bytes, *, last: bool, window: int) -> bool:
        """Take a piece; False for a leftover of a lost connection.  Raises `BadMessage`."""
        if epoch != self.epoch:
            return False
        if number != self.expected or self.ended:
            what = "again" if number < self.expected else "too early: one was lost or they changed places"
            raise BadMessage(f"piece {number} came {what} ({self.expected} was next)")
        self.expected += 1
        self.ended = last
        if not last:
            self.held.append(sealed)
            self.unread += len(sealed)
            if self.unread > 2 * window:
                raise BadMessage(f"more than {2 * window} bytes came unread")
        return True

    def take(self) -> tuple[int, bytes]:
        """The oldest piece and its number."""
        number, sealed = self.consumed, self.held.popleft()
        self.consumed += 1
        self.unread -= len(sealed)
        return number, sealed
