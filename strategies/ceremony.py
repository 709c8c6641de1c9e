"""Before round one: parties join, all sign the roster, and one of them seals the group key to the others.

The coordinator relays sealed blobs; it learns who takes part, sizes, and digests that say whether the parties' columns
and classes agree.  What it keeps in the run's folder is what it relayed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fl_core import messages
from fl_core.errors import (
    BadMessage,
    BudgetExceeded,
    DataError,
    FedsealError,
    IntegrityError,
    JobFailed,
    Paused,
    RefusedError,
)
from fl_core.files import write_atomic
from fl_core.messages import Packet
from fl_core.trust import canonical
from fl_core.trust.board import rotations_of
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import Approval, read_body
from fl_core.trust.roster import Roster
from fl_core.trust.rotation_shown import FIELD, ends_of
from strategies.coordination import Coordination, Event
from strategies.dispatch import Dispatcher, Reply, Request

MAX_SEALED_KEY = 1 << 17  # bytes a party
PARTING_SECONDS = 10.0
WITH_DATA = ("trainer", "party")  # roles of those who bring data


class PartyRefused(RefusedError):
    """A party refused at its own node; the text lies in its log."""


@dataclass(frozen=True)
class Ceremony:
    """The outcome: who takes part, under which key, and what each party needs to accept it."""

    roster: Roster
    statements: list[Statement]
    sealed: dict[str, bytes]

    @property
    def maker(self) -> Statement:
        """The key maker's statement."""
        return next(s for s in self.statements if s.by == self.roster.key_maker)

    @property
    def key_id(self) -> str:
        """Names the group key; empty where the run has none."""
        return str(self.maker.body.get("key", ""))

    def first_join(self, name: str) -> Any:
        """A value all trainers' join statements share."""
        return self.roster.joins[self.roster.key_maker].body.get(name)


def hold(dispatcher: Dispatcher, co: Coordination) -> Ceremony:
    """Let everybody join; then hold the ceremony, or take it up again where the run's folder has it."""
    joins, grants = _join(dispatcher, co)
    path = co.workdir / "ceremony.json"
    if path.exists():
        ceremony = _load(path.read_text(encoding="utf-8"))
        for name, statement in joins.items():
            if ceremony.roster.joins[name] != statement:
                raise JobFailed(f"party {name} does not remember this run; it cannot be resumed")
        co.progress(_joined(ceremony))
        return ceremony
    roster = Roster.from_joins([(dispatcher.cards[name], joins[name]) for name in joins])
    _agree(roster)
    statements, sealed = _sign(dispatcher, co, roster)
    ceremony = Ceremony(roster, statements, sealed)
    body = {
        "parties": list(roster.contributors),
        "receivers": [n for n in roster.cards if n not in roster.contributors],
        "min_parties": co.job.min_parties,
        "roster": roster.digest,
        "key": ceremony.key_id,
    }
    co.ledger.commit([*_new(grants, co), *joins.values(), *statements, co.say("roster", body)])
    write_atomic(path, _dump(ceremony))
    co.progress(_joined(ceremony))
    return ceremony


def _joined(ceremony: Ceremony) -> Event:
    joins = ceremony.roster.joins
    data = {name: str(join.body["data"]) for name, join in joins.items() if join.body["data"]}
    return Event("joined", 0, {"parties": list(joins), "key": ceremony.key_id, "data": data})


def abandon(dispatcher: Dispatcher, co: Coordination) -> None:
    """Tell the parties that the run stopped short, so that they give back unspent privacy; nobody is awaited long."""
    request = Request({}, {}, {})
    for _ in dispatcher.ask(
        messages.ABANDON, list(dispatcher.cards), lambda _: request, timeout=PARTING_SECONDS, max_blob=0, parting=True
    ):
        continue


def check(dispatcher: Dispatcher, co: Coordination) -> dict[str, Reply]:
    """Ask every party whether it would join; nothing is set aside or written down."""
    replies = dispatcher.ask(messages.CHECK, list(co.nodes), asking(co), timeout=co.step_timeout, max_blob=0)
    return {reply.party: reply for reply in replies}


def asking(co: Coordination) -> Callable[[str], Request]:
    """What each party is told of the job when it is asked to join, with the order of whoever submitted it.

    Beside it go the keys that have ended, so that its owner need not have read the board before.
    """
    blobs, body = {"job": canonical.encode(co.job.public()), **co.order}, {"job": co.job.digest()}
    ended = ends_of(co.ledger)
    extra = {FIELD: ended} if ended else {}
    return lambda party: Request(body, blobs | ({"own": co.own[party]} if party in co.own else {}), extra)


