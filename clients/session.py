"""A party in a session: it comes to the exchange, runs its program there, and answers with a signed statement.

The message that opens the session is authenticated like every other one.  It names everybody in the session; this party
comes only if all have signed the roster with exactly those cards, and seals and opens under them
(`fl_core.session.keys`).  The way to the exchange is sealed to this party's key of the run.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.exchange import Stream, Tls
from clients.role import Role
from clients.store import RunState
from fl_core import messages
from fl_core.channel import Channel
from fl_core.crypto.sealing import key_info, open_sealed
from fl_core.errors import BadMessage, JobFailed
from fl_core.messages import COORDINATOR, Packet
from fl_core.records import decimal
from fl_core.session.keys import SESSION_BYTES, SessionName
from fl_core.session.sealed import REPORT, SealedChannel
from fl_core.trust import canonical
from fl_core.trust.identity import Card
from fl_core.trust.roster import Roster

Post = Callable[[int, dict[str, str]], None]


@dataclass(frozen=True)
class Result:
    """What a program leaves.

    said : of its statement, for everybody who reads the ledger.
    outputs : files that this party got.
    """

    said: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)


class Program(ABC):
    """One kind of job at one party."""

    @abstractmethod
    def load(self) -> None:
        """Check the job and open the data.  Raises `RefusedError` or `DataError`."""

    @abstractmethod
    def commitment(self) -> str:
        """To the loaded data, under the owner's key."""

    @abstractmethod
    def run(self, channel: Channel, post: Post, tell: Callable[[str], None]) -> Result:
        """Talk to the other parties, and write what this party gets.

        Parameters
        ----------
        post : takes a round's number and metrics, which reach ledger and MLflow at once.
        tell : takes a line of progress for people.
        """


