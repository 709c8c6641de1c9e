"""A run whose parties talk to each other: one session on the exchange, opened by one message to each party.

The coordinator attends under its own identity.  It takes the parties' reports (signed records, which reach the ledger
and MLflow when they happen), runs a part of the protocol where the plan gives it one, and ends the session when the run
is stopped or a party is lost.  Each party answers with a signed statement, which names the digest of every conversation
that it had: two parties' statements must agree.

A session that failed is never taken up again; `--resume` opens another one with fresh keys.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from fl_core import messages
from fl_core.crypto.sealing import key_info, seal
from fl_core.errors import BadMessage, FedsealError, JobFailed, LedgerBroken
from fl_core.messages import COORDINATOR, Packet
from fl_core.records import RoundRecord, decimal
from fl_core.session.keys import SESSION_BYTES, SessionName
from fl_core.session.sealed import MAX_REPORT, REPORT, SealedChannel
from fl_core.session.token import Token
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card
from strategies import ceremony
from strategies.coordination import Coordination, Event
from strategies.dispatch import Dispatcher, Request
from strategies.rounds import Outcome
from strategies.witnessed import Collected, Witnessed

PARTING = 10.0  # seconds for the parties' answers once the session is over for a bad reason
LOOK = 0.2
FOLLOWING = ("lost", "timeout")  # codes of a party that suffers from another one's failure
ADDED = ("bytes", "seconds")  # metrics of a round that a session adds up
Part = Callable[[SealedChannel], None]


class SessionRun:
    """One such run at the coordinator.

    Parameters
    ----------
    part : the coordinator's own part in the protocol, where the job gives it one.
    """

    def __init__(self, dispatcher: Dispatcher, co: Coordination, *, part: Part | None = None) -> None:
        if co.host is None:
            raise JobFailed("this runtime has no exchange")
        self.dispatcher, self.co, self.host, self._part = dispatcher, co, co.host, part
        self.log = Witnessed(dispatcher, co)
        self.ceremony = ceremony.hold(dispatcher, co)
        self.parties = self.ceremony.roster.contributors
        self.cards: dict[str, Card] = {**self.ceremony.roster.cards, COORDINATOR: co.identity.card}
        self._rounds: dict[int, dict[str, Statement]] = {}
        self.metrics: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    def run(self) -> Outcome:
        """One session, its statements on the ledger, co-signed."""
        history = self.log.history
        if history.ended:
            end = list(self.co.ledger.entries(run=self.co.run, kind="end"))[-1]
            self.metrics = {k: float(v) for k, v in end.body["metrics"].items()}
        else:
            self._session(history.sessions + 1)
        number = history.sessions
        body = {"round": number, messages.SESSION: sorted(history.last_statement)}
        self.log.witness(number, self.parties, body)
        self.co.progress(Event("closed", number, {}))
        return Outcome(self.metrics, "", None)

    def _session(self, number: int) -> None:
        name = SessionName(self.co.run, secrets.token_bytes(SESSION_BYTES), self.cards)
        until = int(time.time() + self.co.job.session.time_to_live)
        opening = {"round": number, "session": name.session.hex(), "members": list(self.cards), "until": until}
        self.log.commit([self.co.say("session", opening)])
        self.co.progress(Event("session", number, {"parties": self.parties}))
        channel = SealedChannel(self.co.identity, name, timeout=self.co.job.session.timeout)
        with self.host.attend(channel, self._token(opening, COORDINATOR)):
            attendant = _Attendant(channel, self._part)
            try:
                got = self._collect(opening, attendant)
            except BaseException as error:
                channel.abort(error)
                raise
            finally:
                attendant.end()
        self._take_reports(attendant)
        self._conclude(got)

    def _token(self, opening: Mapping[str, Any], party: str) -> Token:
        return Token(opening["session"], self.co.run, party, tuple(opening["members"]), opening["until"])

    # ---- questions and answers

    def _collect(self, opening: dict[str, Any], attendant: _Attendant) -> Collected:
        said = [s.to_dict() for s in self.ceremony.statements]

        def build(party: str, proofs: dict[str, Any]) -> Request:
            offer = canonical.encode(self.host.offer(self._token(opening, party)))
            info = key_info(self.co.run, self.ceremony.roster.digest, COORDINATOR, party)
            sealed = seal(self.ceremony.roster.ephemerals[party], offer, info=info, aad=b"offer")
            return Request(opening, {"offer": sealed}, {**proofs, "ceremony": said})

        def take(packet: Packet) -> None:
            body = packet.statement.body
            if packet.statement.kind != "session" or body.get("session") != opening["session"]:
                raise BadMessage("an answer of another session")

        def given_up() -> str:
            self._take_reports(attendant)
            return attendant.given_up()

        got = self.log.collect(
            messages.SESSION,
            opening["round"],
            self.parties,
            build,
            take,
            timeout=self.co.job.session.time_to_live,
            max_blob=0,
            given_up=given_up,
            missed=attendant.blame,
        )
        if len(got.statements) < len(self.parties):
            raise _why(got.missing, attendant)
        return got

    def _conclude(self, got: Collected) -> None:
        """Hold the statements against each other and put them on the ledger."""
        told = {name: dict(s.body["transcripts"]) for name, s in got.statements.items()}
        for name, transcripts in told.items():
            for peer, digest in transcripts.items():
                if told.get(peer, {}).get(name, digest) != digest:
                    raise LedgerBroken(f"parties {name} and {peer} report different conversations")
        metrics = {k: decimal(v) for k, v in self.metrics.items()}
        end = self.co.say("end", {"status": "done", "metrics": metrics})
        self.log.commit([*(got.statements[name] for name in self.parties), end])
        self.log.cosigned(got)

    # ---- reports

    def _take_reports(self, attendant: _Attendant) -> None:
        while (report := attendant.report()) is not None:
            party, data = report
            table = canonical.decode(data, max_bytes=MAX_REPORT)
            if isinstance(table, dict) and set(table) == {"progress"}:
                self.co.progress(Event("progress", 0, {"party": party, "text": str(table["progress"])[:200]}))
            elif isinstance(table, dict) and set(table) == {"record"}:
                self._take_record(party, Statement.from_dict(table["record"]))
            else:
                raise BadMessage(f"a report of party {party} of another shape")

    def _take_record(self, party: str, statement: Statement) -> None:
        """A party's signed metrics of a round; once all have reported, the round is recorded."""
        statement.verify(self.cards[party])
        if (statement.run, statement.log, statement.kind) != (self.co.run, self.co.ledger.log, "metrics"):
            raise BadMessage(f"a record of party {party} for another run")
        number = messages.field(statement.body, "round", int)
        if number in self.log.history.recorded:  # told again by a session that goes on
            return
        told = self._rounds.setdefault(number, {})
        if party in told or not isinstance(statement.body.get("metrics"), dict):
            raise BadMessage(f"a second record of party {party} for round {number}, or one without metrics")
        told[party] = statement
        if len(told) < len(self.parties):
            return
        self.log.commit([told[name] for name in self.parties])
        record = RoundRecord(self.co.run, number, _pool(told), tuple(self.parties))
        for name in ADDED:
            self._totals[name] = self._totals.get(name, 0.0) + float(record.metrics.get(name, 0.0))
        self.metrics = record.values() | self._totals
        self.co.recorder.record(record)
        self.co.progress(Event("record", number, dict(record.metrics)))