def _join(dispatcher: Dispatcher, co: Coordination) -> tuple[dict[str, Statement], list[Statement]]:
    """Each party's join statement, and the grants that they name, signed by their owners."""
    names, request = list(co.nodes), asking(co)
    replies: dict[str, Reply] = {}
    for reply in dispatcher.ask(messages.JOIN, names, request, timeout=co.step_timeout, max_blob=0):
        replies[reply.party] = reply
    for name in names:  # all have answered, so that all problems are told at once and nobody is left reserved
        if not replies[name].ok:
            raise _why(replies[name], "joining")
    for party in co.job.parties:
        card = dispatcher.cards[party.name]
        if party.key is not None and party.key != card.fingerprint:
            dispatcher.refuse(party.name, messages.JOIN, 0, BadMessage("another card than the job pins"))
            raise JobFailed(f"party {party.name}: its card is {card.fingerprint}; the job pins {party.key}")
    out, grants = {}, []
    for name in names:
        packet = replies[name].packet
        assert packet is not None
        out[name] = packet.statement
        if (approval := _granted(dispatcher, co, name, packet)) is not None:
            grants.append(approval)
    return out, grants


def _granted(dispatcher: Dispatcher, co: Coordination, party: str, packet: Packet) -> Statement | None:
    """The owner's own approval of the grant that its join statement names; None for a party without data."""
    if packet.statement.body.get("role") not in WITH_DATA:
        return None
    try:
        approval = Statement.from_dict(packet.extra.get("grant"))
        approval.verify(dispatcher.cards[party])
        body = read_body(approval)
        if not isinstance(body, Approval) or approval.log != co.ledger.log or approval.run not in ("", co.run):
            raise BadMessage("what came with a join statement is no approval of a grant, or of another log or run")
        if body.grant.id != packet.statement.body.get("grant") or body.grant.terms.owner != party:
            raise BadMessage("the grant is not the one that the join statement names")
    except IntegrityError as error:
        dispatcher.refuse(party, messages.JOIN, 0, error)
        raise JobFailed(f"party {party}, joining: no grant that its owner signed ({error})") from None
    return approval


def _new(grants: list[Statement], co: Coordination) -> list[Statement]:
    """Those that are not on the ledger yet; what a run's own grants say is new with the run."""
    lasting = any(not grant.run for grant in grants)
    known = {entry.statement.digest for entry in co.ledger.entries(run="", kind="grant")} if lasting else set()
    return [grant for grant in grants if grant.run or grant.digest not in known]


def why(party: str, code: str, doing: str, *, exit_code: int = 1, topics: tuple[str, ...] = ()) -> FedsealError:
    """The failure of one party as this process's own: the class decides the exit code."""
    text = f"party {party}, {doing}: {code}" + (f" ({', '.join(topics)})" if topics else "")
    if code == BudgetExceeded.code:
        return BudgetExceeded(text)
    if exit_code == 3 or code in (RefusedError.code, Paused.code):
        return PartyRefused(text)
    if code in (DataError.code, "job", "usage"):
        return DataError(f"party {party}", f"{doing}: {code}")
    return JobFailed(text)


def _why(reply: Reply, doing: str) -> FedsealError:
    return why(reply.party, reply.code, doing, exit_code=reply.exit_code, topics=reply.topics)


def _agree(roster: Roster) -> None:
    """All trainers must bring the same columns, classes and model size; only digests are compared here."""
    allowed = {
        "schema": "the same feature columns in the same order at every party",
        "classes": "every class at every party, or all of them named in model.classes",
        "parameters": "one model",
        "limbs": "one number of features",
    }
    for name, want in allowed.items():
        values = {p: roster.joins[p].body.get(name) for p in roster.contributors}
        usual = max(values.values(), key=lambda v: sum(v == w for w in values.values()))
        odd = [p for p, v in values.items() if v != usual]
        if odd:
            raise DataError(f"party {', '.join(odd)}", f"its {name} differ from the other parties'", allowed=want)


def _sign(dispatcher: Dispatcher, co: Coordination, roster: Roster) -> tuple[list[Statement], dict[str, bytes]]:
    statements, sealed, most = [], {}, MAX_SEALED_KEY * len(roster.cards)
    rotations = rotations_of(co.ledger, list(roster.cards))
    request = Request({"roster": roster.digest}, {"roster": roster.text}, {"rotations": rotations})
    for reply in dispatcher.ask(
        messages.ROSTER, list(roster.cards), lambda _: request, timeout=co.step_timeout, max_blob=most
    ):
        if not reply.ok or reply.packet is None:
            raise _why(reply, "signing the roster")
        statement = reply.packet.statement
        if statement.body.get("roster") != roster.digest:
            raise JobFailed(f"party {reply.party} signed another roster")
        statements.append(statement)
        if reply.party == roster.key_maker:
            sealed = {name.removeprefix("key."): blob for name, blob in reply.packet.blobs.items()}
    order = list(roster.cards)
    return sorted(statements, key=lambda s: order.index(s.by)), sealed


def _dump(ceremony: Ceremony) -> bytes:
    table = {
        "roster": ceremony.roster.text.decode(),
        "statements": [s.to_dict() for s in ceremony.statements],
        "sealed": {name: blob.hex() for name, blob in ceremony.sealed.items()},
    }
    return json.dumps(table).encode()


def _load(text: str) -> Ceremony:
    table = json.loads(text)
    return Ceremony(
        Roster.parse(table["roster"].encode()),
        [Statement.from_dict(s) for s in table["statements"]],
        {name: bytes.fromhex(blob) for name, blob in table["sealed"].items()},
    )
