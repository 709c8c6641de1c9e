"""The round loop: push, take each reply as it comes, add it to one running sum, drop it.

A round `m` asks every trainer to apply the sums it lacks, evaluate, train and upload; its sum goes to disk and its
statements, with the coordinator's `aggregate`, into the ledger in one transaction.  The checkpoint over them travels
with round `m + 1`, whose replies co-sign it: a round whose replies do not bring enough co-signatures does not count, so
round `m + 2` never starts before round `m` is final.  Every step repeats safely; a resumed run starts at the first
round without an `aggregate` entry.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fl_core import messages
from fl_core.crypto.aggregation import Aggregator, make_aggregator
from fl_core.errors import BadMessage, JobFailed, LedgerBroken
from fl_core.files import private_dir, write_atomic
from fl_core.messages import Packet
from fl_core.records import decimal
from fl_core.trust.entry import Statement
from strategies import ceremony
from strategies.coordination import Coordination, Event
from strategies.dispatch import Dispatcher, Request
from strategies.witnessed import Collected, Witnessed

KEEP_SUMS = 16  # rounds a party may miss and still catch up


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the last record's metrics and the digest of the model all trainers hold."""

    metrics: dict[str, float]
    model_digest: str
    published: bytes | None


class Rounds:
    """One run's rounds at the coordinator."""

    def __init__(self, dispatcher: Dispatcher, co: Coordination) -> None:
        self.dispatcher, self.co = dispatcher, co
        self.log = Witnessed(dispatcher, co)
        self.history = self.log.history
        self.ceremony = ceremony.hold(dispatcher, co)
        self.trainers = self.ceremony.roster.contributors
        self._pools = bool(self.ceremony.first_join("limbs"))
        self.sums = private_dir(co.workdir / "sums")
        self.published: bytes | None = None
        self._newest: tuple[int, bytes] = (-1, b"")

    def run(self) -> Outcome:
        """All rounds, the evaluation of the last model, the closing, the last co-signatures."""
        self.log.record_due()
        last = self.history.last
        plan = messages.schedule(self.co.job.train.rounds, standardize=self._pools)
        for number, act in plan:
            if last is None or number > last:
                self._round(number, act)
        closing = plan[-1][0] + 1
        self._close(closing)
        models = set(self.history.models.values())
        if len(models) != 1 or any(self.history.disagree(n) for n, _ in plan):
            raise LedgerBroken(f"the parties hold {len(models)} different final models or report different sums")
        model = next(iter(models))
        if not self.history.ended:
            metrics = {k: decimal(v) for k, v in self.metrics().items()}
            self.log.commit([self.co.say("end", {"status": "done", "model": model, "metrics": metrics})])
        body = {"round": closing, messages.CLOSE: sorted(self.history.models)}
        self.log.witness(closing, self.trainers, body)
        self.co.progress(Event("closed", closing, {"model": model}))
        return Outcome(self.metrics(), model, self.published)

    def metrics(self) -> dict[str, float]:
        """The summary's numbers, from what the ledger holds."""
        rounds = self.co.job.train.rounds
        final = self.history.pooled(rounds + 1) or {}
        out = {k: float(v) for k, v in final.items() if k in ("accuracy", "loss")}
        trained = [a for a in self.history.aggregates.values() if a["act"] == messages.TRAIN]
        if trained:
            out["bytes_up"] = float(statistics.median(a["bytes_up"] for a in trained))
            out["bytes_down"] = float(statistics.median(a["bytes_down"] for a in trained))
            out["round_seconds"] = float(statistics.median(float(a["seconds"]) for a in trained))
            if epsilons := [float(a["epsilon"]) for a in trained if "epsilon" in a]:
                out["epsilon"] = max(epsilons)
        return out

    # ---- one round

    def _round(self, number: int, act: str) -> None:
        started = time.monotonic()
        total: list[Aggregator] = []
        sizes: list[int] = []

        def take(packet: Packet) -> None:
            body = packet.statement.body
            if packet.statement.kind != "update" or body.get("round") != number or body.get("act") != act:
                raise BadMessage(f"an answer for round {body.get('round')!r}, not {number}")
            if not total:
                total.append(self._aggregator(act, float(body.get("clip", "1.0"))))
            total[0].absorb(packet.blobs["update"])
            sizes.append(len(packet.blobs["update"]))

        body = {"round": number, "act": act}
        got = self._collect(messages.ROUND, number, body, take)
        result = total[0].result()
        write_atomic(self.sums / f"{number}.bin", result)
        order = [n for n in self.trainers if n in got.statements]
        facts: dict[str, Any] = {
            **body,
            "parties": order,
            "missing": sorted(got.missing),
            "sum": messages.sha256(result),
            "bytes_up": int(statistics.median(sizes)),
            "bytes_down": int(statistics.median(self.dispatcher.sent_bytes[n] for n in order)),
            "seconds": decimal(time.monotonic() - started),
        }
        if epsilons := [s.body["epsilon"] for s in got.statements.values() if "epsilon" in s.body]:
            facts["epsilon"] = max(epsilons, key=float)
        self.log.commit([*(got.statements[n] for n in order), self.co.say("aggregate", facts)])
        self.log.cosigned(got)
        (self.sums / f"{number - KEEP_SUMS}.bin").unlink(missing_ok=True)
        self.co.progress(Event("round", number, {**facts, "why": dict(got.missing)}))
        self.log.record_due()

    def _collect(self, step: str, number: int, body: dict[str, Any], take: Callable[[Packet], None]) -> Collected:
        """Ask every trainer; at least `min_parties` must answer."""
        got = self.log.collect(
            step,
            number,
            self.trainers,
            lambda party, proofs: self._request(party, number, body, proofs),
            take,
            timeout=self.co.job.train.round_timeout,
            max_blob=self._max_blob(),
        )
        self.log.require(self.co.job.min_parties, f"round {number}", self.trainers, got)
        return got

    def _aggregator(self, act: str, clip: float) -> Aggregator:
        lengths = {messages.TRAIN: "parameters", messages.STANDARDIZE: "limbs"}
        length = int(self.ceremony.first_join(lengths[act])) if act in lengths else 0
        scheme = self.co.job.encryption
        return make_aggregator(
            scheme.profile if scheme.scheme == "ckks" else "NONE",
            parties=len(self.trainers),
            length=length,
            tail=messages.TAIL,
            key_id=self.ceremony.key_id,
            clip=clip,
        )

    # ---- requests

    def _max_blob(self) -> int:
        model = int(self.ceremony.first_join("parameters"))
        return max(1 << 20, 64 * (model + int(self.ceremony.first_join("limbs")))) + (1 << 20)

    def _request(self, party: str, number: int, body: dict[str, Any], proofs: dict[str, Any]) -> Request:
        applied = self.history.applied.get(party, -1 if self._pools else 0)
        sums, blobs = [], {}
        for n in range(applied + 1, number):
            aggregate = self.history.aggregates[n]
            path = self.sums / f"{n}.bin"
            if not path.exists():
                raise JobFailed(f"party {party} missed more than {KEEP_SUMS} rounds and cannot catch up")
            sums.append({"round": n, "parties": aggregate["parties"]})
            blobs[f"sum.{n}"] = self._sum(n)
        extra = dict(proofs)
        if party not in self.history.last_statement:  # it has not shown that it holds the key
            extra["ceremony"] = [s.to_dict() for s in self.ceremony.statements]
            if party in self.ceremony.sealed:
                blobs["key"] = self.ceremony.sealed[party]
        return Request({**body, "sums": sums}, blobs, extra)

    def _sum(self, number: int) -> bytes:
        """A sum from disk; the newest one stays in memory and is shared by all requests."""
        if self._newest[0] != number:
            self._newest = (number, (self.sums / f"{number}.bin").read_bytes())
        return self._newest[1]

    # ---- the end

    def _close(self, number: int) -> None:
        """Every trainer writes its model and forgets the keys; one of them seals the model to the receivers."""
        train, body = self.co.job.train, {"round": number, "publish": self.co.job.train.publish}
        if train.receivers or train.publish:
            body["deliver"] = self.history.aggregates[number - 1]["parties"][0]
        sealed: dict[str, bytes] = {}
        got = self._collect(messages.CLOSE, number, body, lambda packet: sealed.update(packet.blobs))
        self.log.commit([got.statements[n] for n in self.trainers if n in got.statements])
        self.log.cosigned(got)
        self.log.record_due()
        self.published = sealed.get("model")
        self._deliver(number, sealed, list(got.statements.values()))

    def _deliver(self, number: int, sealed: dict[str, bytes], closing: list[Statement]) -> None:
        """Hand each receiver the model a trainer sealed to it."""
        receivers = list(self.co.job.train.receivers)
        if missing := [n for n in receivers if f"model.{n}" not in sealed]:
            raise JobFailed(f"round {number}: no trainer sealed the model to {', '.join(missing)}")
        said = [s.to_dict() for s in closing]
        receipts = []
        for reply in self.dispatcher.ask(
            messages.DELIVER,
            receivers,
            lambda n: Request({"round": number}, {"model": sealed[f"model.{n}"]}, {"closing": said}),
            timeout=self.co.step_timeout,
            max_blob=0,
            number=number,
        ):
            if not reply.ok or reply.packet is None:
                raise JobFailed(f"receiver {reply.party} did not take the model: {reply.code}")
            receipts.append(reply.packet.statement)
        self.log.commit(receipts)
