"""One party in one run: what it answers to the steps of every kind of job, and what it insists on before it answers.

Before anything is parsed a request is authenticated under the coordinator's pinned card.  Before an update leaves, the
log's checkpoint must extend the one this party saw last and include its own last statement.
"""

from __future__ import annotations

import contextlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.consent.decision import Leave
from clients.consent.ended_keys import check_cards, take_up
from clients.consent.gate import Gate
from clients.part import NodeConfig, bind, own_part
from clients.role import Role, Step
from clients.store import PartyStore, RunState
from fl_core import messages
from fl_core.config import job_from_public
from fl_core.errors import BadMessage, FedsealError, JobFailed
from fl_core.job import Job, Party, public_digest
from fl_core.messages import Packet, digests, field
from fl_core.trust import canonical
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.identity import Card
from fl_core.trust.roster import Roster
from fl_core.trust.rotation import follow_shown
from fl_core.trust.witness import OwnLeaf, StaleProof

NO_LOG = "fedseal/" + "0" * 16


class Participant:
    """A party's side of a run; everything it must remember lies in its store."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.store = PartyStore(config.home, config.party)
        self.log = self.store.log
        self.files = self.store.run(config.run)
        self.state: RunState | None = self.files.load()
        self._role: Role | None = None
        self._roster_held: Roster | None = None
        self.number = 0
        self._asked: dict[str, Any] = {}  # the job of a request to join that may be refused

    @property
    def job(self) -> tuple[str, str]:
        """Name and kind of the run's job; empty before it has joined."""
        view = self.state.facts.get("view", {}) if self.state else self._asked
        return str(view.get("name", "")), str(view.get("kind", ""))

    # ---- every step

    def answer(self, step: str, packet: Packet) -> Packet:
        """Authenticate a request and answer it."""
        self.number = 0
        card = self._coordinator(packet)
        packet.check(card, run=self.config.run, step=step, to=self.config.party)
        steps: dict[str, Step] = {
            messages.JOIN: self._join,
            messages.ROSTER: self._roster,
            messages.WITNESS: self._witness,
            messages.ABANDON: self._abandon,
            messages.CHECK: self._check,
        }
        if step not in messages.STEPS:
            raise BadMessage(f"an unknown step {step!r}")
        if step not in steps:
            steps |= self.role().steps
        if step not in steps:
            raise BadMessage(f"step {step!r} is not of this kind of job")
        reply = steps[step](packet, card)
        if self.state is not None:
            self._gate.after(step, self.state.facts)
        return reply

    @property
    def _gate(self) -> Gate:
        return Gate(self.config, self.store)

    def failure(self, step: str, *, kind: str, error: Exception) -> Packet:
        """A typed reply: code, step, round and topics, nothing of the text."""
        code = error.code if isinstance(error, FedsealError) else "internal"
        body: dict[str, Any] = {"step": step, "round": self.number, "code": code, "blobs": {}}
        if topics := getattr(error, "topics", ()):  # of the owner's refusal, which the ledger shows
            body["topics"] = list(topics)
        extra: dict[str, Any] = {"card": self._card()}
        if isinstance(error, StaleProof):
            body["code"] = "stale"
            extra["size"] = error.size
        return Packet(self.sign(kind, body), {}, extra)

    def _coordinator(self, packet: Packet) -> Card:
        """The coordinator's card: as pinned, or pinned now when a party meets it first."""
        presented = packet.extra.get("coordinator")
        if not isinstance(presented, dict):
            raise BadMessage("a request without the coordinator's card")
        card = Card.from_dict(presented)
        if card.name != messages.COORDINATOR or log_id(card) != packet.statement.log:
            raise BadMessage("a request of another log")
        packet.statement.verify(card)
        self.store.cards.pin(card)
        return card

    def sign(self, kind: str, body: dict[str, Any]) -> Statement:
        """A statement of this party about the run."""
        pinned = self.store.cards.get(messages.COORDINATOR)
        log = log_id(pinned) if pinned is not None else NO_LOG
        return Statement.make(self.store.identity, log=log, kind=kind, run=self.config.run, body=body)

    def _card(self) -> dict[str, Any]:
        """This party's card, introduced by itself."""
        return self.sign("card", {"card": self.store.identity.card.to_dict()}).to_dict()

    def reply(self, step: str, kind: str, body: dict[str, Any], blobs: dict[str, bytes], **extra: Any) -> Packet:
        """Sign and store an answer; it is on disk before it leaves."""
        statement = self.sign(kind, {**body, "step": step, "blobs": digests(blobs)})
        packet = Packet(statement, blobs, extra)
        self.files.keep_reply(step, self.number, packet.to_arrays())
        return packet

    def again(self, step: str, number: int) -> Packet | None:
        """The stored answer to that very question; None where it is to be made.

        Raises `RefusedError` where the owner's grant does not let the run go on.
        """
        if (held := self.files.reply(step, number)) is not None:
            return Packet.from_arrays(held)
        self._gate.before(step, self.running().facts)
        return None

    # ---- joining

    def _join(self, packet: Packet, card: Card) -> Packet:
        view = self._view(packet)
        own = own_part(self.config, packet)
        job, party = bind(self.config, view, own, begun=self.state is not None)
        take_up(self.store, packet, job, card)
        if self.state is not None and "roster" in self.state.facts:
            check_cards(self.store, self.roster().cards.values())
        facts = self.state.facts if self.state is not None else {}
        leave = None if party is None else self._gate.enter(packet, view, job, party, facts)
        extra: dict[str, Any] = {"card": self._card()} | ({} if leave is None else self._gate.shows(leave.grant.id))
        if leave is not None and leave.over:
            return Packet(Statement.from_dict(self._gate.told(facts)), {}, extra)
        role = role_of(self, job, party)
        commitment = self._open(role, job, party, leave)
        if self.state is not None:
            if facts["data"] != commitment:
                raise JobFailed("the data changed since this run began; a run goes on with the same data only")
            return Packet(Statement.from_dict(facts["join"]), {}, extra)
        ephemeral = X25519PrivateKey.generate()
        self.files.keep_secret("ephemeral", ephemeral.private_bytes_raw())
        state = role.start()
        body = {
            "step": messages.JOIN,
            "job": public_digest(view),
            "ephemeral": ephemeral.public_key().public_bytes_raw().hex(),
            "data": commitment,
            "blobs": {},
        }
        if leave is not None:
            body |= self._gate.said(leave)
            state.facts |= {"order": leave.order, "grant": leave.grant.id}
        statement = self.sign("join", body | role.joins(state))
        state.facts |= {"view": view, "own": own, "data": commitment, "join": statement.to_dict()}
        self.files.save(state)
        self.state = state
        return Packet(statement, {}, extra)

    def _open(self, role: Role, job: Job, party: Party | None, leave: Leave | None) -> str:
        """Open the data, and give the use of the grant back where that fails."""
        try:
            commitment = role.enter()
            if party is not None and leave is not None:
                self._gate.check_version(leave, job, party)
        except Exception:
            if leave is not None and leave.new:
                self._gate.release()
            raise
        self._role = role
        return commitment

    def _view(self, packet: Packet) -> Any:
        """The job that a request names."""
        view = canonical.decode(packet.blobs.get("job", b""), max_bytes=messages.MAX_HEAD)
        if public_digest(view) != field(packet.statement.body, "job", str):
            raise BadMessage("the job is not the one the request names")
        if not isinstance(view, dict):
            raise BadMessage("the job is not a table")
        self._asked = view
        return view

    def _check(self, packet: Packet, card: Card) -> Packet:
        """Say whether this party would join, as joining would, and set nothing aside; no count leaves."""
        view = self._view(packet)
        job, party = bind(self.config, view, own_part(self.config, packet), begun=False)
        take_up(self.store, packet, job, card)
        if party is not None:
            self._gate.look(packet, view, job, party)
        found = role_of(self, job, party).previewed()
        body: dict[str, Any] = {"step": messages.CHECK, "blobs": {}, **found}
        with contextlib.suppress(OSError):
            self.files.path.rmdir()  # a check leaves no run behind
        return Packet(self.sign("witness", body), {}, {"card": self._card()})

    def _roster(self, packet: Packet, card: Card) -> Packet:
        state = self.running()
        if (again := self.again(messages.ROSTER, 0)) is not None:
            return again
        if self.answered() >= 0:
            raise BadMessage("a roster after the first round; a run's roster is fixed")
        roster = Roster.parse(packet.blobs.get("roster", b""))
        job = job_from_public(state.facts["view"])
        expected = {p.name: p.key for p in job.parties} | dict.fromkeys(job.train.receivers)
        view = public_digest(state.facts["view"])
        roster.check(run=self.config.run, job=view, expected=expected, me=self.store.identity.card)
        check_cards(self.store, roster.cards.values())
        follow_shown(self.store.cards, packet.extra.get("rotations", []), log=packet.statement.log)
        self.store.cards.pin_all(roster.cards.values())
        state.facts["roster"] = packet.blobs["roster"].decode()
        self.files.save(state)
        kind, body, blobs = self.role().signs(roster)
        return self.reply(messages.ROSTER, kind, {"roster": roster.digest, **body}, blobs)

    def observe(self, packet: Packet, card: Card) -> str:
        """Be a witness: the log extends what was seen and holds this party's last counted statement."""
        extra = packet.extra
        proof = [bytes.fromhex(h) for h in field(extra, "proof", list)]
        mine = None
        if (leaf := extra.get("mine")) is not None:
            path = [bytes.fromhex(h) for h in field(leaf, "proof", list)]
            mine = OwnLeaf(field(leaf, "entry", str).encode(), field(leaf, "seq", int), path)
        sums = packet.statement.body.get("sums", [])
        counted = [(messages.ROUND, s["round"]) for s in sums if self.config.party in s["parties"]]
        for step in (messages.CLOSE, messages.SESSION):
            if self.config.party in packet.statement.body.get(step, []):
                counted = [(step, field(packet.statement.body, "round", int))]
        if counted and mine is None:
            raise BadMessage(f"no proof that this party's statement of round {counted[-1][1]} was recorded")
        if head := self.files.last_head():
            last = Packet.from_arrays({messages.HEAD: head}).statement
            expected = counted and self.files.last_question() == "{} {}".format(*counted[-1])
            if expected or (mine is not None and Entry.decode(mine.entry).statement == last):
                self.store.witness.remember_statement(self.config.run, last)
        note, start = field(extra, "checkpoint", str), field(extra, "start", int)
        return self.store.witness.observe(note, card, proof, mine=mine, start=start, run=self.config.run)

    def answered(self) -> int:
        """The last round this party answered; -1 before the first."""
        step, _, number = self.files.last_question().partition(" ")
        return int(number) if step in (messages.ROUND, messages.CLOSE, messages.SESSION) else -1

    def _abandon(self, packet: Packet, card: Card) -> Packet:
        """The run stopped short: give back the privacy it set aside and did not spend.  It can still be resumed."""
        self.store.budget.close(self.config.run)
        self._gate.release()
        return Packet(self.sign("witness", {"step": messages.ABANDON, "blobs": {}}), {}, {"card": self._card()})

    def _witness(self, packet: Packet, card: Card) -> Packet:
        cosignature = self.observe(packet, card)
        statement = self.sign("witness", {"step": messages.WITNESS, "blobs": {}})
        return Packet(statement, {}, {"cosignature": cosignature})

    def roster(self) -> Roster:
        """The roster that all have signed, or are to sign."""
        if self._roster_held is None:
            self._roster_held = Roster.parse(self.running().facts["roster"].encode())
        return self._roster_held

    def running(self) -> RunState:
        """What this party holds of the run.  Raises `JobFailed`."""
        if self.state is None:
            raise JobFailed("this party holds nothing of the run; it must join first")
        return self.state

    def role(self) -> Role:
        """What this party does in the run; made again in a process that has not seen it."""
        if self._role is None:
            facts = self.running().facts
            job, party = bind(self.config, facts["view"], facts["own"], begun=True)
            self._role = role_of(self, job, party)
        return self._role


def role_of(home: Participant, job: Job, party: Party | None) -> Role:
    """The role that a kind of job gives; what it needs is imported when it is met."""
    if job.kind == "horizontal":
        from clients.training import Training

        return Training(home, job, party)
    from clients.session import Attendance

    return Attendance(home, job, party)
