"""Ask parties, take their answers one at a time, and believe nothing that is not signed by the right one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_core import messages
from fl_core.errors import BadMessage, FedsealError, IntegrityError
from fl_core.messages import Packet, digests
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Card
from strategies.coordination import Coordination, Event, Stopped

ERRORS = {2: "internal", 5: "unreachable", 7: "version", 8: "died", 9: "timeout"}  # Flower's codes, 9 is ours
MAX_STALE = 10  # several runs of one home move a witness under each other's feet


@dataclass(frozen=True)
class Reply:
    """A party's authenticated packet, or why there is none (`code`; of a refusal also its `topics`)."""

    party: str
    packet: Packet | None = None
    code: str = ""
    exit_code: int = 1
    topics: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it is an answer rather than a failure."""
        return self.packet is not None and not self.code


@dataclass(frozen=True)
class Request:
    """What to ask one party: the signed body, the blobs (shared, not copied) and proofs."""

    body: dict[str, Any]
    blobs: dict[str, bytes]
    extra: dict[str, Any]


class Dispatcher:
    """Requests out, authenticated replies in; `dry`: nothing of it goes on the ledger."""

    def __init__(self, grid: Grid, co: Coordination, *, dry: bool = False) -> None:
        self.grid, self.co, self.dry = grid, co, dry
        self.cards: dict[str, Card] = {}
        self.sent_bytes: dict[str, int] = {}

    def ask(
        self,
        step: str,
        parties: list[str],
        build: Callable[[str], Request],
        *,
        timeout: float,
        max_blob: int,
        on_stale: Callable[[str, int], None] | None = None,
        number: int = 0,
        parting: bool = False,
        given_up: Callable[[], str] = lambda: "",
    ) -> Iterator[Reply]:
        """Ask all, yield each reply as it comes; who has not answered after `timeout` seconds yields code "timeout".

        `build(party)` makes a request; it is called again when a party's witness answers that the proof does not start
        where it remembers (`on_stale(party, size)`).  `parting`: a last word, sent even when the run is being stopped.
        `given_up` is polled: once it gives a code, whoever has not answered yields it.
        """
        end = time.monotonic() + timeout
        pending = {self._push(step, party, build(party), timeout): party for party in parties}
        stale = dict.fromkeys(parties, 0)
        while pending:
            if not parting and self.co.stopped():
                raise Stopped(
                    f"stopped while waiting for {', '.join(sorted(pending.values()))} ({step}, round {number})"
                )
            for message in self.grid.pull_messages(list(pending)):
                party = pending.pop(message.metadata.reply_to_message_id)
                reply = self._open(party, message, step, max_blob, number)
                if reply.code == "stale" and on_stale and reply.packet and stale[party] < MAX_STALE:
                    stale[party] += 1
                    on_stale(party, int(reply.packet.extra.get("size", 0)))
                    left = max(1.0, end - time.monotonic())
                    pending[self._push(step, party, build(party), left)] = party
                    continue
                yield reply
            code = "timeout" if time.monotonic() > end else given_up()
            if pending and code:
                for party in pending.values():
                    yield self._dropped(Reply(party, code=code), step, number)
                return

    def _push(self, step: str, party: str, request: Request, ttl: float) -> str:
        body = {**request.body, "step": step, "to": party, "blobs": digests(request.blobs)}
        extra = {**request.extra, "coordinator": self.co.identity.card.to_dict()}
        arrays = Packet(self.co.say("request", body), request.blobs, extra).to_arrays()
        self.sent_bytes[party] = sum(map(len, arrays.values()))
        record = ArrayRecord({k: Array("uint8", (len(v),), messages.STYPE, v) for k, v in arrays.items()})
        content = RecordDict({messages.PACKET: record})
        message = Message(content, self.co.nodes[party], step, ttl=ttl, group_id=str(body.get("round", 0)))
        return next(iter(self.grid.push_messages([message])))

    def _open(self, party: str, message: Message, step: str, max_blob: int, number: int) -> Reply:
        if message.has_error():
            code = ERRORS.get(message.error.code, f"flower-{message.error.code}")
            return self._dropped(Reply(party, code=code), step, number)
        try:
            record = message.content[messages.PACKET]  # .array_records makes a cycle that keeps the blobs
            if not isinstance(record, ArrayRecord):
                raise BadMessage("a reply that is not a packet")
            arrays = {name: array.data for name, array in record.items()}
            if sum(map(len, arrays.values())) > max_blob + messages.MAX_HEAD:
                raise BadMessage(f"a reply of {sum(map(len, arrays.values()))} bytes; allowed: {max_blob}")
            packet = Packet.from_arrays(arrays)
            packet.check(self._card(party, packet), run=self.co.run, step=step, max_blob=max_blob)
            if packet.statement.log != self.co.ledger.log:
                raise BadMessage("a reply for another log")
        except (KeyError, TypeError):
            return self.refuse(party, step, number, BadMessage("a reply that is not a packet"))
        except IntegrityError as error:
            return self.refuse(party, step, number, error)
        if packet.statement.kind in messages.FAILURES:
            code = str(packet.statement.body.get("code", "failed"))
            if code != "stale" and not self.dry:
                self.co.ledger.append([packet.statement])
                self.co.progress(Event("dropped", number, {"party": party, "code": code}))
            topics = packet.statement.body.get("topics")
            said = tuple(str(topic)[:40] for topic in topics[:32]) if isinstance(topics, list) else ()
            return Reply(party, packet, code, 3 if packet.statement.kind == "refusal" else 1, said)
        return Reply(party, packet)

    def _card(self, party: str, packet: Packet) -> Card:
        """The party's pinned card; pinned now when it is met first."""
        if party not in self.cards:
            introduction = Statement.from_dict(packet.extra.get("card"))
            card = introduction.shown_card()
            if card is None or card.name != party:
                raise BadMessage(f"another card where that of {party!r} was asked")
            introduction.verify(card)
            packet.statement.verify(card)
            self.co.cards.pin(card)
            if not self.dry and self.co.ledger.card(party) is None:
                self.co.ledger.append([introduction])
            self.cards[party] = card
        return self.cards[party]

    def refuse(self, party: str, step: str, number: int, error: FedsealError) -> Reply:
        """Do not take a reply, and say on the ledger whose it was and why."""
        if not self.dry:
            self.co.note("refusal", {"party": party, "step": step, "round": number, "code": error.code})
        self.co.progress(Event("refused", number, {"party": party, "code": error.code, "text": str(error)}))
        return Reply(party, code=error.code)

    def _dropped(self, reply: Reply, step: str, number: int) -> Reply:
        if not self.dry:
            self.co.note("drop", {"party": reply.party, "step": step, "round": number, "code": reply.code})
        self.co.progress(Event("dropped", number, {"party": reply.party, "code": reply.code}))
        return reply
