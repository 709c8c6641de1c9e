"""An exchange in memory for sealed channels: its routing without gRPC, where a test can be the network or a liar."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence

from fl_core.session.keys import SessionName
from fl_core.session.sealed import SealedChannel
from fl_core.session.token import Token
from fl_core.trust.identity import Identity
from fl_core.wire.exchange_pb2 import Frame
from server.exchange import Session, StreamOver

Fault = Callable[[Frame], Iterable[Frame]]


class Switch:
    """Channels between `names`, joined unless `joined` says otherwise; `fault` sees every frame on its way in."""

    def __init__(self, names: Sequence[str], *, timeout: float = 5.0, fault: Fault | None = None) -> None:
        identities = {name: Identity.create(name) for name in names}
        cards = {name: identity.card for name, identity in identities.items()}
        self.name = SessionName("ab" * 8, secrets.token_bytes(32), cards)
        self.identities, self.fault = identities, fault or (lambda frame: [frame])
        self.session = Session(Token(self.name.session.hex(), self.name.run, "", tuple(names), 0))
        self.ends = {n: SealedChannel(identities[n], self.name, timeout=timeout) for n in names}
        self._streams: dict[str, int] = {}

    def join(self, *names: str) -> Switch:
        """Connect these parties, or all; again where they were connected."""
        for name in names or self.ends:
            stream = self._streams[name] = self.session.sit(name)
            for work in (self._up, self._down):
                threading.Thread(target=work, args=(name, stream), daemon=True).start()
        return self

    def cut(self, name: str, *, grace: float = 30.0) -> None:
        """Break a party's stream; what is under way is lost."""
        self.session.leave(name, self._streams[name], lost=True, grace=grace)

    def _up(self, name: str, stream: int) -> None:
        for frame in self.ends[name].outgoing():
            if frame.kind == Frame.NOTICE:
                self.session.leave(name, stream, lost=False)
                return
            for kept in self.fault(frame):
                if not self.session.route(name, stream, kept.to, kept.SerializeToString()):
                    return

    def _down(self, name: str, stream: int) -> None:
        try:
            while True:
                if (raw := self.session.take(name, stream, 0.2)) is not None:
                    self.ends[name].incoming(Frame.FromString(raw))
        except StreamOver:
            return


def run_all(programs: dict[str, Callable[[], object]]) -> dict[str, object]:
    """Run each in a thread; returns what each returned or raised."""
    results: dict[str, object] = {}

    def run(name: str, program: Callable[[], object]) -> None:
        try:
            results[name] = program()
        except Exception as error:  # it is what the test looks at
            results[name] = error

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in programs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a party program hangs"
    return results
