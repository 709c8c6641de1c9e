"""One party in one horizontal run: what it answers to each step, and what it insists on before it answers.

Who learns what (scheme "ckks"): the coordinator relays and adds ciphertexts; it sees who took part, sizes, times, each
party's ε and what all parties decrypt alike (pooled accuracy and loss), never an update, a count or one party's metric.
Every party, holding the run's group key, learns each round's *sum* over at least `min_parties` contributions.  A party
that colludes with the coordinator can read the others' updates; the collusion-safe mask will close this.

Before anything is parsed a request is authenticated under the coordinator's pinned card.  Before an update leaves, the
log's checkpoint must extend the one this party saw last and include its own last statement.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.group_key import GroupKey, profile_of
from clients.guard import admit, preview
from clients.part import NodeConfig, bind, own_part
from clients.store import PartyStore, RunState
from clients.work import Work
from fl_core import messages
from fl_core.config import job_from_public, public_digest
from fl_core.crypto.sealing import key_info, open_sealed, seal
from fl_core.errors import BadMessage, FedsealError, JobFailed, WrongKey
from fl_core.files import write_atomic
from fl_core.messages import Packet, digests, field
from fl_core.trust import canonical
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.identity import Card
from fl_core.trust.roster import Roster
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
        self._work: Work | None = None
        self._roster_held: Roster | None = None
        self._group_key: GroupKey | None = None
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
        steps = {
            messages.JOIN: self._join,
            messages.ROSTER: self._roster,
            messages.ROUND: self._round,
            messages.CLOSE: self._close,
            messages.DELIVER: self._deliver,
            messages.WITNESS: self._witness,
            messages.ABANDON: self._abandon,
            messages.CHECK: self._check,
        }
        if step not in steps:
            raise BadMessage(f"an unknown step {step!r}")
        return steps[step](packet, card)

    def failure(self, step: str, *, kind: str, error: Exception) -> Packet:
        """A typed reply: code, step and round, nothing of the text."""
        code = error.code if isinstance(error, FedsealError) else "internal"
        body = {"step": step, "round": self.number, "code": code, "blobs": {}}
        extra: dict[str, Any] = {"card": self._card()}
        if isinstance(error, StaleProof):
            body["code"] = "stale"
            extra["size"] = error.size
        return Packet(self._sign(kind, body), {}, extra)

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

    def _sign(self, kind: str, body: dict[str, Any]) -> Statement:
        pinned = self.store.cards.get(messages.COORDINATOR)
        log = log_id(pinned) if pinned is not None else NO_LOG
        return Statement.make(self.store.identity, log=log, kind=kind, run=self.config.run, body=body)

    def _card(self) -> dict[str, Any]:
        """This party's card, introduced by itself."""
        return self._sign("card", {"card": self.store.identity.card.to_dict()}).to_dict()

    def _reply(self, step: str, kind: str, body: dict[str, Any], blobs: dict[str, bytes], **extra: Any) -> Packet:
        """Sign and store an answer; it is on disk before it leaves."""
        statement = self._sign(kind, {**body, "step": step, "blobs": digests(blobs)})
        packet = Packet(statement, blobs, extra)
        self.files.keep_reply(step, self.number, packet.to_arrays())
        return packet

    def _again(self, step: str, number: int) -> Packet | None:
        held = self.files.reply(step, number)
        return Packet.from_arrays(held) if held is not None else None

    # ---- joining

    def _join(self, packet: Packet, card: Card) -> Packet:
        view = self._view(packet)
        own = own_part(self.config, packet)
        job, party = bind(self.config, view, own, begun=self.state is not None)
        admission = admit(job, party, self.store, self.config.run, self.config.policy)
        extra = {"card": self._card()}
        if party is not None:
            self._work = Work(job, party, admission, self.store, self.config.run)
        if self.state is not None:
            if self.state.facts["data"] != admission.commitment:
                raise JobFailed("the data changed since this run began; a run goes on with the same data only")
            return Packet(Statement.from_dict(self.state.facts["join"]), {}, extra)
        ephemeral = X25519PrivateKey.generate()
        self.files.keep_secret("ephemeral", ephemeral.private_bytes_raw())
        state = self._work.start() if self._work else RunState(0, np.zeros(0))
        body: dict[str, Any] = {
            "step": messages.JOIN,
            "job": public_digest(view),
            "role": "trainer" if self._work else "receiver",
            "ephemeral": ephemeral.public_key().public_bytes_raw().hex(),
            "data": admission.commitment,
            "blobs": {},
        }
        if self._work is not None:
            data = self._work.data
            body |= {"parameters": len(state.weights), "limbs": self._work.limbs}
            body |= {"schema": data.schema_digest, "classes": data.classes_digest}
        statement = self._sign("join", body)
        state.facts |= {
            "view": view,
            "own": own,
            "data": admission.commitment,
            "join": statement.to_dict(),
        }
        self.files.save(state)
        self.state = state
        return Packet(statement, {}, extra)

    def _view(self, packet: Packet) -> Any:
        """The job that a request names."""
        view = canonical.decode(packet.blobs.get("job", b""), max_bytes=messages.MAX_HEAD)
        if public_digest(view) != field(packet.statement.body, "job", str):
            raise BadMessage("the job is not the one the request names")
        self._asked = view
        return view

    def _check(self, packet: Packet, card: Card) -> Packet:
        """Say whether this party would join, as joining would, and set nothing aside; no count leaves."""
        view = self._view(packet)
        job, party = bind(self.config, view, own_part(self.config, packet), begun=False)
        body: dict[str, Any] = {"step": messages.CHECK, "blobs": {}, "schema": "", "classes": ""}
        if party is not None:
            data = preview(job, party, self.store.path, self.config.policy).data
            body |= {"schema": data.schema_digest, "classes": data.classes_digest}
        with contextlib.suppress(OSError):
            self.files.path.rmdir()  # a check leaves no run behind
        return Packet(self._sign("witness", body), {}, {"card": self._card()})

    def _roster(self, packet: Packet, card: Card) -> Packet:
        state = self._running()
        if (again := self._again(messages.ROSTER, 0)) is not None:
            return again
        if self._answered() >= 0:
            raise BadMessage("a roster after the first round; a run's roster is fixed")
        roster = Roster.parse(packet.blobs.get("roster", b""))
        job = job_from_public(state.facts["view"])
        expected = {p.name: p.key for p in job.parties} | dict.fromkeys(job.train.receivers)
        view = public_digest(state.facts["view"])
        roster.check(run=self.config.run, job=view, expected=expected, me=self.store.identity.card)
        self.store.cards.pin_all(roster.cards.values())
        state.facts["roster"] = packet.blobs["roster"].decode()
        self.files.save(state)
        body: dict[str, Any] = {"roster": roster.digest}
        if roster.key_maker != self.config.party:
            return self._reply(messages.ROSTER, "roster", body, {})
        job = self._the_work().job
        group = GroupKey.make(job, roster, scale=self._the_work().scale())
        self.files.keep_secret("key", group.to_bytes())
        body |= {"key": group.cipher.key_id, "context": group.cipher.context_digest}
        blobs = group.sealed_to_others(roster, run=self.config.run)
        return self._reply(messages.ROSTER, "key", body, blobs)

    # ---- rounds

    def _round(self, packet: Packet, card: Card) -> Packet:
        state, body = self._running(), packet.statement.body
        self.number, act = field(body, "round", int), field(body, "act", str)
        cosignature = self._observe(packet, card)
        if (again := self._again(messages.ROUND, self.number)) is not None:
            return replace(again, extra={"cosignature": cosignature})
        if self.number <= (answered := self._answered()):
            raise BadMessage(f"round {self.number} again, after round {answered}")
        if self._the_work().schedule.get(self.number) != act:
            raise BadMessage(f"round {self.number} to {act}: not in the job")
        roster = self._opened_roster()
        key = self._key(packet, roster)
        pooled = self._apply(packet, key, roster)
        said: dict[str, Any] = {
            "round": self.number,
            "act": act,
            "applied": state.applied,
            "key": key.cipher.key_id,
        }
        if pooled is not None:
            said["pooled"] = pooled
        work = self._the_work()
        vector, tail = work.contribution(act, self.number, state, scale=key.scale)
        clip = work.clip(act, state)
        if profile_of(work.job).scheme == "bfv":
            said["clip"] = repr(clip)
            vector = np.clip(vector, -clip, clip)
        blobs = {"update": key.cipher.encrypt(vector, tail, clip=clip)}
        if (epsilon := work.commit_privacy(act, self.number)) is not None:
            said["epsilon"] = epsilon
        reply = self._reply(messages.ROUND, "update", said, blobs)
        return replace(reply, extra={"cosignature": cosignature})

    def _observe(self, packet: Packet, card: Card) -> str:
        """Be a witness: the log extends what was seen and holds this party's last counted statement."""
        extra = packet.extra
        proof = [bytes.fromhex(h) for h in field(extra, "proof", list)]
        mine = None
        if (leaf := extra.get("mine")) is not None:
            path = [bytes.fromhex(h) for h in field(leaf, "proof", list)]
            mine = OwnLeaf(field(leaf, "entry", str).encode(), field(leaf, "seq", int), path)
        sums = packet.statement.body.get("sums", [])
        counted = [(messages.ROUND, s["round"]) for s in sums if self.config.party in s["parties"]]
        if self.config.party in packet.statement.body.get("closed", []):
            counted = [(messages.CLOSE, field(packet.statement.body, "round", int))]
        if counted and mine is None:
            raise BadMessage(f"no proof that this party's statement of round {counted[-1][1]} was recorded")
        if head := self.files.last_head():
            last = Packet.from_arrays({messages.HEAD: head}).statement
            expected = counted and self.files.last_question() == "{} {}".format(*counted[-1])
            if expected or (mine is not None and Entry.decode(mine.entry).statement == last):
                self.store.witness.remember_statement(self.config.run, last)
        note, start = field(extra, "checkpoint", str), field(extra, "start", int)
        return self.store.witness.observe(note, card, proof, mine=mine, start=start, run=self.config.run)

    def _key(self, packet: Packet, roster: Roster) -> GroupKey:
        """The group key: as kept, or unsealed once every party's signature over the roster is there."""
        if self._group_key is None and (held := self.files.secret("key")) is not None:
            self._group_key = GroupKey.from_bytes(held)
        if self._group_key is None:
            ephemeral, sealed = self.files.secret("ephemeral"), packet.blobs.get("key")
            if ephemeral is None or sealed is None:
                raise WrongKey("no sealed group key for this party")
            run, me, statements = self.config.run, self.config.party, field(packet.extra, "ceremony", list)
            maker = roster.check_ceremony(statements, run=run, sealed=messages.sha256(sealed), me=me)
            private, job = X25519PrivateKey.from_private_bytes(ephemeral), self._the_work().job
            self._group_key = GroupKey.unseal(sealed, private, roster, run=run, me=me, maker=maker, job=job)
            self.files.keep_secret("key", self._group_key.to_bytes())
            self.files.drop_secret("ephemeral")
        return self._group_key

    def _apply(self, packet: Packet, key: GroupKey, roster: Roster) -> dict[str, Any] | None:
        """Apply every sum this party has not seen; returns what the newest one pools."""
        state, work = self._running(), self._the_work()
        pooled = None
        for item in field(packet.statement.body, "sums", list):
            number, names = field(item, "round", int), field(item, "parties", list)
            if number <= state.applied:
                continue
            if number != state.applied + 1:
                raise BadMessage(f"sum {number} after sum {state.applied}: one is missing")
            if not set(names) <= set(roster.trainers) or len(set(names)) != len(names):
                raise BadMessage(f"sum {number} names parties outside the roster")
            if len(names) < work.job.min_parties:
                raise BadMessage(f"sum {number} of {len(names)} parties; allowed: {work.job.min_parties} or more")
            act = work.schedule[number]
            vector, tail = key.cipher.decrypt(
                packet.blobs[f"sum.{number}"], count=len(names), clip=work.clip(act, state)
            )
            metrics = work.apply(act, vector, tail, state)
            state.applied = number
            pooled = {"round": number, "metrics": metrics} if metrics else None
            self.files.save(state)  # before an answer that says so is kept
        return pooled

    def _answered(self) -> int:
        """The last round this party answered; -1 before the first."""
        step, _, number = self.files.last_question().partition(" ")
        return int(number) if step in (messages.ROUND, messages.CLOSE) else -1

    # ---- the end

    def _close(self, packet: Packet, card: Card) -> Packet:
        self.number = field(packet.statement.body, "round", int)
        cosignature = self._observe(packet, card)
        if (again := self._again(messages.CLOSE, self.number)) is None:
            state, roster = self._running(), self._opened_roster()
            pooled = self._apply(packet, self._key(packet, roster), roster)
            path = self.config.out / self.config.party / "model.pt"
            model = self._the_work().save_model(path, state)
            body: dict[str, Any] = {"round": self.number, "applied": state.applied, "model": model}
            if pooled is not None:
                body["pooled"] = pooled
            blobs = {}
            if packet.statement.body.get("deliver") == self.config.party:
                blobs = self._model_for(roster, path.read_bytes())
            again = self._reply(messages.CLOSE, "close", body, blobs)
        self.store.budget.close(self.config.run)
        self._end()
        return replace(again, extra={"cosignature": cosignature})

    def _model_for(self, roster: Roster, model: bytes) -> dict[str, bytes]:
        """The final model, sealed to each receiver, and in clear for MLflow's registry only when the job says so."""
        job = job_from_public(self._running().facts["view"])
        blobs = {"model": model} if job.train.publish else {}
        for name in job.train.receivers:
            info = key_info(self.config.run, roster.digest, self.config.party, name)
            blobs[f"model.{name}"] = seal(roster.ephemerals[name], model, info=info, aad=b"model")
        return blobs

    def _deliver(self, packet: Packet, card: Card) -> Packet:
        """A receiver takes the model: its maker signed the sealed bytes, and every trainer the same weights."""
        roster = self._opened_roster()
        said = [Statement.from_dict(dict(table)) for table in field(packet.extra, "closing", list)]
        for statement in said:
            statement.verify(roster.cards[statement.by])
        if {s.by for s in said} - set(roster.trainers) or len({s.body.get("model") for s in said}) != 1:
            raise BadMessage("the trainers do not all name the same final model")
        sealed, me = packet.blobs.get("model", b""), self.config.party
        makers = [s for s in said if s.body.get("blobs", {}).get(f"model.{me}") == messages.sha256(sealed)]
        ephemeral = self.files.secret("ephemeral")
        if not makers or ephemeral is None:
            raise BadMessage("no trainer signed the model sealed to this party")
        info = key_info(self.config.run, roster.digest, makers[0].by, me)
        private = X25519PrivateKey.from_private_bytes(ephemeral)
        write_atomic(self.config.out / me / "model.pt", open_sealed(private, sealed, info=info, aad=b"model"))
        reply = self._reply(messages.DELIVER, "receipt", {"model": said[0].body["model"]}, {})
        self._end()
        return reply

    def _abandon(self, packet: Packet, card: Card) -> Packet:
        """The run stopped short: give back the privacy it set aside and did not spend.  It can still be resumed."""
        self.store.budget.close(self.config.run)
        return Packet(self._sign("witness", {"step": messages.ABANDON, "blobs": {}}), {}, {"card": self._card()})

    def _end(self) -> None:
        """Forget keys and weights; what remains answers the same questions again."""
        state = self._running()
        state.weights, state.arrays = np.zeros(0), {}
        self.files.save(state)
        for name in ("key", "ephemeral"):
            self.files.drop_secret(name)

    def _witness(self, packet: Packet, card: Card) -> Packet:
        cosignature = self._observe(packet, card)
        statement = self._sign("witness", {"step": messages.WITNESS, "blobs": {}})
        return Packet(statement, {}, {"cosignature": cosignature})

    def _opened_roster(self) -> Roster:
        if self._roster_held is None:
            self._roster_held = Roster.parse(self._running().facts["roster"].encode())
        return self._roster_held

    def _running(self) -> RunState:
        if self.state is None:
            raise JobFailed("this party holds nothing of the run; it must join first")
        return self.state

    def _the_work(self) -> Work:
        """Data and model, loaded again when this process has not seen them."""
        if self._work is None:
            facts = self._running().facts
            job, party = bind(self.config, facts["view"], facts["own"], begun=True)
            if party is None:
                raise BadMessage("a receiver takes no part in rounds")
            admission = admit(job, party, self.store, self.config.run, self.config.policy)
            self._work = Work(job, party, admission, self.store, self.config.run)
        return self._work
