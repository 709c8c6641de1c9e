"""What a federation's ledger says of those who ask for predictions: whose key has ended, and whose role allows it.

A client is let in by the model's owner, with its card, as a receiver. Where the owner's home has a way to a
coordinator's board (a pass, or the ledger itself) a key that was revoked or rotated there opens nothing here any more,
and roles that a card's holder signed hold here too. Both only take rights away, so a coordinator can keep a client out
and let nobody in. A board that cannot be reached changes nothing; what was read last goes on to hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fl_core.errors import FedsealError, RefusedError, UsageError
from fl_core.home import Home
from fl_core.trust import roles
from fl_core.trust.identity import Card
from fl_core.trust.members import Members
from fl_core.trust.roles import Action
from server.runtimes.remote import has_pass, read_pass

SECONDS = 60.0
Say = Callable[[str], None]


class Standing:
    """Who of the clients may ask, as a board shows it; read at once and then every minute, by a thread.

    Parameters
    ----------
    read
        Returns the members that the board shows now; raises FedsealError where it cannot be read.
    """

    def __init__(self, read: Callable[[], Members], say: Say, *, seconds: float = SECONDS) -> None:
        self._read, self._say, self._seconds = read, say, seconds
        self._members, self._trouble = Members(), ""
        self._ending = threading.Event()
        self.refresh()
        self._thread = threading.Thread(target=self._run, name="standing", daemon=True)
        self._thread.start()

    def check(self, card: Card) -> None:
        """Raise RefusedError for a client whose key has ended, or whose roles do not let it ask for predictions."""
        members = self._members
        if members.has_ended(card.fingerprint):
            raise RefusedError(f"{card.name}: its key was revoked or rotated; allowed: its present card, let in anew")
        member = members.get(card.name)
        if member is not None and member.card == card and member.roles is not None:
            roles.require(card.name, member.roles, Action.ASK_PREDICTIONS)

    def refresh(self) -> None:
        """Read the board now; trouble is told when it begins and when it ends."""
        trouble = ""
        try:
            self._members = self._read()
        except FedsealError as error:
            trouble = str(error)
        if trouble and not self._trouble:
            self._say(f"note: the board cannot be read; what it said last holds: {trouble}")
        elif self._trouble and not trouble:
            self._say("the board is read again")
        self._trouble = trouble

    def close(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(self._seconds):
            self.refresh()


@contextmanager
def standing_of(read: Callable[[], Members] | None, say: Say) -> Iterator[Callable[[Card], None]]:
    """Yield `Standing.check` over what `read` returns; where there is no way to a board, what lets everybody pass."""
    if read is None:
        yield lambda _: None
        return
    standing = Standing(read, say)
    try:
        yield standing.check
    finally:
        standing.close()


def check_owner(home: Home) -> None:
    """Raise UsageError unless the pass of this home, if it has one, is for somebody who may serve predictions."""
    if not has_pass(home):
        return
    person = read_pass(home).holder()
    try:
        roles.require(person.name, roles.held(person.roles), Action.SERVE_PREDICTIONS)
    except RefusedError as error:
        raise UsageError(f"serve: {error}") from None
