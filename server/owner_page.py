"""One data owner's page: what is published, who may use it and who has, what privacy is left, what waits for a word.

Everything on it is from the owner's own home; nothing on it can be clicked that changes something. A decision is a
command, which the page spells out.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_core.trust.catalog import UNLIMITED, Listing, from_micro
from fl_core.trust.grant_store import Account, Use, Waiting
from fl_core.trust.grants import ANY, Terms
from server.owner_template import BODY
from server.web.html import page

MOST = 200  # uses, grants and refusals that are shown
_NO_END = 253_402_300_800_000  # ms: the year 10000
_STATES = {"reserved": "under way", "committed": "done", "released": "given back"}


@dataclass(frozen=True)
class Node:
    """How the owner's node is; `last` is its last word with the coordinator, seconds since 1970, 0 for none."""

    coordinator: str
    running: bool
    connected: bool
    paused: bool
    last: float
    detail: str
    consent: str


@dataclass(frozen=True)
class Composed:
    """A dataset's account under the accountant, ε at δ = 1e-5: spent, with what is set aside, and the owner's limit."""

    name: str
    place: str
    spent: float
    held: float
    limit: float | None


@dataclass(frozen=True)
class Refused:
    """A job that was refused here: when (seconds since 1970), which, and why."""

    time: float
    run: str
    words: str


@dataclass(frozen=True)
class Owner:
    """Everything that the page is made of.

    Attributes
    ----------
    name, home
        Of the owner, and the home's folder, both for commands.
    spent
        Committed and reserved millionths of ε of each dataset, over all its grants.
    jobs
        What the job of a run is called, where that is known.
    notes
        Sentences without a full stop.
    """

    name: str
    home: str
    node: Node | None = None
    listings: Sequence[Listing] = ()
    accounts: Sequence[Account] = ()
    waiting: Sequence[Waiting] = ()
    spent: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    composed: Sequence[Composed] = ()
    refusals: Sequence[Refused] = ()
    jobs: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def html(owner: Owner, *, now: float | None = None, refresh: int = 0, policy: str = "") -> str:
    """The whole page; `now` in seconds since 1970."""
    now = time.time() if now is None else now
    grants = [_grant(account, owner, now) for account in reversed(owner.accounts)]
    uses = sorted(_uses(owner), key=lambda use: -use["time"])
    return page(
        BODY,
        title=owner.name,
        refresh=refresh,
        policy=policy,
        now=now,
        node=owner.node,
        notes=list(owner.notes),
        waiting=[_asked(held, owner) for held in owner.waiting],
        datasets=_datasets(owner),
        running=[grant for grant in grants if grant["tone"] == "good"],
        ended=[grant for grant in grants if grant["tone"] != "good"][:MOST],
        ended_all=sum(grant["tone"] != "good" for grant in grants),
        uses=uses[:MOST],
        uses_all=len(uses),
        refusals=sorted(owner.refusals, key=lambda refused: -refused.time)[:MOST],
        jobs=owner.jobs,
    )


# ---- what waits


def _command(owner: Owner, act: str, id: str, *more: str) -> str:
    return shlex.join(["fedseal", "grant", act, id[:16], *more, "--as", owner.name, "--home", owner.home])


def _asked(held: Waiting, owner: Owner) -> dict[str, Any]:
    terms = held.request.terms
    card = next((one.card for one in owner.listings if one.card.name == terms.dataset), None)
    beyond = []
    if card is None:
        beyond.append("the dataset is not published")
    else:
        beyond += [f"kind {kind} is not on its card" for kind in terms.kinds if kind not in card.kinds]
        beyond += [f"purpose {terms.purpose} is not on its card"] if terms.purpose not in card.purposes else []
    return {
        "id": held.digest,
        "who": terms.grantee.name,
        "fingerprint": terms.grantee.fingerprint,
        "terms": _terms(terms),
        "beyond": beyond,
        "approve": _command(owner, "approve", held.digest),
        "deny": _command(owner, "deny", held.digest, "--reason", "not now"),
    }


