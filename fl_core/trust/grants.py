"""Grants: the owner's signed consent to uses of one dataset, and the one function that decides whether it covers a job.

`check` is pure: the grant, what the job wants, and what is known, in; every reason to refuse, in words, out; none means
allowed. The owner's own node asks it, with its own clock and its own `fl_core.trust.grant_store`, before it opens the
data, so a hostile coordinator can only be refused. What no field allows is refused.

A grant is approved along a chain of signers, the data owner last (`fl_core.trust.grant_statements`). It binds keys, not
names: the grantee and the approvers are named with their cards' fingerprints. Receivers are names; whose key a name is
is what the node's pinned cards say.

A *standing* grant is for whoever comes (`ANYBODY`): its owner alone signs it, by a decision of its own about its node.
Only there may receivers, model and purpose be `ANY` as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fl_core.errors import BadMessage
from fl_core.trust import canonical
from fl_core.trust.catalog import DatasetCard, from_micro
from fl_core.trust.fields import check_hex, check_named, check_text, check_texts, check_whole, closed, jsonable, listed
from fl_core.trust.identity import Card, check_name, is_hex

ANY = "*"  # of algorithms; in a standing grant of everything that is named
MAX_APPROVALS = 16
MAX_RECEIVERS = 1024


@dataclass(frozen=True)
class Signer:
    """Whose signature counts: a name and the fingerprint of its card, 64 hex digits."""

    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        if (self.name, self.fingerprint) == (ANY, ANY):
            return  # `ANYBODY`, whom only a standing grant may name
        check_name(self.name)
        check_hex(self.fingerprint, f"fingerprint of {self.name}")

    @classmethod
    def of(cls, card: Card) -> Signer:
        """Return the signer that a card shows."""
        return cls(card.name, card.fingerprint)

    @classmethod
    def from_dict(cls, table: Any) -> Signer:
        """Build it from untrusted JSON; raises BadMessage."""
        return cls(**closed(cls, table, "signer"))


ANYBODY = Signer(ANY, ANY)


@dataclass(frozen=True)
class Terms:
    """What is asked for, or granted; terms that exist are well formed.

    Attributes
    ----------
    owner, dataset
        The dataset, by its owner's name and its own.
    version
        The only version, by its commitment (64 hex digits); empty for any.
    grantee
        Who may submit the job; `ANYBODY` makes these the terms of a standing grant.
    kinds
        Kinds of job, 1 to 32 names.
    algorithms
        1 to 64 names, or `ANY` alone.
    model
        Digest of the one custom model allowed, 64 hex digits; empty for built-in models only; `ANY` (standing).
    job
        Digest of the one job allowed; empty for any job within these terms.
    private_only
        Whether a job must spend ε, so must add noise. Otherwise jobs that spend none are covered.
    uses
        How many runs at most, from 1.
    epsilon
        How much all of them together, in millionths of ε at the dataset's δ.
    receivers
        Names of those who may get a result of the job; nobody else, the grantee included; `ANY` alone (standing).
    not_before, not_after
        Milliseconds since 1970 UTC: not_before ≤ time < not_after.
    purpose
        One of the purposes that the dataset's card allows; `ANY` (standing).
    """

    owner: str
    dataset: str
    version: str
    grantee: Signer
    kinds: tuple[str, ...]
    algorithms: tuple[str, ...]
    model: str
    job: str
    private_only: bool
    uses: int
    epsilon: int
    receivers: tuple[str, ...]
    not_before: int
    not_after: int
    purpose: str

    def __post_init__(self) -> None:
        check_name(self.owner)
        check_named(self.dataset, "grant: dataset")
        if not isinstance(self.grantee, Signer) or type(self.private_only) is not bool:
            raise BadMessage("grant: grantee is a signer, private_only true or false")
        for name in ("version", "model", "job"):
            if not (name == "model" and self.standing and self.model == ANY):
                check_hex(getattr(self, name), f"grant: {name}", empty=True)
        check_texts(self.kinds, "grant: kinds", low=1, high=32, named=True)
        check_texts(self.algorithms, "grant: algorithms", low=1, high=64, named=self.algorithms != (ANY,))
        anyone = self.standing and self.receivers == (ANY,)
        check_texts(self.receivers, "grant: receivers", low=0, high=MAX_RECEIVERS, named=not anyone)
        check_whole(self.uses, "grant: uses", low=1)
        check_whole(self.epsilon, "grant: epsilon")
        check_whole(self.not_before, "grant: not_before")
        check_whole(self.not_after, "grant: not_after", low=self.not_before + 1)
        check_text(self.purpose, "grant: purpose")
        if self.purpose == ANY and not self.standing:
            raise BadMessage(f"grant: purpose {ANY}; allowed: one of the purposes of the dataset's card")

    @property
    def standing(self) -> bool:
        """Whether they are for whoever comes."""
        return self.grantee == ANYBODY

    @classmethod
    def from_dict(cls, table: Any) -> Terms:
        """Build terms from untrusted JSON; raises BadMessage for any missing, unknown or bad field."""
        fields = closed(cls, table, "grant terms")
        lists = {name: listed(fields[name], f"grant: {name}") for name in ("kinds", "algorithms", "receivers")}
        return cls(**{**fields, **lists, "grantee": Signer.from_dict(fields["grantee"])})


@dataclass(frozen=True)
class Grant:
    """A closed record of consent; it has effect when everybody of `approvals` has signed it, in that order.

    Attributes
    ----------
    terms
        To what.
    approvals
        Who must sign, in order, 1 to 16 distinct names and keys; the data owner is the last.
    request
        Digest of the `grant-request` statement that it answers; empty for none.
    nonce
        16 random bytes, hex: two grants of equal terms stay two.
    self_issued
        Made by a local run for its own parties, not by a decision: the owner alone approves it.
    """

    terms: Terms
    approvals: tuple[Signer, ...]
    request: str = ""
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    self_issued: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Terms) or type(self.self_issued) is not bool:
            raise BadMessage("grant: terms are terms, self_issued true or false")
        chain = self.approvals
        if not isinstance(chain, tuple) or not all(isinstance(signer, Signer) for signer in chain):
            raise BadMessage("grant: approvals are a list of signers")
        alone = self.self_issued or self.terms.standing
        if not 1 <= len(chain) <= (1 if alone else MAX_APPROVALS):
            raise BadMessage(f"grant: {len(chain)} approvals; allowed: {'1' if alone else f'1 to {MAX_APPROVALS}'}")
        if ANYBODY in chain:
            raise BadMessage("grant: anybody approves it; allowed: somebody with a key")
        if self.terms.standing and (self.self_issued or self.request):
            raise BadMessage("grant: a standing grant that is self-issued or answers a request; allowed: neither")
        if len({s.name for s in chain}) < len(chain) or len({s.fingerprint for s in chain}) < len(chain):
            raise BadMessage("grant: an approver is named twice")
        if chain[-1].name != self.terms.owner:
            raise BadMessage(f"grant: the last approval is by {chain[-1].name}; allowed: the owner {self.terms.owner}")
        check_hex(self.request, "grant: request", empty=True)
        if not is_hex(self.nonce, 16):
            raise BadMessage("grant: a nonce is 16 bytes of lower-case hex")

    @classmethod
    def from_dict(cls, table: Any) -> Grant:
        """Build a grant from untrusted JSON; raises BadMessage for any missing, unknown or bad field."""
        fields = closed(cls, table, "grant")
        chain = tuple(Signer.from_dict(item) for item in listed(fields["approvals"], "grant: approvals"))
        return cls(**{**fields, "terms": Terms.from_dict(fields["terms"]), "approvals": chain})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        return dict(jsonable(self))

    @cached_property
    def id(self) -> str:
        """SHA-256 over all of it, 64 hex digits."""
        return canonical.digest({"v": 1, "grant": self.to_dict()})


# ---- the decision


@dataclass(frozen=True)
class Request:
    """What one job wants of one dataset, as the owner's node reads it from the job and its own data.

    Attributes
    ----------
    owner, dataset, version
        The dataset, and the commitment of what would be opened; empty if unknown.
    grantee
        Fingerprint of the card under which the job was submitted.
    kind, algorithm, model
        Of the job; `model` is the digest of a custom model, empty for a built-in one.
    receivers
        Everybody who gets a result.
    epsilon
        What the job spends at most, in millionths at the dataset's δ; 0 for a job that adds no noise.
    cohort
        How many data owners take part.
    time
        The node's own clock, never the coordinator's: milliseconds since 1970 UTC.
    job
        Digest of the job.
    """

    owner: str
    dataset: str
    version: str
    grantee: str
    kind: str
    algorithm: str
    model: str
    receivers: tuple[str, ...]
    epsilon: int
    cohort: int
    time: int
    job: str

    def __post_init__(self) -> None:
        check_name(self.owner)
        for name in ("dataset", "kind", "algorithm"):
            check_named(getattr(self, name), f"request: {name}")
        check_hex(self.version, "request: version", empty=True)
        check_hex(self.model, "request: model", empty=True)
        check_hex(self.grantee, "request: grantee")
        check_hex(self.job, "request: job")
        check_texts(self.receivers, "request: receivers", low=0, high=MAX_RECEIVERS, named=True)
        for name, low in (("epsilon", 0), ("cohort", 1), ("time", 0)):
            check_whole(getattr(self, name), f"request: {name}", low=low)


@dataclass(frozen=True)
class Usage:
    """What other runs have used (committed) or hold (reserved): of the grant, and of the dataset's whole budget."""

    uses_committed: int = 0
    uses_reserved: int = 0
    epsilon_committed: int = 0
    epsilon_reserved: int = 0
    budget_spent: int = 0