class Attendance(Role):
    """A party of a job whose parties talk to each other."""

    _program: Program | None = None

    @property
    def steps(self) -> dict[str, Any]:
        """As `Role.steps`."""
        return {messages.SESSION: self._session}

    def program(self) -> Program:
        """The job's program, its data loaded."""
        if self._program is None:
            if self.party is None:
                raise BadMessage("a party without data in a session")
            program = make_program(self)
            program.load()
            self._program = program
        return self._program

    # ---- joining

    def enter(self) -> str:
        """As `Role.enter`."""
        return self.program().commitment()

    def start(self) -> RunState:
        """Nothing is kept but the facts of the run."""
        return RunState(0, np.zeros(0))

    def joins(self, state: RunState) -> dict[str, Any]:
        """As `Role.joins`; no size leaves before the session."""
        return {"role": "party"}

    def previewed(self) -> dict[str, Any]:
        """As `Role.previewed`; what joining sets aside is only looked at."""
        if self.job.kind == "vertical" and self.party is not None:
            from clients.vertical_preview import preview

            preview(self.job, self.party, self.home.store.budget, self.home.config.policy)
        elif self.job.kind == "predict" and self.party is not None:
            from clients import prediction

            config, budget = self.home.config, self.home.store.budget
            folder = prediction.part_folder(config, self.job)
            prediction.preview(self.job, self.party, folder, budget, config.policy)
        else:
            self.program()
        return {"schema": "", "classes": ""}

    def signs(self, roster: Roster) -> tuple[str, dict[str, Any], dict[str, bytes]]:
        """Just the roster."""
        return "roster", {}, {}

    # ---- the session

    def _session(self, packet: Packet, card: Card) -> Packet:
        home, body = self.home, packet.statement.body
        home.number = messages.field(body, "round", int)
        cosignature = home.observe(packet, card)
        if (again := home.again(messages.SESSION, home.number)) is not None:
            return replace(again, extra={"cosignature": cosignature})
        if home.number <= (answered := home.answered()):
            raise BadMessage(f"session {home.number} again, after session {answered}")
        roster = home.roster()
        roster.check_signed(messages.field(packet.extra, "ceremony", list), run=home.config.run)
        name = self._name(body, {**roster.cards, COORDINATOR: card})
        offer = self._offer(packet, roster)
        began, program = time.monotonic(), self.program()
        channel = SealedChannel(home.store.identity, name, timeout=self.job.session.timeout)
        with Stream(channel, self._address(offer), str(offer.get("token", "")), tls=self._tls(offer)):
            result = self._attend(channel, program)
        said: dict[str, Any] = {
            "round": home.number,
            "session": name.session.hex(),
            "transcripts": {peer: channel.transcript(peer) for peer in channel.peers if peer != COORDINATOR},
            "sent": sum(t.sent for t in channel.traffic.values()),
            "received": sum(t.received for t in channel.traffic.values()),
            "seconds": decimal(time.monotonic() - began),
        }
        reply = home.reply(messages.SESSION, "session", said | result.said, {})
        return replace(reply, extra={"cosignature": cosignature})

    def _attend(self, channel: SealedChannel, program: Program) -> Result:
        """The program's run; whatever ends it early is told to the others by code."""
        try:
            channel.gather(channel.timeout)
            result = program.run(channel, _Poster(self, channel), lambda text: _report(channel, {"progress": text}))
            channel.finish()
        except BaseException as error:
            channel.abort(error)
            raise
        return result

    def _name(self, body: dict[str, Any], cards: dict[str, Card]) -> SessionName:
        members = messages.field(body, "members", list)
        if set(members) != set(cards) or len(members) != len(cards):
            raise BadMessage(f"a session of {', '.join(map(str, members))[:200]}; the roster has {', '.join(cards)}")
        try:
            session = bytes.fromhex(messages.field(body, "session", str))
        except ValueError:
            session = b""
        if len(session) != SESSION_BYTES:
            raise BadMessage(f"a session's name of {len(session)} bytes, not {SESSION_BYTES}")
        return SessionName(self.home.config.run, session, {member: cards[member] for member in members})

    # ---- the way to the exchange

    def _offer(self, packet: Packet, roster: Roster) -> dict[str, Any]:
        ephemeral = self.home.files.secret("ephemeral")
        if ephemeral is None:
            raise JobFailed("this party's key of the run is gone; it must join again")
        info = key_info(self.home.config.run, roster.digest, COORDINATOR, self.home.config.party)
        private = X25519PrivateKey.from_private_bytes(ephemeral)
        offer = canonical.decode(open_sealed(private, packet.blobs.get("offer", b""), info=info, aad=b"offer"))
        if not isinstance(offer, dict):
            raise BadMessage("an offer that is not a table")
        return offer

    def _address(self, offer: dict[str, Any]) -> str:
        line = self.home.config.line
        if line is None:
            return str(offer.get("address", ""))
        return f"{line.host}:{messages.field(offer, 'port', int)}"

    def _tls(self, offer: dict[str, Any]) -> Tls | None:
        line = self.home.config.line
        if line is None:
            return None
        return Tls(line.authority, messages.field(offer, "certificate", str).encode(), line.key_pem())


class _Poster:
    """Signs a round's metrics and sends them to the coordinator."""

    def __init__(self, attendance: Attendance, channel: SealedChannel) -> None:
        self._home, self._channel = attendance.home, channel

    def __call__(self, number: int, metrics: dict[str, str]) -> None:
        statement = self._home.sign("metrics", {"round": number, "metrics": metrics})
        _report(self._channel, {"record": statement.to_dict()})


def _report(channel: SealedChannel, table: dict[str, Any]) -> None:
    channel.send(COORDINATOR, canonical.encode(table), step=REPORT)


def make_program(attendance: Attendance) -> Program:
    """The program of the job's kind; what it needs is imported when it is met."""
    home, party = attendance.home, attendance.party
    assert party is not None
    if attendance.job.kind == "vertical":
        from clients.vertical import VerticalProgram

        return VerticalProgram(home, attendance.job, party)
    if attendance.job.kind == "predict":
        from clients.prediction import PredictProgram

        return PredictProgram(home, attendance.job, party)
    from clients.psi import PsiProgram

    return PsiProgram(home, attendance.job, party)
