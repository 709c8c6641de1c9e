"""Grants that several sign in turn, at the command line: who begins one, who comes next, what none signs unseen.

Whoever signs first names those who follow; the owner of the data is always the last, and its node takes the grant when
all have signed, in that order. Each signs the whole grant and the signature before its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fl_core.errors import IntegrityError, UsageError
from server.cli.desk import Desk, people_of

if TYPE_CHECKING:
    from clients.own_profile import People
    from fl_core.trust.entry import Statement
    from fl_core.trust.grant_statements import GrantRequest
    from fl_core.trust.grant_store import Account
    from fl_core.trust.grants import Signer, Terms
    from fl_core.trust.identity import Card


def take_up(desk: Desk, wanted: Sequence[str], *, chain: bool = False) -> str:
    """Return what is meant, by its id or in files, after what the board has to say was taken up.

    `chain`: requests for others' data are taken up too. Of files that hold a grant and the request that it answers, the
    grant is meant. Raises UsageError where it is not one.
    """
    by_id = len(wanted) == 1 and not Path(wanted[0]).is_file()
    if by_id and chain and (asked := _request_on_board(desk, wanted[0])) is not None:
        _keep(desk, *asked)  # before what was said of it
    desk.sync()
    if by_id:
        return wanted[0]
    found: dict[str, set[str]] = {"grant": set(), "grant-request": set()}
    items = [item for name in wanted for item in _read(desk, Path(name))]
    for statement, card in sorted(items, key=lambda item: _place(item[0])):
        found.setdefault(statement.kind, set()).add(_received(desk, statement, card, chain=chain))
    about = found["grant"] or found["grant-request"] or found.get("grant-end", set())
    if len(about) != 1:
        raise UsageError(f"{', '.join(wanted):.200}: {len(about)} requests or grants; allowed: one")
    return about.pop()


def _read(desk: Desk, path: Path) -> list[tuple[Statement, Card]]:
    from clients.statement_file import read_statements

    items = [(statement, card) for statement, card in read_statements(path) if statement.kind != "card"]
    for statement, _ in items:
        if statement.log != desk.log:
            raise UsageError(f"{path}: signed for {statement.log}; allowed: for {desk.log}")
    return items


def _place(statement: Statement) -> int:
    """Approvals come after what they are about, in the order of their chain."""
    from fl_core.trust.grant_statements import Approval

    if statement.kind != Approval.KIND:
        return 0
    names = [signer.name for signer in Approval.from_dict(statement.body).grant.approvals]
    return 1 + (names.index(statement.by) if statement.by in names else len(names))


def _received(desk: Desk, statement: Statement, card: Card, *, chain: bool) -> str:
    from fl_core.trust.grant_statements import Approval, GrantRequest

    if statement.kind == Approval.KIND:
        body = Approval.from_dict(statement.body)
        if body.after and body.after not in {one.digest for one in desk.consent.store.statements(body.grant.id)}:
            raise UsageError(f"the approval of {statement.by} follows another; allowed: with the file of that one")
    is_request = chain and statement.kind == GrantRequest.KIND
    if is_request and GrantRequest.from_dict(statement.body).terms.owner != desk.identity.name:
        return _keep(desk, statement, card)
    return desk.consent.receive(statement, card)


def _keep(desk: Desk, statement: Statement, card: Card) -> str:
    """Keep a request for others' data, which the owner's consent does not take up by itself."""
    desk.consent.store.keep(statement, card, log=desk.log)
    return statement.digest


def _request_on_board(desk: Desk, id: str) -> tuple[Statement, Card] | None:
    """A request for others' data by its id, or its first digits."""
    from fl_core.trust.grant_statements import GrantRequest

    if desk.board is None or len(id) < 8:
        return None
    found = [one for one in desk.board.read([GrantRequest.KIND]) if one.statement.digest.startswith(id)]
    if len(found) != 1 or GrantRequest.from_dict(found[0].statement.body).terms.owner == desk.identity.name:
        return None
    return found[0].statement, found[0].card


# ---- the first