@dataclass(frozen=True)
class State:
    """What is known when a job is weighed.

    Attributes
    ----------
    owner_key
        Fingerprint of the owner's own card, from the owner's own key.
    card
        The dataset's latest card; None for a dataset that is not in the catalog.
    withdrawn
        Whether the dataset is withdrawn.
    revoked_keys
        Fingerprints of cards that nobody may use any more; what they signed before counts for nothing either.
    strict
        Whether self-issued grants are refused.
    approvals
        Who has signed, in turn: what `grant_statements.approved_by` found.
    revoked
        Whether somebody of the chain has revoked the grant.
    usage
        Other runs' uses.
    """

    owner_key: str
    card: DatasetCard | None
    withdrawn: bool = False
    revoked_keys: frozenset[str] = frozenset()
    strict: bool = False
    approvals: tuple[Signer, ...] = ()
    revoked: bool = False
    usage: Usage = field(default_factory=Usage)


def check(grant: Grant, request: Request, state: State) -> tuple[str, ...]:
    """Return every reason why `grant` does not cover `request`, each `topic: words`; empty if it does.

    Topics: dataset, version, grantee, kind, algorithm, model, job, receivers, noise, time; owner, approvals, revoked,
    keys, self-issued; catalog, withdrawn, purpose, cohort; uses, epsilon, budget.
    """
    card = state.card
    if card is not None and (card.owner, card.name) != (grant.terms.owner, grant.terms.dataset):
        card = None
    return (
        *_against_terms(grant.terms, request),
        *_against_consent(grant, request, state),
        *_against_catalog(grant.terms, request, state, card),
        *_against_amounts(grant.terms, request, state.usage, card),
    )


