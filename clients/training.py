"""A party in horizontal training: what it answers in each round, and the model it ends with.

Who learns what (scheme "ckks"): the coordinator relays and adds ciphertexts; it sees who took part, sizes, times, each
party's ε and what all parties decrypt alike (pooled accuracy and loss), never an update, a count or one party's metric.
Every party, holding the run's group key, learns each round's *sum* over at least `min_parties` contributions.  A party
that colludes with the coordinator can read the others' updates; the collusion-safe mask will close this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.group_key import GroupKey, profile_of
from clients.guard import admit, preview
from clients.role import Role
from clients.store import RunState
from clients.work import Work
from fl_core import messages
from fl_core.crypto.sealing import key_info, open_sealed, seal
from fl_core.errors import BadMessage, WrongKey
from fl_core.files import write_atomic
from fl_core.messages import Packet, field
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card
from fl_core.trust.roster import Roster


class Training(Role):
    """A trainer, or a receiver of the model (`party` is None)."""

    _work: Work | None = None
    _group_key: GroupKey | None = None

    @property
    def steps(self) -> dict[str, Any]:
        """As `Role.steps`."""
        return {messages.ROUND: self._round, messages.CLOSE: self._close, messages.DELIVER: self._deliver}

    # ---- joining

    def enter(self) -> str:
        """Open the data and set privacy aside; a receiver has none."""
        return "" if self.party is None else self._the_work().commitment

    def start(self) -> RunState:
        """The state before the first round."""
        return RunState(0, np.zeros(0)) if self.party is None else self._the_work().start()

    def joins(self, state: RunState) -> dict[str, Any]:
        """The model's size and digests of columns and classes, which all trainers must share."""
        if self.party is None:
            return {"role": "receiver"}
        work = self._the_work()
        sizes = {"parameters": len(state.weights), "limbs": work.limbs}
        return {"role": "trainer", **sizes, "schema": work.data.schema_digest, "classes": work.data.classes_digest}

    def previewed(self) -> dict[str, Any]:
        """The same digests, with nothing set aside."""
        if self.party is None:
            return {"schema": "", "classes": ""}
        data = preview(self.job, self.party, self.home.store.path, self.home.config.policy).data
        return {"schema": data.schema_digest, "classes": data.classes_digest}

    def signs(self, roster: Roster) -> tuple[str, dict[str, Any], dict[str, bytes]]:
        """The key maker makes the group key and seals it to the others."""
        if roster.key_maker != self.home.config.party:
            return "roster", {}, {}
        group = GroupKey.make(self.job, roster, scale=self._the_work().scale())
        self.home.files.keep_secret("key", group.to_bytes())
        body = {"key": group.cipher.key_id, "context": group.cipher.context_digest}
        return "key", body, group.sealed_to_others(roster, run=self.home.config.run)

    # ---- rounds

    def _round(self, packet: Packet, card: Card) -> Packet:
        state, body = self.home.running(), packet.statement.body
        self.home.number, act = field(body, "round", int), field(body, "act", str)
        cosignature = self.home.observe(packet, card)
        if (again := self.home.again(messages.ROUND, self.home.number)) is not None:
            return replace(again, extra={"cosignature": cosignature})
        if self.home.number <= (answered := self.home.answered()):
            raise BadMessage(f"round {self.home.number} again, after round {answered}")
        if self._the_work().schedule.get(self.home.number) != act:
            raise BadMessage(f"round {self.home.number} to {act}: not in the job")
        roster = self.home.roster()
        key = self._key(packet, roster)
        pooled = self._apply(packet, key, roster)
        said: dict[str, Any] = {
            "round": self.home.number,
            "act": act,
            "applied": state.applied,
            "key": key.cipher.key_id,
        }
        if pooled is not None:
            said["pooled"] = pooled
        work = self._the_work()
        vector, tail = work.contribution(act, self.home.number, state, scale=key.scale)
        clip = work.clip(act, state)
        if profile_of(work.job).scheme == "bfv":
            said["clip"] = repr(clip)
            vector = np.clip(vector, -clip, clip)
        blobs = {"update": key.cipher.encrypt(vector, tail, clip=clip)}
        if (epsilon := work.commit_privacy(act, self.home.number)) is not None:
            said["epsilon"] = epsilon
        reply = self.home.reply(messages.ROUND, "update", said, blobs)
        return replace(reply, extra={"cosignature": cosignature})

    def _key(self, packet: Packet, roster: Roster) -> GroupKey:
        """The group key: as kept, or unsealed once every party's signature over the roster is there."""
        if self._group_key is None and (held := self.home.files.secret("key")) is not None:
            self._group_key = GroupKey.from_bytes(held)
        if self._group_key is None:
            ephemeral, sealed = self.home.files.secret("ephemeral"), packet.blobs.get("key")
            if ephemeral is None or sealed is None:
                raise WrongKey("no sealed group key for this party")
            run, me, statements = self.home.config.run, self.home.config.party, field(packet.extra, "ceremony", list)
            maker = roster.check_ceremony(statements, run=run, sealed=messages.sha256(sealed), me=me)
            private, job = X25519PrivateKey.from_private_bytes(ephemeral), self._the_work().job
            self._group_key = GroupKey.unseal(sealed, private, roster, run=run, me=me, maker=maker, job=job)
            self.home.files.keep_secret("key", self._group_key.to_bytes())
            self.home.files.drop_secret("ephemeral")
        return self._group_key

    def _apply(self, packet: Packet, key: GroupKey, roster: Roster) -> dict[str, Any] | None:
        """Apply every sum this party has not seen; returns what the newest one pools."""
        state, work = self.home.running(), self._the_work()
        pooled = None
        for item in field(packet.statement.body, "sums", list):
            number, names = field(item, "round", int), field(item, "parties", list)
            if number <= state.applied:
                continue
            if number != state.applied + 1:
                raise BadMessage(f"sum {number} after sum {state.applied}: one is missing")
            if not set(names) <= set(roster.contributors) or len(set(names)) != len(names):
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
            self.home.files.save(state)  # before an answer that says so is kept
        return pooled

    # ---- the end

    def _close(self, packet: Packet, card: Card) -> Packet:
        self.home.number = field(packet.statement.body, "round", int)
        cosignature = self.home.observe(packet, card)
        if (again := self.home.again(messages.CLOSE, self.home.number)) is None:
            state, roster = self.home.running(), self.home.roster()
            pooled = self._apply(packet, self._key(packet, roster), roster)
            path = self.home.config.out / self.home.config.party / "model.pt"
            model = self._the_work().save_model(path, state)
            body: dict[str, Any] = {"round": self.home.number, "applied": state.applied, "model": model}
            if pooled is not None:
                body["pooled"] = pooled
            blobs = {}
            if packet.statement.body.get("deliver") == self.home.config.party:
                blobs = self._model_for(roster, path.read_bytes())
            again = self.home.reply(messages.CLOSE, "close", body, blobs)
        self.home.store.budget.close(self.home.config.run)
        self._end()
        return replace(again, extra={"cosignature": cosignature})

    def _model_for(self, roster: Roster, model: bytes) -> dict[str, bytes]:
        """The final model, sealed to each receiver, and in clear for MLflow's registry only when the job says so."""
        blobs = {"model": model} if self.job.train.publish else {}
        for name in self.job.train.receivers:
            info = key_info(self.home.config.run, roster.digest, self.home.config.party, name)
            blobs[f"model.{name}"] = seal(roster.ephemerals[name], model, info=info, aad=b"model")
        return blobs

    def _deliver(self, packet: Packet, card: Card) -> Packet:
        """A receiver takes the model: its maker signed the sealed bytes, and every trainer the same weights."""
        roster = self.home.roster()
        said = [Statement.from_dict(dict(table)) for table in field(packet.extra, "closing", list)]
        for statement in said:
            statement.verify(roster.cards[statement.by])
        if {s.by for s in said} - set(roster.contributors) or len({s.body.get("model") for s in said}) != 1:
            raise BadMessage("the trainers do not all name the same final model")
        sealed, me = packet.blobs.get("model", b""), self.home.config.party
        makers = [s for s in said if s.body.get("blobs", {}).get(f"model.{me}") == messages.sha256(sealed)]
        ephemeral = self.home.files.secret("ephemeral")
        if not makers or ephemeral is None:
            raise BadMessage("no trainer signed the model sealed to this party")
        info = key_info(self.home.config.run, roster.digest, makers[0].by, me)
        private = X25519PrivateKey.from_private_bytes(ephemeral)
        write_atomic(self.home.config.out / me / "model.pt", open_sealed(private, sealed, info=info, aad=b"model"))
        reply = self.home.reply(messages.DELIVER, "receipt", {"model": said[0].body["model"]}, {})
        self._end()
        return reply

    def _end(self) -> None:
        """Forget keys and weights; what remains answers the same questions again."""
        state = self.home.running()
        state.weights, state.arrays = np.zeros(0), {}
        self.home.files.save(state)
        for name in ("key", "ephemeral"):
            self.home.files.drop_secret(name)

    def _the_work(self) -> Work:
        """Data and model, loaded again when this process has not seen them."""
        if self._work is None:
            if self.party is None:
                raise BadMessage("a receiver takes no part in rounds")
            home = self.home
            admission = admit(self.job, self.party, home.store, home.config.run, home.config.policy)
            self._work = Work(self.job, self.party, admission, home.store, home.config.run)
        return self._work
