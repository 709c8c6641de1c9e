"""Everything that a channel holds of one peer."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from fl_core.session.boxes import Inbox, Outbox
from fl_core.session.keys import Keys
from fl_core.wire.exchange_pb2 import Frame


@dataclass
class Peer:
    """Everything held of one peer."""

    outbox: Outbox = field(default_factory=Outbox)
    inbox: Inbox = field(default_factory=Inbox)
    keys: Keys | None = None
    hello: bytes = b""
    controls: deque[Frame] = field(default_factory=deque)
    sent_controls: int = 0
    seen_control: int = -1
    unsaid_bytes: int = 0  # read since the last acknowledgement
    unsaid_pieces: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)  # of those who send to it
    left: bool = False  # its stream is over
    first: bytes | None = None  # the first piece of its next message, opened to see what it is

    def is_met(self) -> bool:
        """Whether the peer has shown its session key."""
        return self.keys is not None

    def has_news(self) -> bool:
        """Whether something of it is unread."""
        return self.first is not None or bool(self.inbox.held)

    def is_done(self) -> bool:
        """Whether the peer has read everything up to this party's `BYE`, or reads no more."""
        return self.left or self.outbox.first == self.outbox.end - 1
