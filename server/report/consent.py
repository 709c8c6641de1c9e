"""Who took part in a run, in which role, on whose consent, and at which privacy cost: as the ledger's statements say.

A party's `join` names the grant under which its own node opened the data.  What that grant allows is in the `grant`
statements of its chain of approvers, what was drawn from it in `use` statements, the dataset's budget on its card.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from fl_core.errors import BadMessage, LedgerBroken
from fl_core.messages import COORDINATOR
from fl_core.trust.catalog import UNLIMITED, DatasetCard, from_micro
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.grant_statements import Approval, Used, approved_by, revoked_by
from fl_core.trust.grants import Grant, Signer
from fl_core.trust.identity import Card
from fl_core.trust.ledger import Ledger
from fl_core.trust.members import Members, members_of

_FAR = 253_402_300_800_000  # the year 10000, in ms


@dataclass(frozen=True)
class Consent:
    """On what a party's data were used.

    tone is good, warn or soft; `words` say which consent it was, `terms` what it allows.
    """

    tone: str
    words: str
    terms: str = ""


@dataclass(frozen=True)
class Member:
    """One who took part; texts, empty where there is none.

    key : fingerprint of its card. data : commitment. spent, allowed, used, budget : ε, of this run, that its grant
    allows, that all runs drew from the dataset by grants, and of the dataset in all; as decimal texts. said : what its
    card's holder signed of its roles, and its contact.
    """

    name: str
    role: str
    key: str = ""
    data: str = ""
    consent: Consent | None = None
    spent: str = ""
    allowed: str = ""
    used: str = ""
    budget: str = ""
    said: str = ""


class Consents:
    """The statements about grants, uses and datasets that bear on one run."""

    def __init__(self, ledger: Ledger, run: str) -> None:
        self._ledger, self._run = ledger, run
        self._known, self._end = Members(), 0
        self._signed: list[tuple[Statement, Card]] = []
        self._grants: dict[str, Grant] = {}
        self._drawn: dict[tuple[str, str], int] = {}  # by grant and run
        self._cards: dict[tuple[str, str], DatasetCard] = {}
        for kind in ("grant", "grant-end", "use", "dataset"):
            for entry in ledger.entries(kind=kind):
                self._take(entry)

    def members(self, entries: Iterable[Entry]) -> Iterator[Member]:
        """Everybody of a run, the parties in the order of the roster."""
        held = list(entries)
        self._end = held[-1].seq + 1 if held else 0
        self._known = members_of(self._ledger, self._end)
        for member in self._members(held):
            yield replace(member, said=self._said(member.name))

    def _members(self, held: Sequence[Entry]) -> Iterator[Member]:
        job: Mapping[str, Any] = next((e.body for e in held if e.kind == "job"), {})
        roster: Mapping[str, Any] = next((e.body for e in held if e.kind == "roster" and e.by == COORDINATOR), {})
        joins = {e.by: e.body for e in held if e.kind == "join"}
        spent = _spent(held)
        view = job.get("view", {})
        names = roster.get("parties") or [p["name"] for p in view.get("party", [])]
        for name in dict.fromkeys([*names, *joins, *roster.get("receivers", [])]):
            join = joins.get(name, {})
            yield self._member(name, _role(name, view, name in names), join, spent.get(name, ""))
        yield Member(COORDINATOR, "operator: orders what is said, and keeps the ledger", self._key(COORDINATOR))
        submitted = job.get("submitted")
        if isinstance(submitted, dict):
            roles = ", ".join(map(str, submitted.get("roles", [])))
            yield Member(str(submitted.get("name")), f"submitted the job ({roles})", str(submitted.get("certificate")))
        elif isinstance(grantee := job.get("grantee"), dict):
            yield Member(str(grantee.get("name")), "ordered the job", str(grantee.get("fingerprint")))

    def _member(self, name: str, role: str, join: Mapping[str, Any], spent: str) -> Member:
        data, number = str(join.get("data") or ""), str(join.get("grant") or "")
        grant = self._grants.get(number)
        consent = self._consent(join, number, grant) if data else None
        if grant is None:
            return Member(name, role, self._key(name), data, consent, spent)
        terms = grant.terms
        card = self._cards.get((terms.owner, terms.dataset))
        drawn = sum(used for (about, _), used in self._drawn.items() if self._is_of(about, terms.owner, terms.dataset))
        mine = self._drawn.get((number, self._run)) or join.get("reserved")
        return Member(
            name,
            role,
            self._key(name),
            data,
            consent,
            spent or (from_micro(mine) if type(mine) is int and mine else ""),
            from_micro(terms.epsilon),
            from_micro(drawn),
            from_micro(card.epsilon) if card else "",
        )

    def _said(self, name: str) -> str:
        known = self._known.get(name)
        if known is None or known.profile is None:
            return ""
        return "; ".join(part for part in (", ".join(known.profile.roles), known.profile.contact) if part)

    def _consent(self, join: Mapping[str, Any], number: str, grant: Grant | None) -> Consent:
        if join.get("self_issued") or (grant is not None and grant.self_issued):
            return Consent("warn", "self-issued by a local run: nobody was asked")
        if not number and join.get("standing"):
            return Consent("warn", "no grant for this job: the standing rules of the owner's own node allowed it")
        if not number:
            return Consent("soft", "no grant is on record")
        if grant is None:
            return Consent("warn", f"grant {number[:16]}…, which is not on this ledger")
        return self._granted(number, grant)

    def _granted(self, number: str, grant: Grant) -> Consent:
        chain = [signer.name for signer in grant.approvals]
        whole = len(approved_by(grant, self._signed)) == len(chain)
        signed = chain if whole else [signer.name for signer in grant.approvals if self._approves(signer, grant)]
        lacking = [name for name in chain if name not in signed]
        kind = "standing grant" if grant.terms.standing else "grant"
        words = f"{kind} {number[:16]}…, signed by {', '.join(signed) or 'nobody'}"
        if lacking:
            words += f"; the signatures of {', '.join(lacking)} are not on this ledger"
        if revoked := revoked_by(grant, self._signed):
            words += f"; later revoked by {', '.join(signer.name for signer in revoked)}"
        return Consent("good" if chain[-1] in signed else "warn", words, _terms(grant))

    def _approves(self, signer: Signer, grant: Grant) -> bool:
        """Whether this one signed the grant, in whatever order."""
        mine = (s for s, card in self._signed if s.kind == Approval.KIND and Signer.of(card) == signer)
        return any(Approval.from_dict(statement.body).grant == grant for statement in mine)

    def _take(self, entry: Entry) -> None:
        statement = entry.statement
        try:
            card = self._ledger.signer(entry)  # as it was then: keys change
        except LedgerBroken:
            return
        try:
            if entry.kind == "use":
                used = Used.from_dict(entry.body)
                if used.act in ("commit", "release"):
                    self._drawn[used.grant, entry.run] = used.epsilon if used.act == "commit" else 0
            elif entry.kind == "dataset":
                if entry.body.get("act") == "publish":
                    shown = DatasetCard.from_dict(entry.body["card"])
                    if shown.owner == entry.by:
                        self._cards[shown.owner, shown.name] = shown
            else:
                if entry.kind == Approval.KIND:
                    grant = Approval.from_dict(entry.body).grant
                    self._grants[grant.id] = grant
                self._signed.append((statement, card))
        except (BadMessage, KeyError):
            return  # what is malformed allows nothing

    def _is_of(self, number: str, owner: str, dataset: str) -> bool:
        grant = self._grants.get(number)
        return grant is not None and (grant.terms.owner, grant.terms.dataset) == (owner, dataset)

    def _key(self, name: str) -> str:
        """Of the card at the end of the run."""
        card = self._ledger.card(name, self._end)
        return card.fingerprint if card is not None else ""


def _terms(grant: Grant) -> str:
    """What a grant allows, in words."""
    terms = grant.terms
    where = f"{terms.owner}/{terms.dataset}"
    if terms.standing:
        return f"{where} to whoever the coordinator admits; {', '.join(terms.kinds)}, until it is revoked"
    until = time.strftime("%Y-%m-%d", time.gmtime(terms.not_after / 1000)) if terms.not_after < _FAR else "any day"
    uses = "any number of" if terms.uses == UNLIMITED else str(terms.uses)
    return (
        f"{where} to {terms.grantee.name} for {terms.purpose}; {', '.join(terms.kinds)}, {uses} uses, "
        f"ε {from_micro(terms.epsilon)}, results to {', '.join(terms.receivers) or 'nobody'}, before {until}"
    )


def _role(name: str, view: Mapping[str, Any], gives: bool) -> str:
    if not gives:
        return "result receiver: gets the result and gives no data"
    kind, receives = view.get("kind"), True
    words = "data owner"
    if kind == "vertical":
        active = view.get("vertical", {}).get("active")
        return f"{words}, {'active: has the labels' if name == active else 'passive'}; keeps its part of the model"
    if kind == "predict":
        receives = name in (view.get("predict", {}).get("receivers") or [])
    if kind == "psi":
        receives = name in (view.get("psi", {}).get("receivers") or [name])
    return f"{words}; {'also gets' if receives else 'does not get'} the result"


def _spent(entries: Iterable[Entry]) -> dict[str, str]:
    """The largest ε that each party's own updates state."""
    most: dict[str, str] = {}
    for entry in entries:
        text = str(entry.body.get("epsilon", "")) if entry.kind == "update" else ""
        try:
            if text and Decimal(text) >= Decimal(most.get(entry.by, "0")):
                most[entry.by] = text
        except InvalidOperation:
            continue
    return most
