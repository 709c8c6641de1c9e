"""Grants as people see them: what waits, what was given and used, what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fl_core.errors import IntegrityError
from fl_core.trust.catalog import UNLIMITED, from_micro
from fl_core.trust.grant_statements import (
    Approval,
    Denial,
    GrantRequest,
    Revocation,
    approved_by,
    read_body,
    revoked_by,
)
from fl_core.trust.grants import ANY, Grant, Terms
from server.cli.desk import line, moment, now_ms

if TYPE_CHECKING:
    from clients.board import Posted
    from clients.consent.decision import Consent
    from fl_core.trust.grant_store import Account
    from server.cli.desk import Desk

UNSIGNED = "not yet signed by all"


def as_owner(consent: Consent, ended: frozenset[str]) -> dict[str, Any]:
    """`waiting`: requests without an answer; `granted`: grants with what is used and left; both JSON-able.

    A grant that several sign says who has (`signed`), who has not (`missing`) and whose `turn` it is. `ended`:
    fingerprints of cards that count no more.
    """
    waiting = [
        {"request": held.digest, "grantee": held.request.terms.grantee.name, "terms": _terms(held.request.terms)}
        for held in consent.waiting()
        if held.request.terms.owner == consent.identity.name  # not those for others' data, begun here as one of several
    ]
    return {"waiting": waiting, "granted": [_granted(account, ended) for account in consent.grants()]}


def _granted(account: Account, ended: frozenset[str]) -> dict[str, Any]:
    terms, usage = account.grant.terms, account.usage
    return {
        "grant": account.grant.id,
        "grantee": terms.grantee.name,
        **_stand(account.grant, ended, signed=len(account.approvals), revoked=bool(account.revoked)),
        "self_issued": account.grant.self_issued,
        "terms": _terms(terms),
        "uses": {
            "done": usage.uses_committed,
            "going": usage.uses_reserved,
            "left": None if terms.uses == UNLIMITED else account.uses_left,
        },
        "epsilon": {
            "spent": from_micro(usage.epsilon_committed),
            "held": from_micro(usage.epsilon_reserved),
            "left": None if terms.epsilon == UNLIMITED else from_micro(account.epsilon_left),
        },
        "runs": [{"run": use.run, "state": use.state, "epsilon": from_micro(use.spent)} for use in account.uses],
    }


def _stand(grant: Grant, ended: frozenset[str], *, signed: int, revoked: bool) -> dict[str, Any]:
    """How a grant stands, of whose chain the first `signed` have."""
    names = [signer.name for signer in grant.approvals]
    state = _state(grant, ended, missing=names[signed:], revoked=revoked)
    turn = names[signed] if state == UNSIGNED else ""
    return {"state": state, "signed": names[:signed], "missing": names[signed:], "turn": turn}


def _state(grant: Grant, ended: frozenset[str], *, missing: list[str], revoked: bool) -> str:
    terms = grant.terms
    if revoked:
        return "revoked"
    if {signer.fingerprint for signer in (terms.grantee, *grant.approvals)} & ended:
        return "ended: it names a key that was changed or revoked"
    if missing:
        return UNSIGNED
    now = now_ms()
    return "ended" if now >= terms.not_after else "active" if now >= terms.not_before else "not begun"


def as_grantee(desk: Desk, ended: frozenset[str]) -> list[dict[str, Any]]:
    """What this one has asked for on the board, and what became of it, JSON-able; `ended` as in `as_owner`."""
    if desk.board is None:
        return []
    posted = desk.board.read(["grant-request", "grant", "grant-end"])
    found = []
    for one in posted:
        if one.entry.kind != GrantRequest.KIND or one.entry.by != desk.identity.name:
            continue
        body = _body(one)
        if isinstance(body, GrantRequest):
            answer = _answer(one.statement.digest, body.terms, posted, ended)
            found.append({"request": one.statement.digest, "terms": _terms(body.terms), **answer})
    return found


def _answer(request: str, terms: Terms, posted: list[Posted], ended: frozenset[str]) -> dict[str, Any]:
    """What its owner said to a request: `state`, and the `grant` with its own terms, or the `reason` of a no."""
    signed = [(one.statement, one.card) for one in posted]
    grants: dict[str, Grant] = {}
    reason: str | None = None
    for one in posted:
        body = _body(one)
        if isinstance(body, Approval) and body.grant.request == request and body.grant.terms.owner == terms.owner:
            grants[body.grant.id] = body.grant
        elif isinstance(body, Denial) and body.about == request and one.entry.by == terms.owner:
            reason = body.reason
    told: dict[str, Any] = {"state": "waiting"} if reason is None else {"state": "denied", "reason": reason}
    for grant in grants.values():
        revoked, count = revoked_by(grant, signed), len(approved_by(grant, signed))
        if count < len(grant.approvals) and (revoked or reason is not None or told["state"] != "waiting"):
            continue  # begun by some of several, and given up; or another one says more
        why = [b.reason for b in map(_body, posted) if isinstance(b, Revocation) and b.about == grant.id and revoked]
        told = {"grant": grant.id, "granted": _terms(grant.terms), **({"reason": why[0]} if why else {})}
        told |= _stand(grant, ended, signed=count, revoked=bool(revoked))
        if count == len(grant.approvals):
            break
    return told


def _body(one: Posted) -> Any:
    """What a statement says; None where it is malformed."""
    try:
        return read_body(one.statement)
    except IntegrityError:
        return None


def _terms(terms: Terms) -> dict[str, Any]:
    table: dict[str, Any] = {
        "owner": terms.owner,
        "dataset": terms.dataset,
        "version": terms.version,
        "kinds": list(terms.kinds),
        "algorithms": list(terms.algorithms),
        "model": terms.model,
        "job": terms.job,
        "private_only": terms.private_only,
        "uses": None if terms.uses == UNLIMITED else terms.uses,
        "epsilon": None if terms.epsilon == UNLIMITED else from_micro(terms.epsilon),
        "receivers": list(terms.receivers),
        "not_before": terms.not_before,
        "not_after": terms.not_after,
        "purpose": terms.purpose,
    }
    return table


def words(terms: Terms) -> str:
    """Terms in one line."""
    return _in_words(terms.grantee.name, _terms(terms))


def _in_words(grantee: str, terms: dict[str, Any]) -> str:
    who = "anybody" if grantee == ANY else grantee
    parts = [f"{who} on {terms['owner']}/{terms['dataset']}", ", ".join(terms["kinds"])]
    if terms["algorithms"] != [ANY]:
        parts.append(f"by {', '.join(terms['algorithms'])}")
    if terms["job"]:
        parts.append(f"job {terms['job'][:16]} only")
    if terms["version"]:
        parts.append(f"version {terms['version'][:16]} only")
    if terms["model"] and terms["model"] != ANY:
        parts.append(f"model {terms['model'][:16]}")
    uses = "any number of" if terms["uses"] is None else terms["uses"]
    epsilon = "no limit" if terms["epsilon"] is None else terms["epsilon"]
    parts += [f"{uses} use{'' if uses == 1 else 's'}", f"ε {epsilon}"]
    receivers = "anybody" if terms["receivers"] == [ANY] else ", ".join(terms["receivers"]) or "nobody"
    parts += [f"results to {receivers}", f"until {moment(terms['not_after'])}"]
    return "; ".join(parts) + ("" if terms["purpose"] == ANY else f"; for: {terms['purpose']}")


def show_all(found: dict[str, Any]) -> None:
    """For a person."""
    name = found["name"]
    mine = [held for held in found["granted"] if held["turn"] == name]
    others = [held for held in found["granted"] if held["turn"] not in ("", name)]
    if found["waiting"] or mine:
        line(f"waiting for {name}:")
    for held in found["waiting"]:
        line(f"  {held['request'][:16]}  {_in_words(held['grantee'], held['terms'])}")
    for held in mine:
        line(f"  {held['grant'][:16]}  grant to {_in_words(held['grantee'], held['terms'])}")
        line(f"  {'':<16}  {_in_turn(held)}: fedseal grant approve {held['grant'][:16]}")
    if others:
        line(f"waiting for others, with {name} among those who sign:")
    for held in others:
        line(f"  {held['grant'][:16]}  grant to {_in_words(held['grantee'], held['terms'])}")
        line(f"  {'':<16}  {_in_turn(held)}")
    if given := [held for held in found["granted"] if not held["turn"]]:
        line(f"granted by {name}:")
    for held in given:
        _show_granted(held)
    if found["asked"]:
        line(f"asked for by {name}:")
    for held in found["asked"]:
        terms = held.get("granted", held["terms"])
        line(f"  {held['request'][:16]}  {held['state']}: {_in_words(name, terms)}")
        if "grant" in held:
            line(f"  {'':<16}  grant {held['grant'][:16]}" + (f", {_in_turn(held)}" if held["turn"] else ""))
        if "reason" in held:
            line(f"  {'':<16}  {held['reason']}")
    if not (found["waiting"] or found["granted"] or found["asked"]):
        line(f"{name}: nothing waits, was granted or asked for; fedseal grant request --help")
    for text in found["refused"]:
        line(f"left out: {text}")


def _in_turn(held: dict[str, Any]) -> str:
    """Who of several has signed, and who comes next."""
    signed = ", ".join(held["signed"]) or "nobody yet"
    return f"signed by {signed}; next " + ", then ".join(held["missing"])


def _show_granted(held: dict[str, Any]) -> None:
    mark = ", made by the job itself" if held["self_issued"] else ""
    line(f"  {held['grant'][:16]}  {held['state']}{mark}: {_in_words(held['grantee'], held['terms'])}")
    uses, epsilon = held["uses"], held["epsilon"]
    going = f", {uses['going']} under way" if uses["going"] else ""
    left = "no limit" if uses["left"] is None else f"{uses['left']} left"
    spent = "no limit" if epsilon["left"] is None else f"{epsilon['left']} left"
    line(f"  {'':<16}  used {uses['done']}{going}, {left}; ε {epsilon['spent']} spent, {spent}")
