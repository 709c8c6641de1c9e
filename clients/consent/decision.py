"""The owner's decision at its own node: whether a job may open its data, before they are opened.

Nothing here is believed of a coordinator.  A grant counts by the owner's own signature in the owner's own store; who
wants to use it shows an order signed with the key that the grant names (`fl_core.trust.order`).  So a coordinator can
neither make, widen nor replay one: each order is for one run, and a run that comes back shows the same order.  Whose
roles this node has been shown (`fl_core.trust.profile`) orders what they allow, whatever grant there is.

::

    parties/<name>/grants.db             `fl_core.trust.grant_store`
    parties/<name>/consent/owner.json    what is published, where the data of a name lie, which grants there are,
                                         which roles others claim
                           orders/       the run that each order was taken for
                           opened/       runs under way of which something may have left

`ConsentBook` has what the owner does as a person: publish, withdraw, approve, deny, revoke.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clients.consent.book import ConsentBook, now_ms
from clients.consent.order import AMOUNTS, NotGranted, Ordered, OverGranted, topics_of
from clients.consent.terms import Wanted
from fl_core.errors import BudgetExceeded, RefusedError
from fl_core.trust import canonical, order
from fl_core.trust.catalog import UNLIMITED, DatasetCard, Listing
from fl_core.trust.grant_store import Use
from fl_core.trust.grants import Grant, Request, Signer, State, Terms, check
from fl_core.trust.roles import Action

OWN = "own job"  # the purpose of a grant that a local job makes itself, where nothing is published
NOBODY = "0" * 64  # stands for the key of a look that shows no order


@dataclass(frozen=True)
class Leave:
    """A run's leave to open the data.

    Attributes
    ----------
    grant
        The grant that covers it.
    order
        Digest of the order.
    epsilon
        What is set aside, in millionths.
    new
        Whether this call set it aside.
    over
        Whether the run has had its use: what it answered may be told again, the data stay shut.
    """

    grant: Grant
    order: str
    epsilon: int
    new: bool
    over: bool = False


class Consent(ConsentBook):
    """An owner's consent: what it signed, and the decision on each run.  Safe for several processes."""

    def weigh(
        self, wanted: Wanted, *, view: Mapping[str, Any], log: str, run: str, blobs: Mapping[str, bytes], strict: bool,
        now: int | None = None, began: tuple[str, str] | None = None,
    ) -> Leave:  # fmt: skip
        """Decide whether a run may open a dataset, and set its use aside; asked before the data are opened.

        Parameters
        ----------
        view
            The job's public view, as this party was given it.
        log
            Origin of the log for which the request is.
        blobs
            Of the request, with the order and its signer's card; untrusted.
        strict
            Whether only grants that somebody decided on count. Else a job makes its own, marked so.
        now
            This node's clock, milliseconds since 1970 UTC.
        began
            Of a run that comes back: the digest of its order and the id of its grant.

        Raises
        ------
        NotGranted
            If the submitter's roles do not allow it, or no grant covers it: every reason of the one that comes closest.
        OverGranted
            If only ε is short.
        """
        time = now_ms(now)
        ordered = Ordered.open(blobs, view, log=log, look=False)
        if began is not None and ordered.digest != began[0]:
            raise NotGranted("order: another one than this run began with")
        if self._held.run_of(ordered.key) not in (None, run):
            raise NotGranted("order: it was taken for another run; allowed: an order for each run")
        use = self.store.use(run)
        if use is None or use.state != "committed":  # one that is over opens nothing
            self._check_role(ordered, log)
        if use is not None and use.state != "released":
            leave = self._again(wanted, ordered, use, time, run=run, strict=strict)
        elif began is None:
            grants = self._grants_of(wanted.dataset)
            leave = self._first(grants, wanted, ordered, time, run=run, strict=strict, issue=not strict, log=log)
        else:
            grants = [grant for grant in (self.grant(began[1]),) if grant is not None]
            leave = self._first(grants, wanted, ordered, time, run=run, strict=strict, issue=False, log=log)
        if not self._held.take(ordered.key, run):
            self.release(run)
            raise NotGranted("order: it was taken for another run; allowed: an order for each run")
        return leave

    def _check_role(self, ordered: Ordered, log: str) -> None:
        try:
            self._require(ordered.card, Action.SUBMIT_JOB, log=log)
        except RefusedError as error:
            raise NotGranted(f"role: {error}") from None

    def _again(self, wanted: Wanted, ordered: Ordered, use: Use, time: int, *, run: str, strict: bool) -> Leave:
        """A run that holds a use, or has had it."""
        grant = self.grant(use.grant)
        if grant is None:
            raise NotGranted("none: the grant of this run is not in the store")
        if use.state == "committed":
            if (use.dataset, use.job) != (f"{wanted.owner}/{wanted.dataset}", wanted.job):
                raise NotGranted("run: it has had its use, for another job")
            return Leave(grant, ordered.digest, use.asked, new=False, over=True)
        return self._reserve(grant, wanted, ordered, time, run=run, strict=strict)

    def _first(
        self, grants: Sequence[Grant], wanted: Wanted, ordered: Ordered, time: int, *, run: str, strict: bool,
        issue: bool, log: str,
    ) -> Leave:  # fmt: skip
        """The first grant that covers it; where none does, the refusal of the one that comes closest."""
        refusals: list[RefusedError] = []
        for grant in grants:
            try:
                return self._reserve(grant, wanted, ordered, time, run=run, strict=strict)
            except (NotGranted, OverGranted) as error:
                refusals.append(error)
        if issue:
            grant = self._self_issued(wanted, ordered, time)
            self._sign(grant, after="", log=log, run=run)
            return self._reserve(grant, wanted, ordered, time, run=run, strict=strict)
        if not refusals:
            where = f"{wanted.owner}/{wanted.dataset}"
            raise NotGranted(f"none: no grant for {where}; allowed: what its owner approves (fedseal grant request)")
        raise min(refusals, key=lambda error: _distance(str(error)))

    def _reserve(self, grant: Grant, wanted: Wanted, ordered: Ordered, time: int, *, run: str, strict: bool) -> Leave:
        listing = self.listing(wanted.dataset)
        terms = grant.terms
        reasons = _against_order(terms, ordered) + _against_delta(wanted, listing)
        if reasons:
            raise NotGranted(*reasons)
        request = self._request(wanted, ordered.card.fingerprint, listing, time)
        try:
            held = self.store.reserve(grant, request, run, self._state(grant, listing, wanted, strict))
        except BudgetExceeded as error:
            raise OverGranted(str(error)) from None
        except RefusedError as error:
            raise NotGranted(str(error)) from None
        return Leave(grant, ordered.digest, wanted.epsilon, new=held.new)

    def _request(self, wanted: Wanted, key: str, listing: Listing | None, time: int) -> Request:
        return Request(
            owner=wanted.owner, dataset=wanted.dataset, version=listing.card.version if listing else "", grantee=key,
            kind=wanted.kind, algorithm=wanted.algorithm, model=wanted.model, receivers=wanted.receivers,
            epsilon=wanted.epsilon, cohort=wanted.cohort, time=time, job=wanted.job,
        )  # fmt: skip

    def _state(self, grant: Grant, listing: Listing | None, wanted: Wanted, strict: bool) -> State:
        """What this node knows; data that are not published are covered by what needs no card."""
        card = listing.card if listing is not None else None
        if card is None and (grant.self_issued or grant.terms.standing):
            card = _unpublished(wanted, grant.terms.purpose)
        return State(
            owner_key=self.identity.card.fingerprint,
            card=card,
            withdrawn=listing is not None and listing.withdrawn,
            revoked_keys=self.revoked_keys,
            strict=strict,
        )

    def _self_issued(self, wanted: Wanted, ordered: Ordered, time: int) -> Grant:
        """For exactly this job, by whoever runs it, once."""
        listing = self.listing(wanted.dataset)
        terms = Terms(
            owner=wanted.owner, dataset=wanted.dataset, version="", grantee=Signer.of(ordered.card),
            kinds=(wanted.kind,), algorithms=(wanted.algorithm,), model=wanted.model, job=wanted.job,
            private_only=False, uses=1, epsilon=wanted.epsilon, receivers=wanted.receivers,
            not_before=min(time, ordered.time), not_after=canonical.MAX_INT,
            purpose=OWN if listing is None else listing.card.purposes[0],
        )  # fmt: skip
        return Grant(terms, (Signer.of(self.identity.card),), self_issued=True)

    def look(
        self, wanted: Wanted, *, view: Mapping[str, Any], log: str, blobs: Mapping[str, bytes], now: int | None = None,
        to_run: bool = False,
    ) -> None:  # fmt: skip
        """Refuse as `weigh` would where `strict`, and set nothing aside; without an order, for somebody unknown.

        `to_run`: the order is one to run, of a job that reads a second dataset.
        """
        ordered = None
        if order.BLOB in blobs:
            ordered = Ordered.open(blobs, view, log=log, look=not to_run)
            self._check_role(ordered, log)
        listing, found = self.listing(wanted.dataset), []
        request = self._request(wanted, ordered.card.fingerprint if ordered else NOBODY, listing, now_ms(now))
        for grant in self._grants_of(wanted.dataset):
            account = self.store.account(grant)
            known = replace(
                self._state(grant, listing, wanted, True),
                approvals=account.approvals, revoked=bool(account.revoked), usage=account.usage,
            )  # fmt: skip
            reasons = check(grant, request, known) + _against_delta(wanted, listing)
            if not reasons:
                return
            found.append(reasons)
        if not found:
            raise NotGranted(f"none: no grant for {wanted.owner}/{wanted.dataset}")
        best = min(found, key=lambda reasons: _distance("; ".join(reasons)))
        only_amounts = {reason.partition(":")[0] for reason in best} <= AMOUNTS
        raise OverGranted(*best) if only_amounts else NotGranted(*best)

    # ---- a run under way

    def opened(self, run: str) -> None:
        """Note, durably and before it happens, that something computed on the data may leave."""
        self._held.mark(run)

    def holds(self, run: str, *, now: int | None = None) -> None:
        """Refuse (`NotGranted`) the next step of a run that holds no use, or whose grant has ended since."""
        use = self.store.use(run)
        if use is None or use.state != "reserved":
            raise NotGranted("uses: this run holds none any more; allowed: a new run")
        grant = self.grant(use.grant)
        if grant is None or self.is_revoked(grant):
            raise NotGranted("revoked: the grant was revoked")
        if max(now_ms(now), self.store.latest()) >= grant.terms.not_after:
            raise NotGranted(f"time: the grant ended at {grant.terms.not_after}")

    def done(self, run: str, epsilon: int | None = None) -> None:
        """The party's part in a run is over: its use is spent, with `epsilon` millionths (default: all set aside)."""
        use = self.store.use(run)
        if use is not None and use.state == "reserved":
            self.store.commit(run, use.asked if epsilon is None else epsilon)
            self._held.unmark(run)

    def release(self, run: str) -> bool:
        """Give back the use of a run that ended before anything left; False where it held none or something did."""
        return not self._held.marked(run) and self.store.release(run)


