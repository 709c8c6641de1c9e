"""What an owner publishes of its data and whom it grants what; the acts of a person, each signed and kept at once.

The statements that come back are for the ledger; what counts at the node is what is kept here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from clients.consent.folder import ConsentFolder
from clients.consent.terms import narrowed
from fl_core.errors import UsageError
from fl_core.trust import canonical, catalog
from fl_core.trust.catalog import UNLIMITED, Catalog, DatasetCard, Listing
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import Approval, Denial, GrantRequest, Revocation, read_body
from fl_core.trust.grant_store import Account, GrantStore, Use, Waiting
from fl_core.trust.grants import ANY, ANYBODY, Grant, Signer, Terms
from fl_core.trust.identity import Card, Identity
from fl_core.trust.profile import KIND as PROFILE
from fl_core.trust.profile import Profile
from fl_core.trust.roles import Action, require


class ConsentBook:
    """What one owner has published and granted, and what was used of it.  Safe for several processes.

    Parameters
    ----------
    folder
        The owner's own, `parties/<name>` of its home.
    identity
        Its keys, which sign here.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity, self._me = identity, Signer.of(identity.card)
        self._path, self._held = folder / "grants.db", ConsentFolder(folder / "consent")
        self._store_held: GrantStore | None = None

    @property
    def store(self) -> GrantStore:
        """The durable record, made when it is first needed."""
        if self._store_held is None:
            self._store_held = GrantStore(self._path)
        return self._store_held

    # ---- the catalog

    def publish(self, card: DatasetCard, *, log: str, place: str = "") -> Statement:
        """Sign and keep a dataset's card; the statement is for the ledger.

        Parameters
        ----------
        log
            Origin of the coordinator's ledger, `fedseal/…`.
        place
            Where the data lie, as `clients.consent.data.place_of` says it: so a job file that names the place uses
            this dataset. Not needed at a node, whose data are bound to names.

        Raises
        ------
        UsageError
            If the card is not of this owner, or not later than what was said of the dataset before.
        """
        return self._say(card.sign(self.identity, log=log), name=card.name, place=place)

    def withdraw(self, name: str, *, log: str, now: int | None = None) -> Statement:
        """Sign and keep the withdrawal of a dataset: no new run may use it.  Raises UsageError if it is unknown."""
        statement = catalog.withdraw(self.identity, name, time=now_ms(now), log=log)
        return self._say(statement, name=name, place="")

    def _say(self, statement: Statement, *, name: str, place: str) -> Statement:
        with self._held.change() as held:
            said, refused = self._fold([*held.datasets, statement])
            if refused and statement.digest[:16] in refused[-1]:  # others: of a key that this owner had before
                raise UsageError(refused[-1])
            assert said.get(self.identity.name, name) is not None
            held.datasets.append(statement)
            if place:
                held.places[place] = name
        return statement

    def _fold(self, statements: Sequence[Statement]) -> tuple[Catalog, tuple[str, ...]]:
        return Catalog.fold(statements, {self.identity.name: self.identity.card}.get)

    def listings(self) -> tuple[Listing, ...]:
        """Return all own datasets, those withdrawn too."""
        return self._fold(self._held.read().datasets)[0].listings(withdrawn=True)

    def listing(self, name: str) -> Listing | None:
        """Return the state of one own dataset, if it was ever published."""
        return self._fold(self._held.read().datasets)[0].get(self.identity.name, name)

    def dataset_at(self, place: str, otherwise: str) -> str:
        """Return the name under which the data at a place are published, else `otherwise`."""
        return self._held.read().places.get(place, otherwise)

    # ---- what others say

    def receive(self, statement: Statement, card: Card) -> str:
        """Keep a request for own data, another approver's yes, a denial, a revocation or a profile, from the board or a
        file.

        Returns
        -------
        str
            What it is about: the id of a request (its digest) or of a grant, a profile's card by its fingerprint.

        Raises
        ------
        BadSignature, BadMessage, WrongKey
            If it is not signed under that card, malformed, or of somebody who has no say in it.
        RefusedError
            For a request of somebody whose roles, as far as they are known, do not allow one.
        UsageError
            If it concerns neither this owner's data nor an approval that this identity is asked for.
        """
        if statement.kind == PROFILE:
            return self._receive_profile(statement, card)
        body = read_body(statement)
        if isinstance(body, GrantRequest):
            about, concerned = statement.digest, body.terms.owner == self.identity.name
        elif isinstance(body, Approval):
            about, concerned = body.grant.id, self._me in body.grant.approvals
        elif isinstance(body, Denial | Revocation):
            about, concerned = body.about, bool(self.store.statements(body.about))
        else:
            about, concerned = "", False
        if not concerned:
            raise UsageError(f"{statement.kind} of {statement.by}: does not concern {self.identity.name}")
        if isinstance(body, GrantRequest):
            self._require(card, Action.REQUEST_GRANT, log=statement.log)
        self.store.keep(statement, card, log=statement.log)
        if isinstance(body, Approval):
            self._index(body.grant)
        return about

    def _receive_profile(self, statement: Statement, card: Card) -> str:
        """An older one than is known, or of a card that counts no more, changes nothing: boards are read again."""
        statement.verify(card)
        profile = Profile.read(statement, card)
        if self._held.read().news(profile, statement.log):
            with self._held.change() as held:
                if held.news(profile, statement.log):
                    held.take(profile, statement.log)
        return card.fingerprint

    def _require(self, card: Card, action: Action, *, log: str) -> None:
        """Raise RefusedError where the roles that this card claims are known, and do not allow it."""
        claim = self._held.read().claims.get(log, {}).get(card.fingerprint)
        if claim is not None:
            require(card.name, claim.held, action)

    @property
    def revoked_keys(self) -> frozenset[str]:
        """Fingerprints of the cards that count no more here, whoever's they are."""
        return frozenset(self._held.read().revoked_keys)

    def distrust(self, *fingerprints: str) -> None:
        """Take cards for revoked from now on, whoever's they are: 64 hex digits each."""
        with self._held.change() as held:
            held.revoked_keys.update(fingerprints)
            for known in held.claims.values():
                for fingerprint in fingerprints:
                    known.pop(fingerprint, None)

    def waiting(self) -> tuple[Waiting, ...]:
        """Return the requests that are neither granted nor denied, oldest first."""
        return self.store.waiting()

    def grants(self) -> tuple[Account, ...]:
        """Return every grant with what was used of it, in the order in which they came."""
        return self.store.accounts()

    def uses(self) -> tuple[Use, ...]:
        """Return every use, oldest first."""
        return self.store.uses()

    # ---- decisions

    def approve(
        self, request: str, *, log: str, uses: int | None = None, epsilon: int | None = None, until: int | None = None,
        since: int | None = None, kinds: tuple[str, ...] | None = None, algorithms: tuple[str, ...] | None = None,
        receivers: tuple[str, ...] | None = None, version: str | None = None, job: str | None = None,
        private_only: bool | None = None, chain: Sequence[Signer] = (),
    ) -> Statement:  # fmt: skip
        """Sign a grant that answers a request; each option may only take away from what was asked for.

        Parameters
        ----------
        request
            The id that `receive` returned; its first digits suffice.
        epsilon, since, until
            Millionths of ε; milliseconds since 1970 UTC.
        chain
            Those who must agree before the owner, in turn; then whoever calls is the first of them, and the others
            `sign` after it.

        Raises
        ------
        UsageError
            If no such request waits, an option gives more, or the dataset is not published.
        """
        found = self._waiting(request)
        terms = narrowed(
            found.request.terms, uses=uses, epsilon=epsilon, not_after=until, not_before=since, kinds=kinds,
            algorithms=algorithms, receivers=receivers, version=version, job=job, private_only=private_only,
        )  # fmt: skip
        if not chain:
            self._must_be_listed(terms)
        grant = Grant(terms, (*chain, self._me) if terms.owner == self.identity.name else tuple(chain), found.digest)
        if grant.approvals[0] != self._me:
            raise UsageError(f"grant: {grant.approvals[0].name} signs first; allowed: whoever is first in the chain")
        return self._sign(grant, after="", log=log)

    def sign(self, grant: str, *, log: str) -> Statement:
        """Sign a grant that others have approved before, in turn.  Raises UsageError where it is not one's turn."""
        account = self._account(grant)
        chain, signed = account.grant.approvals, account.approvals
        if len(signed) == len(chain) or chain[len(signed)] != self._me:
            whose = "nobody" if len(signed) == len(chain) else chain[len(signed)].name
            raise UsageError(f"grant {account.grant.id[:16]}: waits for {whose}")
        if account.grant.terms.owner == self.identity.name:
            self._must_be_listed(account.grant.terms)
        return self._sign(account.grant, after=self._last_approval(account.grant), log=log)

    def deny(self, request: str, reason: str, *, log: str) -> Statement:
        """Sign a no to a request.  Raises UsageError if no such request waits."""
        statement = Denial(self._waiting(request).digest, reason).sign(self.identity, log=log)
        self.store.keep(statement, self.identity.card, log=log)
        return statement

    def revoke(self, grant: str, reason: str, *, log: str) -> Statement:
        """Sign the end of a grant, by its id or its first digits: no run may begin, and none goes on."""
        account = self._account(grant)
        if self._me not in account.grant.approvals:
            raise UsageError(f"grant {account.grant.id[:16]}: {self.identity.name} has not approved it")
        statement = Revocation(account.grant.id, reason).sign(self.identity, log=log)
        self.store.keep(statement, self.identity.card, log=log)
        return statement

    def standing(self, dataset: str, kinds: Sequence[str], *, log: str, first: bool = False) -> Statement | None:
        """Sign a grant of one dataset to whoever comes, without an end; None where one is there already.

        One for other kinds of job is revoked.  `first`: None also where there was one that has been revoked: what the
        owner took back stays so.
        """
        before = self._standing(dataset)
        active = [grant for grant in before if not self.is_revoked(grant)]
        mine = [grant for grant in active if self._me in grant.approvals]  # not under a key from before
        if any(grant.terms.kinds == tuple(kinds) for grant in mine) or (first and before and not active):
            return None
        for grant in mine:
            self.revoke(grant.id, "another standing grant follows", log=log)
        terms = Terms(
            owner=self.identity.name, dataset=dataset, version="", grantee=ANYBODY, kinds=tuple(kinds),
            algorithms=(ANY,), model=ANY, job="", private_only=False, uses=UNLIMITED, epsilon=UNLIMITED,
            receivers=(ANY,), not_before=0, not_after=canonical.MAX_INT, purpose=ANY,
        )  # fmt: skip
        return self._sign(Grant(terms, (self._me,)), after="", log=log)

    def standing_names(self) -> tuple[str, ...]:
        """Return the datasets that have, or had, a standing grant."""
        return tuple(name for name in dict.fromkeys(self._held.read().grants.values()) if self._standing(name))

    def end_standing(self, *, log: str) -> tuple[Statement, ...]:
        """Revoke all standing grants."""
        return tuple(
            self.revoke(grant.id, "each use needs a grant from now on", log=log)
            for name in self.standing_names()
            for grant in self._standing(name)
            if self._me in grant.approvals and not self.is_revoked(grant)
        )

    def _standing(self, dataset: str) -> list[Grant]:
        return [grant for grant in self._grants_of(dataset) if grant.terms.standing]

    def is_revoked(self, grant: Grant) -> bool:
        """Return whether somebody of its chain has revoked a grant."""
        said = any(statement.kind == Revocation.KIND for statement in self.store.statements(grant.id))
        return said and bool(self.store.account(grant).revoked)  # which weighs signatures, and counts uses

    def _sign(self, grant: Grant, *, after: str, log: str, run: str = "") -> Statement:
        statement = Approval(grant, after).sign(self.identity, log=log, run=run)
        self.store.keep(statement, self.identity.card, log=log)
        if not grant.self_issued:
            self._index(grant)
        return statement

    def _index(self, grant: Grant) -> None:
        with self._held.change() as held:
            held.grants[grant.id] = grant.terms.dataset

    def _grants_of(self, dataset: str) -> list[Grant]:
        """The grants of one dataset that somebody decided on; those for one grantee first."""
        found = [grant for id, of in self._held.read().grants.items() if of == dataset and (grant := self.grant(id))]
        return sorted(found, key=lambda grant: grant.terms.standing)

    def grant(self, id: str) -> Grant | None:
        """Return a grant by its id, if this store has an approval of it."""
        for statement in self.store.statements(id):
            body = read_body(statement)
            if isinstance(body, Approval):
                return body.grant
        return None

    def approval(self, id: str) -> Statement | None:
        """Return this owner's own approval of a grant."""
        mine = [s for s in self.store.statements(id) if s.kind == Approval.KIND and s.by == self.identity.name]
        return mine[0] if mine else None

    def _waiting(self, id: str) -> Waiting:
        found = [waiting for waiting in self.waiting() if len(id) >= 8 and waiting.digest.startswith(id)]
        if len(found) != 1:
            raise UsageError(f"request {id[:64]}: {len(found)} such requests wait; allowed: 8 digits of its id or more")
        return found[0]

    def _account(self, id: str) -> Account:
        found = [account for account in self.grants() if len(id) >= 8 and account.grant.id.startswith(id)]
        if len(found) != 1:
            raise UsageError(f"grant {id[:64]}: {len(found)} such grants here; allowed: 8 digits of its id or more")
        return found[0]

    def _must_be_listed(self, terms: Terms) -> None:
        listing = self.listing(terms.dataset)
        if listing is None or listing.withdrawn:
            raise UsageError(f"{terms.owner}/{terms.dataset}: not published; allowed: fedseal data publish first")

    def _last_approval(self, grant: Grant) -> str:
        """Digest of the approval that the next one follows, in whatever order they came."""
        said = [(s, body) for s in self.store.statements(grant.id) if isinstance(body := read_body(s), Approval)]
        before = ""
        for signer in self.store.account(grant).approvals:
            next_ones = [s.digest for s, body in said if s.by == signer.name and body.after == before]
            before = min(next_ones, default=before)
        return before


def now_ms(given: int | None = None) -> int:
    """Return the time, milliseconds since 1970 UTC, or the one that is given."""
    return int(time.time() * 1000) if given is None else given
