"""The coordinator's side of the ledger within a run: requests carry its checkpoint, replies carry co-signatures.

What parties sign is committed with the coordinator's own statement in one transaction.  The checkpoint over it travels
with the next question, whose replies co-sign it.  Every step repeats safely: nothing is logged twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fl_core import messages
from fl_core.errors import BadMessage, FedsealError, JobFailed
from fl_core.messages import Packet
from fl_core.trust.checkpoint import parse_checkpoint, parse_note, verify_cosignature
from fl_core.trust.entry import Statement
from strategies.coordination import Coordination, Event
from strategies.dispatch import Dispatcher, Request
from strategies.history import History

WITNESS_TRIES = 3
Build = Callable[[str, dict[str, Any]], Request]


class Collected:
    """What a step's replies brought."""

    def __init__(self) -> None:
        self.statements: dict[str, Statement] = {}
        self.cosignatures: dict[int, dict[str, str]] = {}  # by size of the checkpoint
        self.missing: dict[str, str] = {}


class Witnessed:
    """One run's history, and the questions whose answers it grows by."""

    def __init__(self, dispatcher: Dispatcher, co: Coordination) -> None:
        self.dispatcher, self.co = dispatcher, co
        self.history = History(co.run)
        for entry in co.ledger.entries(run=co.run):
            self.history.absorb(entry)
        self._signed: dict[str, int] = {}  # size each party's witness signed last
        self._head = _Head("", 0)  # the checkpoint this step's requests carry
        self._later: dict[str, _Head] = {}  # … and a newer one for a party that has seen more of the log meanwhile

    def collect(
        self,
        step: str,
        number: int,
        parties: Sequence[str],
        build: Build,
        take: Callable[[Packet], None],
        *,
        timeout: float,
        max_blob: int,
        given_up: Callable[[], str] = lambda: "",
        missed: Callable[[str, str], None] = lambda party, code: None,
    ) -> Collected:
        """Ask parties, check each co-signature, let `take` have each packet; what it refuses does not count.

        Parameters
        ----------
        build : a party's request, from its name and the proofs for its witness.
        given_up : polled; once it says why, nobody is waited for any more.
        missed : told of each party that does not count, with the code, when that is known.
        """
        self._head, self._later, got = self._checkpoint(), {}, Collected()
        replies = self.dispatcher.ask(
            step,
            list(parties),
            lambda party: build(party, self._proofs(party)),
            timeout=timeout,
            max_blob=max_blob,
            on_stale=self._overtaken,
            number=number,
            given_up=given_up,
        )
        for reply in replies:
            if reply.packet is None or reply.code:
                got.missing[reply.party] = reply.code
                missed(reply.party, reply.code)
                continue
            try:
                line = str(reply.packet.extra.get("cosignature", ""))
                head = self._later.get(reply.party, self._head)
                verify_cosignature(head.note, line, self.dispatcher.cards[reply.party])
                take(reply.packet)
            except (FedsealError, KeyError) as error:
                known = error if isinstance(error, FedsealError) else BadMessage(f"an answer without {error}")
                self.dispatcher.refuse(reply.party, step, number, known)
                got.missing[reply.party] = known.code
                missed(reply.party, known.code)
                continue
            got.cosignatures.setdefault(head.size, {})[reply.party] = line
            got.statements[reply.party] = reply.packet.statement
        return got

    def require(self, need: int, what: str, asked: Sequence[str], got: Collected) -> None:
        """Raise `JobFailed` where fewer than `need` parties answered."""
        if len(got.statements) < need:
            why = ", ".join(f"{name}: {code}" for name, code in sorted(got.missing.items()))
            raise JobFailed(
                f"{what}: {len(got.statements)} of {len(asked)} parties contributed, {need} are needed ({why})"
            )

    def commit(self, statements: list[Statement]) -> None:
        """Log what is not logged yet: a repeated step brings the parties' same statements again."""
        own = self.co.identity.name
        new = [s for s in statements if s.by == own or s.digest not in self.history.digests]
        entries, _ = self.co.ledger.commit(new)
        for entry in entries:
            self.history.absorb(entry)

    def cosigned(self, got: Collected) -> None:
        """Keep the co-signatures that replies brought."""
        for size, lines in got.cosignatures.items():
            self.co.ledger.add_cosignatures(size, lines)
            self._signed |= dict.fromkeys(lines, size)

    def witness(self, number: int, parties: Sequence[str], body: dict[str, Any]) -> None:
        """Have the last checkpoint co-signed; whoever does not answer leaves the ledger short of that signature."""
        for _ in range(WITNESS_TRIES):
            got = self.collect(
                messages.WITNESS,
                number,
                parties,
                lambda _, proofs: Request(body, {}, proofs),
                lambda _: None,
                timeout=self.co.step_timeout,
                max_blob=0,
            )
            self.cosigned(got)
            if len(got.cosignatures) < 2:  # all signed one checkpoint; with others running they may not
                return

    def record_due(self) -> None:
        """Hand the recorders what can be recorded now."""
        for record in self.history.due(self.co.job.train.rounds):
            self.co.recorder.record(record)
            self.history.recorded.add(record.round)
            self.co.progress(Event("record", record.round, dict(record.metrics)))

    # ---- checkpoints

    def _checkpoint(self) -> _Head:
        note = self.co.ledger.checkpoint()
        return _Head(note, parse_checkpoint(parse_note(note).text).size)

    def _overtaken(self, party: str, size: int) -> None:
        """The party's witness remembers `size`: another run took it further, or we did not know."""
        self._signed[party] = size
        if size > self._later.get(party, self._head).size:
            self._later[party] = self._checkpoint()

    def _proofs(self, party: str) -> dict[str, Any]:
        ledger, head = self.co.ledger, self._later.get(party, self._head)
        start = min(self._signed.get(party, 0), head.size)
        proof = [h.hex() for h in ledger.consistency(start, head.size)] if start else []
        extra: dict[str, Any] = {"checkpoint": head.note, "start": start, "proof": proof}
        if (entry := self.history.last_statement.get(party)) is not None:
            path = [h.hex() for h in ledger.inclusion(entry.seq, head.size)]
            extra["mine"] = {"entry": entry.encode().decode(), "seq": entry.seq, "proof": path}
        return extra


@dataclass(frozen=True)
class _Head:
    """A checkpoint of the ledger."""

    note: str
    size: int
