"""What the commands about data, grants and keys work on: who one is in this home, and the way to the board."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import FedsealError, JobFailed, RefusedError, UsageError

if TYPE_CHECKING:
    from clients.board import Board
    from clients.consent.decision import Consent
    from clients.own_profile import Said
    from fl_core.home import Home
    from fl_core.trust.entry import Statement
    from fl_core.trust.identity import Card, Identity

AsOption = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="Who you are, where this home holds several.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the signed statement there, and post nothing.")
]
OWNER, ASKER, EITHER = "owner", "asker", "either"
_DAY = timedelta(days=1)


@dataclasses.dataclass
class Desk:
    """One person or party of this home.

    Attributes
    ----------
    board
        The ledger of this home, or the door that it holds a pass to; None at a node without a pass.
    """

    home: Home
    identity: Identity
    log: str
    board: Board | None

    @property
    def folder(self) -> Path:
        """The one's own folder."""
        return self.home.party(self.identity.name)

    @cached_property
    def consent(self) -> Consent:
        """What the one has published and granted."""
        from clients.consent.decision import Consent

        return Consent(self.folder, self.identity)

    def become(self, identity: Identity) -> None:
        """Sign with another key from here on."""
        self.identity = identity
        self.__dict__.pop("consent", None)

    def check_way(self, out: Path | None) -> None:
        """Raise UsageError where nothing that is signed now could go anywhere; asked before anything is kept."""
        if out is not None and out.exists():
            raise UsageError(f"--out {out}: there is a file already; allowed: a new one")
        if out is None:
            self.need_board("--out FILE")

    def need_board(self, otherwise: str) -> Board:
        """The board.  Raises UsageError where there is no way to it."""
        if self.board is None:
            allowed = f"fedseal login FILE with a pass of the coordinator's operator, or {otherwise}"
            raise UsageError(f"{self.home.path}: no way to the coordinator's board; allowed: {allowed}")
        return self.board

    def said(self, out: Path | None = None) -> Said:
        """What the one has said of itself: as the board shows it, else as its own folder has kept it.

        With `out`, for a file: also where the board does not answer.
        """
        from clients.door import Unreachable
        from clients.own_profile import Said, kept, said_on

        own, shown = kept(self.folder, self.identity.card, log=self.log), Said()
        try:
            shown = said_on(self.board, self.identity.card) if self.board is not None else shown
        except Unreachable:
            if out is None:
                raise
        if shown.statement is not None:
            return shown
        return Said(own.statement, own.profile, shown.before or own.before)

    def say(self, statements: Sequence[Statement], out: Path | None) -> str:
        """Post own statements, or write them to `out`; returns in words what was done.

        One's card goes before them, and one's profile where the board does not show it. Where the board does not take
        them they are kept in a file, for `fedseal grant post`.
        """
        from clients.board import introduce
        from server.cli.desk_file import post_lines, write_parts
        from server.cli.identity_profile import introduced

        if out is not None:
            held = dataclasses.replace(self.said(out), on_board=False)  # whoever posts it may have another board
            said = introduced(self, statements, held)
            files = write_parts(out, said, self.identity.card)
            self._keep_profile(said)
            return f"written to {out}; whoever has a pass posts it: {post_lines(files)}"
        said = [introduce(self.identity, log=self.log), *statements]
        try:
            said = introduced(self, statements, self.said())
            size, _ = self.need_board("--out FILE").post(said)
        except FedsealError as error:
            path = self.folder / f"unposted-{said[-1].digest[:16]}.json"
            files = [path] if path.exists() else write_parts(path, said, self.identity.card)
            kind = RefusedError if isinstance(error, RefusedError) else JobFailed
            raise kind(f"{error}; signed, and kept in {path}: {post_lines(files)}") from None
        self._keep_profile(said)
        return f"on the ledger ({size} entries)"

    def _keep_profile(self, said: Sequence[Statement]) -> None:
        from clients.own_profile import keep

        for statement in said:
            if statement.kind == "profile":
                keep(self.folder, statement, self.identity.card)

    def sync(self) -> list[str]:
        """Take up what others have said of one's own data and grants, and whose keys have ended; what was refused."""
        from clients.board import revoked_keys

        if self.board is None:
            return []
        refused: list[str] = []
        for posted in self.board.read(["profile", "grant-request", "grant", "grant-end"]):
            if posted.entry.by == self.identity.name:
                continue
            try:
                self.consent.receive(posted.statement, posted.card)
            except UsageError:  # it concerns somebody else
                continue
            except FedsealError as error:
                refused.append(f"entry {posted.entry.seq} of {posted.entry.by}: {error}")
        if new := revoked_keys(self.board, tell=refused.append) - self.consent.revoked_keys:
            self.consent.distrust(*new)
        return list(dict.fromkeys([*refused, *getattr(self.board, "refused", [])]))

    def ended_keys(self) -> frozenset[str]:
        """Fingerprints of cards that count no more, as the board shows."""
        from clients.board import revoked_keys

        return frozenset() if self.board is None else revoked_keys(self.board)