def _distance(reasons: str) -> tuple[bool, int]:
    """How far a grant is from covering a job; what is revoked comes last."""
    topics = topics_of(reasons)
    return "revoked" in topics, len(topics)


def _against_order(terms: Terms, ordered: Ordered) -> tuple[str, ...]:
    if terms.not_before <= ordered.time < terms.not_after:
        return ()
    return (f"time: the order is of {ordered.time}; the grant is from {terms.not_before} to {terms.not_after}",)


def _against_delta(wanted: Wanted, listing: Listing | None) -> tuple[str, ...]:
    """ε at another δ than the owner's does not add up; at a smaller one it is only larger than it must be."""
    if listing is None or not wanted.epsilon or wanted.delta <= float(listing.card.delta):
        return ()
    return (f"delta: the job counts ε at {wanted.delta:g}; the dataset's card at {listing.card.delta}",)


def _unpublished(wanted: Wanted, purpose: str) -> DatasetCard:
    """Stands for the card of data that no catalog shows: no terms beyond the grant's own."""
    return DatasetCard(
        owner=wanted.owner, name=wanted.dataset, schema=NOBODY, columns=(), rows=0, purposes=(purpose,),
        kinds=(wanted.kind,), epsilon=UNLIMITED, delta="0.00001", min_cohort=1, version=NOBODY, published=0,
    )  # fmt: skip