def begin(desk: Desk, request: str, then: Sequence[str]) -> tuple[Signer, ...]:
    """Return who signs a request that waits: who calls first, then those of `--then`, the owner of the data last.

    Empty where the owner says yes alone. Raises UsageError where it is not the caller's to begin, or was begun.
    """
    from fl_core.trust.grants import Grant, Signer

    held = next(waiting for waiting in desk.consent.waiting() if waiting.digest.startswith(request))
    me, owner, id = desk.identity.name, held.request.terms.owner, held.digest[:16]
    if owner == me and then:
        allowed = f"whoever is first begins: fedseal grant approve {id} --then {me} --as {then[0].partition('=')[0]}"
        raise UsageError(f"--then: the data are of {me}, who signs last; allowed: {allowed}"[:400])
    if owner != me and not then:
        raise UsageError(f"request {id}: for data of {owner}; allowed: --then {owner}, or those who come before it")
    if (begun := _begun(desk, held.digest, held.request.terms)) is not None:
        first, grant = begun.grant.approvals[0].name, begun.grant.id[:16]
        allowed = f"fedseal grant approve {grant} in turn, or fedseal grant revoke {grant} first"
        raise UsageError(f"request {id}: {first} has begun grant {grant} of it; allowed: {allowed}")
    if not then:
        return ()
    names = [*then] if then[-1].partition("=")[0] == owner else [*then, owner]
    people = None if desk.board is None else _people(desk)
    try:
        chain = (Signer.of(desk.identity.card), *[_signer(desk, people, name) for name in names])
        Grant(held.request.terms, chain, held.digest)  # nobody twice, and not too many
        return chain
    except IntegrityError as error:
        raise UsageError(f"--then: {error}") from None


def _begun(desk: Desk, request: str, asked: Terms) -> Account | None:
    """A grant of several that answers a request, within what was asked for, and that nobody of them has revoked."""
    for account in desk.consent.grants():
        grant, stands = account.grant, bool(account.approvals) and not account.revoked
        of_several = grant.request == request and len(grant.approvals) > 1
        if of_several and stands and not _wider(grant.terms, asked):
            return account
    return None


def _people(desk: Desk) -> People:
    from clients.own_profile import read_people

    return read_people(desk.need_board("--then NAME=FINGERPRINT"))


def _signer(desk: Desk, people: People | None, text: str) -> Signer:
    """`NAME` or `NAME=FINGERPRINT`; the card of a name is that of this home's key, or that on the board."""
    from fl_core.trust.grants import Signer
    from fl_core.trust.identity import Identity

    name, _, fingerprint = text.partition("=")
    known: Card | None = None
    if name in people_of(desk.home):
        known = Identity.load_or_create(desk.home.party(name), name).card
    elif people is not None and (member := people.members.get(name)) is not None:
        known = member.card
    if fingerprint:
        if known is not None and known.fingerprint != fingerprint:
            raise UsageError(f"--then {name}: its card is {known.fingerprint[:16]}…, not {fingerprint:.16}…")
        return Signer(name, fingerprint)
    if known is None:
        allowed = f"{name:.64}=FINGERPRINT, as fedseal identity show has it at {name:.64}"
        raise UsageError(f"--then {name:.64}: no card of that name here or on the board; allowed: {allowed}")
    return Signer.of(known)


def check_own(desk: Desk, request: str) -> None:
    """Refuse (`UsageError`) to deny a request for others' data: one of several does not sign, or revokes the grant."""
    for waiting in desk.consent.waiting():
        if waiting.digest.startswith(request) and (owner := waiting.request.terms.owner) != desk.identity.name:
            raise UsageError(f"request {waiting.digest[:16]}: for data of {owner}; allowed: its owner denies it")


# ---- those who follow


def check_asked(desk: Desk, grant: str) -> None:
    """Refuse (`UsageError`) a grant that gives more than the request that it answers, where that request is known."""
    found = [account.grant for account in desk.consent.grants() if account.grant.id.startswith(grant)]
    if len(found) != 1:
        return
    asked = _request_of(desk, found[0].request)
    if asked is not None and (wider := _wider(found[0].terms, asked.terms)):
        raise UsageError(f"grant {found[0].id[:16]}: {wider}")


def _request_of(desk: Desk, digest: str) -> GrantRequest | None:
    from fl_core.trust.grant_statements import GrantRequest

    kept = [one for one in desk.consent.store.statements(digest) if one.kind == GrantRequest.KIND]
    if not kept and digest and (shown := _request_on_board(desk, digest)) is not None:
        kept = [shown[0]]
    return GrantRequest.from_dict(kept[0].body) if kept else None


def _wider(terms: Terms, asked: Terms) -> str:
    """In which way terms give more than was asked for; empty where they do not."""
    from clients.consent.terms import narrowed

    try:
        narrowed(asked, **{field.name: getattr(terms, field.name) for field in dataclasses.fields(terms)})
    except UsageError as error:
        return str(error)
    return ""