@contextmanager
def open_desk(home: Path | None, name: str | None, *, role: str = ASKER) -> Iterator[Desk]:
    """Open the desk of `name`, or of whom this home is for.

    That is its node (not for an `ASKER`), or who its pass is for; else, but for an `OWNER`, `engineer`.

    Raises UsageError where that is not clear, or where there is no ledger to sign for.
    """
    from fl_core.home import Home
    from server import orders

    place = Home.open(home)
    with ExitStack() as stack:
        identity = orders.person(place, name or _own_name(place, role))
        board, log = board_of(stack, place, identity.name)
        yield Desk(place, identity, log, board)


def has_pass(home: Home) -> bool:
    """Whether this home holds a pass, or one is named from outside."""
    from server.runtimes import remote

    return remote.has_pass(home)


def nodes_of(home: Home) -> list[str]:
    """The names of the nodes of this home."""
    return sorted(path.parent.name for path in home.path.glob("parties/*/node.json"))


def people_of(home: Home) -> list[str]:
    """The names of all who have keys in this home."""
    return sorted(path.parent.name for path in home.path.glob("parties/*/identity.key"))


def pinned_coordinator(home: Home, name: str) -> Card | None:
    """The coordinator's card as a party of this home has pinned it."""
    from fl_core.messages import COORDINATOR
    from fl_core.trust.identity import CardBook

    return CardBook(home.party(name) / "cards.json").get(COORDINATOR)


def _own_name(home: Home, role: str) -> str:
    from server import orders

    nodes = nodes_of(home)
    if role != ASKER and len(nodes) == 1:
        return nodes[0]
    if has_pass(home):
        return pass_name(home)
    if len(nodes) == 1:
        return nodes[0]
    if role == OWNER:
        known = ", ".join(people_of(home)) or "the name that jobs give your party"
        raise UsageError(f"--as: whose data are these? allowed: {known}")
    return orders.ENGINEER


def pass_name(home: Home) -> str:
    """Whom the pass of this home is for.  Raises UsageError for one that does not hold."""
    from server.runtimes.remote import read_pass

    return read_pass(home).holder().name


def board_of(stack: ExitStack, home: Home, name: str) -> tuple[Board | None, str]:
    """Return the board that `name` of this home reads, if any, and the log's origin; `stack` closes it.

    Raises UsageError where a node has no coordinator yet.
    """
    from clients.board import DoorBoard, LocalBoard
    from clients.door import DoorClient
    from fl_core.trust.checkpoint import log_id
    from fl_core.trust.identity import CardBook
    from server.runtimes.remote import read_pass

    if has_pass(home):
        held = read_pass(home)
        door = stack.enter_context(DoorClient(held))
        remote = DoorBoard(door, held.federation.coordinator, CardBook(home.party(name) / "cards.json"))
        return remote, remote.log
    if nodes_of(home) and not home.ledger.exists() and not (home.coordinator / "coordinator.json").exists():
        pinned = pinned_coordinator(home, name)
        if pinned is None:
            raise UsageError(f"{name}: knows no coordinator to sign for; allowed: {', '.join(nodes_of(home))}")
        return None, log_id(pinned)
    local = LocalBoard(home)
    return local, local.log


# ---- words and numbers


def now_ms() -> int:
    """This machine's clock: milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def until_ms(text: str) -> int:
    """Milliseconds since 1970 UTC at the end of a day (2026-12-31), or at a minute of it (2026-12-31T18:00), UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--until {text:.40}; allowed: a date such as 2026-12-31, or 2026-12-31T18:00, UTC") from None
    if "T" not in text and " " not in text:
        moment += _DAY
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def moment(milliseconds: int) -> str:
    """A time as people read it; the far future is no end."""
    if milliseconds >= 253_402_300_800_000:  # the year 10000
        return "no end"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(milliseconds / 1000))


def dataset_name(text: str) -> tuple[str, str]:
    """OWNER/NAME in two.  Raises UsageError."""
    owner, slash, name = text.partition("/")
    if not slash or not owner or not name or "/" in name:
        raise UsageError(f"{text!r:.80}: not a dataset; allowed: OWNER/NAME, as fedseal data list shows it")
    return owner, name


def line(text: object = "") -> None:
    """Print a line of what others have written, as a terminal may show it."""
    from fl_core.text import printable

    print(printable(text))