def _against_terms(terms: Terms, request: Request) -> Iterator[str]:
    where = f"{terms.owner}/{terms.dataset}"
    if (request.owner, request.dataset) != (terms.owner, terms.dataset):
        yield f"dataset: {request.owner}/{request.dataset}; allowed: {where}"
    if terms.version and request.version != terms.version:
        yield f"version: {_short(request.version)}; allowed: {_short(terms.version)}"
    if request.grantee != terms.grantee.fingerprint and not terms.standing:
        allowed = f"{terms.grantee.name}, {_short(terms.grantee.fingerprint)}"
        yield f"grantee: the key {_short(request.grantee)}; allowed: {allowed}"
    if request.kind not in terms.kinds:
        yield f"kind: {request.kind}; allowed: {', '.join(terms.kinds)}"
    if terms.algorithms != (ANY,) and request.algorithm not in terms.algorithms:
        yield f"algorithm: {request.algorithm}; allowed: {', '.join(terms.algorithms)}"
    if terms.model not in (ANY, request.model):
        yield f"model: {_short(request.model) or 'built-in'}; allowed: {_short(terms.model) or 'built-in'}"
    if terms.job and request.job != terms.job:
        yield f"job: {_short(request.job)}; allowed: {_short(terms.job)}"
    outside = [name for name in request.receivers if name not in terms.receivers]
    if outside and terms.receivers != (ANY,):
        yield f"receivers: {', '.join(outside)}; allowed: {', '.join(terms.receivers) or 'nobody'}"
    if terms.private_only and request.epsilon == 0:
        yield "noise: the job adds none; allowed: jobs under differential privacy"
    if request.time < terms.not_before:
        yield f"time: {request.time}; the grant begins at {terms.not_before}"
    if request.time >= terms.not_after:
        yield f"time: {request.time}; the grant ended at {terms.not_after}"