class _Attendant:
    """The coordinator in the session, in a thread of its own.  Reports wait here for the run's own thread."""

    def __init__(self, channel: SealedChannel, part: Part | None) -> None:
        self._channel, self._part = channel, part
        self._reports: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.error: FedsealError | None = None  # what the coordinator itself saw go wrong
        self.blamed: tuple[str, str] | None = None  # who failed first
        self._ended = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True, name="attendant")
        channel.on_report = lambda party, data: self._reports.put((party, data))
        self._thread.start()

    def _run(self) -> None:
        channel = self._channel
        try:
            channel.gather(channel.timeout)
            if self._part is not None:
                self._part(channel)
            while channel.talking:
                if (peer := channel.wait_any(timeout=LOOK)) is not None:
                    data = channel.recv(peer, step=REPORT, max_bytes=MAX_REPORT)
                    self._reports.put((peer, bytes(data)))
            channel.finish()
        except FedsealError as error:
            channel.abort(error)
            self.error = error if self.blamed is None else None
            self._ended = time.monotonic()

    def blame(self, party: str, code: str) -> None:
        """A party has answered that it failed, or does not answer: the others wait for it in vain."""
        if self.blamed is None:
            self.blamed = party, code
        self._channel.abort(JobFailed(code))

    def report(self) -> tuple[str, bytes] | None:
        """The oldest report not yet taken, with its party."""
        try:
            return self._reports.get_nowait()
        except queue.Empty:
            return None

    def given_up(self) -> str:
        """`lost` once the session has failed and the parties have had time to say so."""
        over = self._ended > 0 and time.monotonic() - self._ended > PARTING
        return "lost" if over else ""

    def end(self) -> None:
        """Wait until the thread has ended: with the session, or because it was aborted."""
        self._thread.join(PARTING)


def _pool(told: Mapping[str, Statement]) -> dict[str, str]:
    """One round's metrics from those of its parties: bytes add up, the slowest's seconds count, the rest must agree."""
    values: dict[str, list[str]] = {}
    for statement in told.values():
        for name, text in statement.body["metrics"].items():
            values.setdefault(str(name), []).append(str(text))
    pooled = {}
    for name, texts in values.items():
        if name == "bytes":
            pooled[name] = decimal(sum(map(float, texts)))
        elif name == "seconds":
            pooled[name] = decimal(max(map(float, texts)))
        elif len(set(texts)) == 1:
            pooled[name] = texts[0]
        else:
            raise LedgerBroken(f"the parties report different values of {name}")
    return pooled


def _why(missing: Mapping[str, str], attendant: _Attendant) -> FedsealError:
    """The failure of a session: of the party that failed rather than of those that suffered from it."""
    failed = [(party, code) for party, code in missing.items() if code not in FOLLOWING]
    if not failed and attendant.error is not None:
        return JobFailed(f"the session: {attendant.error}")
    party, code = failed[0] if failed else attendant.blamed or next(iter(missing.items()))
    return ceremony.why(party, code, "in the session")