def _terms(terms: Terms) -> dict[str, str]:
    """Terms in words; nothing for what everything is allowed of."""
    told = {
        "dataset": terms.dataset,
        "for": "" if terms.purpose == ANY else terms.purpose,
        "in jobs of kind": ", ".join(terms.kinds),
        "by algorithm": "" if terms.algorithms == (ANY,) else ", ".join(terms.algorithms),
        "only with noise": "yes" if terms.private_only else "",
        "results go to": "whoever a job names" if terms.receivers == (ANY,) else ", ".join(terms.receivers) or "nobody",
        "uses": "no limit" if terms.uses == UNLIMITED else f"{terms.uses:,}",
        "ε of them together": from_micro(terms.epsilon),
        "from": _moment(terms.not_before) if terms.not_before else "",
        "until": _moment(terms.not_after),
        "only version": terms.version,
        "only job": terms.job,
        "custom model": "" if terms.model in ("", ANY) else terms.model,
    }
    return {name: text for name, text in told.items() if text}


def _moment(milliseconds: int) -> str:
    if milliseconds >= _NO_END:
        return "no end"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(milliseconds / 1000))


# ---- datasets


def _datasets(owner: Owner) -> list[dict[str, Any]]:
    """Each name that is published, bound, or has spent something, with both accounts of it."""
    cards = {one.card.name: one for one in owner.listings}
    composed = {one.name: one for one in owner.composed}
    names = dict.fromkeys([*cards, *composed, *owner.spent])
    return [{"name": name, "composed": composed.get(name), **_sums(name, cards.get(name), owner)} for name in names]


def _sums(name: str, listing: Listing | None, owner: Owner) -> dict[str, Any]:
    spent, held = owner.spent.get(name, (0, 0))
    limit = listing.card.epsilon if listing else UNLIMITED
    bounded = limit != UNLIMITED
    return {
        "listing": listing,
        "spent": from_micro(spent),
        "held": from_micro(held) if held else "",
        "limit": from_micro(limit) if listing else "",
        "left": from_micro(max(limit - spent - held, 0)) if bounded else "",
        "share": (spent + held, limit) if bounded else (0, 0),
    }


# ---- grants and uses


def _grant(account: Account, owner: Owner, now: float) -> dict[str, Any]:
    terms, usage = account.grant.terms, account.usage
    state, tone = _state(account, now)
    missing = account.grant.approvals[len(account.approvals) :]
    own_turn = bool(missing) and missing[0].name == owner.name and not account.revoked
    is_asked = tone == "good" and not account.grant.self_issued
    return {
        "id": account.grant.id,
        "who": _who(terms),
        "mark": "made by a job itself" if account.grant.self_issued else "standing" if terms.standing else "",
        "terms": _terms(terms),
        "state": state,
        "tone": tone,
        "used": usage.uses_committed,
        "going": usage.uses_reserved,
        "left": "no limit" if terms.uses == UNLIMITED else f"{account.uses_left:,}",
        "epsilon": from_micro(usage.epsilon_committed + usage.epsilon_reserved),
        "epsilon_left": "no limit" if terms.epsilon == UNLIMITED else from_micro(account.epsilon_left),
        "until": _moment(terms.not_after),
        "sign": _command(owner, "approve", account.grant.id) if own_turn else "",
        "revoke": _command(owner, "revoke", account.grant.id, "--reason", "no longer wanted") if is_asked else "",
    }


def _state(account: Account, now: float) -> tuple[str, str]:
    """What a grant is good for now, and in which colour."""
    terms = account.grant.terms
    if account.revoked:
        return f"revoked by {', '.join(signer.name for signer in account.revoked)}", "bad"
    if missing := account.grant.approvals[len(account.approvals) :]:
        return f"waits for {missing[0].name}", "warn"
    if now * 1000 >= terms.not_after:
        return "expired", "soft"
    if not account.uses_left:
        return "used up", "soft"
    if terms.private_only and not account.epsilon_left:
        return "its ε is spent", "soft"
    if now * 1000 < terms.not_before:
        return f"begins {_moment(terms.not_before)}", "good"
    return "running", "good"


def _who(terms: Terms) -> str:
    return "whoever comes" if terms.standing else terms.grantee.name


def _uses(owner: Owner) -> Iterable[dict[str, Any]]:
    for account in owner.accounts:
        for use in account.uses:
            yield _used(use, account, owner)


def _used(use: Use, account: Account, owner: Owner) -> dict[str, Any]:
    return {
        "time": use.time / 1000,
        "run": use.run,
        "job": owner.jobs.get(use.run, ""),
        "dataset": use.dataset.rpartition("/")[2],
        "who": _who(account.grant.terms),
        "grant": use.grant,
        "state": _STATES.get(use.state, use.state),
        "asked": from_micro(use.asked),
        "spent": from_micro(use.spent) if use.state == "committed" else "",
    }