def _against_consent(grant: Grant, request: Request, state: State) -> Iterator[str]:
    if grant.approvals[-1].fingerprint != state.owner_key:
        yield f"owner: the grant is under another key of {grant.terms.owner} than this node's"
    count = 0
    while count < min(len(grant.approvals), len(state.approvals)) and grant.approvals[count] == state.approvals[count]:
        count += 1
    if missing := [signer.name for signer in grant.approvals[count:]]:
        yield f"approvals: not signed in turn by {', '.join(missing)}"
    if state.revoked:
        yield "revoked: the grant was revoked"
    parties = (grant.terms.grantee, *grant.approvals)
    if withdrawn := sorted({signer.name for signer in parties if signer.fingerprint in state.revoked_keys}):
        yield f"keys: revoked is the key of {', '.join(withdrawn)}"
    elif grant.terms.standing and request.grantee in state.revoked_keys:
        yield "keys: revoked is the key under which the job was submitted"
    if grant.self_issued and state.strict:
        yield "self-issued: the job made the grant itself; allowed: grants that somebody approved"


def _against_catalog(terms: Terms, request: Request, state: State, card: DatasetCard | None) -> Iterator[str]:
    where = f"{terms.owner}/{terms.dataset}"
    if state.withdrawn:
        yield f"withdrawn: {where} is no longer offered"
    if card is None:
        yield f"catalog: {where} is not published"
        return
    if request.kind not in card.kinds:
        yield f"catalog: kind {request.kind}; the dataset's card allows: {', '.join(card.kinds)}"
    if terms.purpose not in (ANY, *card.purposes):
        yield f"purpose: {terms.purpose}; the dataset's card allows: {', '.join(card.purposes)}"
    if request.cohort < card.min_cohort:
        yield f"cohort: {request.cohort} data owners; allowed: from {card.min_cohort}"


def _against_amounts(terms: Terms, request: Request, usage: Usage, card: DatasetCard | None) -> Iterator[str]:
    if usage.uses_committed + usage.uses_reserved + 1 > terms.uses:
        yield f"uses: {usage.uses_committed} used and {usage.uses_reserved} under way; allowed: {terms.uses}"
    total = usage.epsilon_committed + usage.epsilon_reserved + request.epsilon
    if total > terms.epsilon:
        yield f"epsilon: with this job {from_micro(total)}; the grant allows {from_micro(terms.epsilon)}"
    if card is not None and (spent := usage.budget_spent + request.epsilon) > card.epsilon:
        where = f"{terms.owner}/{terms.dataset}"
        yield f"budget: with this job {from_micro(spent)} of {where}; its owner allows {from_micro(card.epsilon)}"


def _short(digest: str) -> str:
    return f"{digest[:16]}…" if digest else ""
