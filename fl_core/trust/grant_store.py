"""The owner's durable record of grants and their uses, in the owner's own home; two phases, one transaction each.

A run *reserves* one use and the ε that it may spend before the data are opened, and *commits* what it spent when its
last message has left, or *releases* the use if the data were never opened. `check` and the reservation are one
immediate transaction, so of two processes that race for the last use or the last ε one gets it:

==============================  ==================================================================
killed or powered off           what is there afterwards
==============================  ==================================================================
before a reservation is synced  nothing: nobody was let in
after it                        one use and all its ε, held until `commit` or `release`
before a commit is synced       still held: more than was spent, never less
after it                        what was spent; committing again changes nothing
==============================  ==================================================================

A run that comes back while it holds a use is weighed again without its own: it neither loses nor doubles it, and a
grant that has ended since stops it. A committed run is over: it can only come back as a replay. ε adds up as it is; an
accountant that composes tighter, as `fl_core.trust.budget`, keeps its own limit beside this one.

The file remembers the latest time that it was told, so a clock that is set back makes no grant young again. It keeps
revocations and approvals too: a ledger that later hides one changes nothing here.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_core.errors import BadMessage, BudgetExceeded, RefusedError
from fl_core.files import private_dir
from fl_core.trust import canonical, database
from fl_core.trust.entry import Statement
from fl_core.trust.fields import check_whole, jsonable
from fl_core.trust.grant_statements import (
    Approval,
    Denial,
    GrantRequest,
    Revocation,
    approved_by,
    read_body,
    revoked_by,
)
from fl_core.trust.grants import Grant, Request, Signer, State, Usage, check
from fl_core.trust.identity import Card

_FILE = database.FileType(
    word="file of grants",
    application_id=0x66736772,  # "fsgr"
    version=1,
    schema="""
        CREATE TABLE grants (id TEXT PRIMARY KEY, request TEXT NOT NULL, body BLOB NOT NULL) STRICT;
        CREATE TABLE statements (
            digest TEXT PRIMARY KEY, kind TEXT NOT NULL, about TEXT NOT NULL, statement BLOB NOT NULL,
            card BLOB NOT NULL) STRICT;
        CREATE INDEX statements_about ON statements (about);
        CREATE TABLE uses (
            run TEXT PRIMARY KEY, grant_id TEXT NOT NULL, dataset TEXT NOT NULL, request TEXT NOT NULL,
            job TEXT NOT NULL, asked INTEGER NOT NULL, spent INTEGER NOT NULL DEFAULT 0
                CHECK (spent BETWEEN 0 AND asked),
            state TEXT NOT NULL CHECK (state IN ('reserved', 'committed', 'released')), time INTEGER NOT NULL) STRICT;
        CREATE INDEX uses_grant ON uses (grant_id);
        CREATE INDEX uses_dataset ON uses (dataset);
        CREATE TABLE clock (latest INTEGER NOT NULL) STRICT;
    """,
)
_RUN = re.compile(r"[\x21-\x7e]{1,128}")
_AMOUNTS = ("epsilon", "budget")  # topics of reasons that are about privacy spent
_USE = "run, grant_id, dataset, job, asked, spent, state, time"


@dataclass(frozen=True)
class Use:
    """One run's use of a grant.

    Attributes
    ----------
    run, grant, dataset, job
        The run, the grant's id, `owner/name`, the job's digest.
    asked, spent
        Millionths of ε: at most, and, once committed, in fact.
    state
        `reserved`, `committed` or `released`.
    time
        When it was first reserved, milliseconds since 1970 UTC.
    """

    run: str
    grant: str
    dataset: str
    job: str
    asked: int
    spent: int
    state: str
    time: int


@dataclass(frozen=True)
class Reservation:
    """A run's leave to open the data: its use, whether that is new, and what must be said of the clock, if anything."""

    use: Use
    new: bool
    warning: str = ""


@dataclass(frozen=True)
class Account:
    """A grant as the owner's page shows it: who has signed, who has revoked, what is used, what is left."""

    grant: Grant
    approvals: tuple[Signer, ...]
    revoked: tuple[Signer, ...]
    usage: Usage
    uses: tuple[Use, ...]

    @property
    def uses_left(self) -> int:
        """How many more runs; those under way count as used."""
        return max(self.grant.terms.uses - self.usage.uses_committed - self.usage.uses_reserved, 0)

    @property
    def epsilon_left(self) -> int:
        """How much more, in millionths; what is reserved counts as used."""
        return max(self.grant.terms.epsilon - self.usage.epsilon_committed - self.usage.epsilon_reserved, 0)


@dataclass(frozen=True)
class Waiting:
    """A request that no grant has answered and nobody has denied; `digest` is that of its statement."""

    digest: str
    request: GrantRequest


class GrantStore:
    """The file of one owner; safe to use from several processes.  Holds no connection between calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        private_dir(path.parent)
        if not path.exists():
            database.create(path, _FILE, mode=0o600, fill=_begin)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with (
            database.storage_errors(self.path),
            contextlib.closing(database.connect(self.path, _FILE, writable=True)) as db,
            database.transaction(db),
        ):
            yield db

    # ---- statements

    def keep(self, statement: Statement, card: Card, *, log: str) -> bool:
        """Keep a request, an approval, a denial or a revocation, by its digest; False if it was there.

        Raises
        ------
        BadSignature
            If the party of `card` did not sign it.
        BadMessage
            If it is malformed, of another log than `log`, or by somebody who has no say in it: a request by another
            than its grantee, an approval by nobody of the chain.
        """
        statement.verify(card)
        if statement.log != log:
            raise BadMessage(f"{statement.by}: a statement for {statement.log} in {log}")
        body, signer = read_body(statement), Signer.of(card)
        allowed: tuple[Signer, ...] = (signer,)
        if isinstance(body, GrantRequest):
            about, allowed = statement.digest, (body.terms.grantee,)
        elif isinstance(body, Approval):
            about, allowed = body.grant.id, body.grant.approvals
        elif isinstance(body, Denial | Revocation):
            about = body.about
        else:
            raise BadMessage(f"{statement.kind} of {statement.by}: what this file writes itself")
        if signer not in allowed:
            names = ", ".join(s.name for s in allowed)
            raise BadMessage(f"{statement.kind} by {statement.by} under a key that has no say; allowed: {names}")
        values = (statement.digest, statement.kind, about, statement.encode(), canonical.encode(card.to_dict()))
        with self._transaction() as db:
            if isinstance(body, Approval):
                _keep_grant(db, body.grant)
            return db.execute("INSERT OR IGNORE INTO statements VALUES (?, ?, ?, ?, ?)", values).rowcount == 1

    def statements(self, about: str) -> tuple[Statement, ...]:
        """Return what is kept about a grant (its id) or a request (its digest), in the order of keeping."""
        with self._transaction() as db:
            return tuple(statement for statement, _ in _signed(db, about))

    # ---- uses

    def reserve(self, grant: Grant, request: Request, run: str, state: State) -> Reservation:
        """Check, and set one use and its ε aside for `run`, or refuse it.

        Asking again for a run that holds a use of the same grant for the same request (but for its time) weighs it
        again and changes nothing. A run that released its use starts afresh.

        Parameters
        ----------
        state
            What is known outside this file; `usage` is replaced, `approvals` and `revoked` are completed from it.

        Raises
        ------
        BudgetExceeded
            If only ε is short.
        RefusedError
            For any other reason, all of them in one line; also if the run holds a use for another grant or request,
            or has committed its use.
        """
        if not _RUN.fullmatch(run):
            raise BadMessage("a run id is printable ASCII without spaces, 1 to 128 characters")
        key = canonical.digest({name: value for name, value in jsonable(request).items() if name != "time"})
        dataset = f"{grant.terms.owner}/{grant.terms.dataset}"
        with self._transaction() as db:
            latest = _latest(db, request.time)
            held = db.execute("SELECT grant_id, request, state FROM uses WHERE run = ?", (run,)).fetchone()
            reasons = _against_run(run, held, (grant.id, key))
            if not reasons:
                known = _complete(db, state, grant, dataset, run)
                reasons = check(grant, replace(request, time=latest), known)
            new = held is None or held[2] == "released"
            if not reasons and new:
                _keep_grant(db, grant)
                db.execute(
                    "INSERT OR REPLACE INTO uses VALUES (?, ?, ?, ?, ?, ?, 0, 'reserved', ?)",
                    (run, grant.id, dataset, key, request.job, request.epsilon, latest),
                )
            use = _use(db, run)
        warning = _clock_warning(request.time, latest)
        if reasons:  # raised here, so that the latest time stays in the file
            raise _refusal(reasons, warning)
        assert use is not None
        return Reservation(use, new, warning)

    def commit(self, run: str, epsilon: int) -> bool:
        """Record what a run spent, in millionths of ε, durably; the rest of what it asked for is free again.

        Returns
        -------
        bool
            False where the same was committed before.

        Raises
        ------
        RefusedError
            If the run holds no use, or committed another ε.
        BudgetExceeded
            If it is more than was reserved; then all that was reserved stays held.
        """
        check_whole(epsilon, f"run {run}: epsilon")
        with self._transaction() as db:
            use = _use(db, run)
            if use is None or use.state == "released":
                raise RefusedError(f"run {run}: no use is reserved")
            if use.state == "committed":
                if use.spent != epsilon:
                    raise RefusedError(f"run {run}: committed with {use.spent} millionths of ε before, not {epsilon}")
                return False
            if epsilon > use.asked:
                raise BudgetExceeded(f"run {run}: {epsilon} millionths of ε; reserved are {use.asked}")
            db.execute("UPDATE uses SET state = 'committed', spent = ? WHERE run = ?", (epsilon, run))
        return True

    def release(self, run: str) -> bool:
        """Give back the use of a run for which the data were not opened; False if it held none."""
        with self._transaction() as db:
            sql = "UPDATE uses SET state = 'released' WHERE run = ? AND state = 'reserved'"
            return db.execute(sql, (run,)).rowcount == 1

    # ---- the owner's page

    def use(self, run: str) -> Use | None:
        """Return a run's use, if it ever had one."""
        with self._transaction() as db:
            return _use(db, run)

    def uses(self) -> tuple[Use, ...]:
        """Return all uses, oldest first."""
        with self._transaction() as db:
            return _uses(db)

    def open_runs(self) -> tuple[str, ...]:
        """Return the runs that hold a use: under way, or crashed and neither committed nor released."""
        return tuple(use.run for use in self.uses() if use.state == "reserved")

    def spent(self, owner: str, dataset: str) -> tuple[int, int]:
        """Return (committed, reserved) millionths of ε of a dataset, over all its versions and grants."""
        with self._transaction() as db:
            usage = [use for use in _uses(db) if use.dataset == f"{owner}/{dataset}"]
        return sum(use.spent for use in usage), sum(use.asked for use in usage if use.state == "reserved")

    def account(self, grant: Grant) -> Account:
        """Return what became of one grant."""
        with self._transaction() as db:
            return _account(db, grant)

    def accounts(self) -> tuple[Account, ...]:
        """Return what became of every grant that was kept or used, in the order in which they came."""
        with self._transaction() as db:
            return tuple(_account(db, grant) for grant in _grants(db))

    def waiting(self) -> tuple[Waiting, ...]:
        """Return the requests that the owner has neither granted nor denied, oldest first."""
        sql = "SELECT digest, statement FROM statements WHERE kind = ? ORDER BY rowid"
        found = []
        with self._transaction() as db:
            for digest, data in db.execute(sql, (GrantRequest.KIND,)).fetchall():
                body = read_body(Statement.decode(data))
                if isinstance(body, GrantRequest) and not _answered(db, digest, body.terms.owner):
                    found.append(Waiting(digest, body))
        return tuple(found)

    # ---- the clock

    def latest(self) -> int:
        """Return the latest time that this file was told, milliseconds since 1970 UTC."""
        with self._transaction() as db:
            return _latest(db, 0)

    def set_clock(self, time: int) -> None:
        """Take `time` for the latest: the owner's own act after a clock that stood too late, never a job's."""
        check_whole(time, "time")
        with self._transaction() as db:
            db.execute("UPDATE clock SET latest = ?", (time,))


def _begin(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO clock VALUES (0)")


def _latest(db: sqlite3.Connection, now: int) -> int:
    db.execute("UPDATE clock SET latest = max(latest, ?)", (now,))
    return int(db.execute("SELECT latest FROM clock").fetchone()[0])


def _keep_grant(db: sqlite3.Connection, grant: Grant) -> None:
    body = canonical.encode(grant.to_dict())
    db.execute("INSERT OR IGNORE INTO grants VALUES (?, ?, ?)", (grant.id, grant.request, body))


def _signed(db: sqlite3.Connection, about: str) -> list[tuple[Statement, Card]]:
    rows = db.execute("SELECT statement, card FROM statements WHERE about = ? ORDER BY rowid", (about,))
    return [(Statement.decode(data), Card.from_dict(canonical.decode(card))) for data, card in rows]


def _answered(db: sqlite3.Connection, digest: str, owner: str) -> bool:
    """Whether the owner has denied a request, or signed a grant that answers it."""
    if any(s.by == owner and isinstance(read_body(s), Denial) for s, _ in _signed(db, digest)):
        return True
    answers = [grant for grant in _grants(db, request=digest) if grant.terms.owner == owner]
    return any(approved_by(grant, _signed(db, grant.id)) == grant.approvals for grant in answers)


def _grants(db: sqlite3.Connection, *, request: str | None = None) -> list[Grant]:
    sql = "SELECT body FROM grants WHERE ? IS NULL OR request = ? ORDER BY rowid"
    return [Grant.from_dict(canonical.decode(body)) for (body,) in db.execute(sql, (request, request)).fetchall()]


def _account(db: sqlite3.Connection, grant: Grant) -> Account:
    signed = _signed(db, grant.id)
    usage = _usage(db, grant.id, f"{grant.terms.owner}/{grant.terms.dataset}", besides="")
    uses = tuple(use for use in _uses(db) if use.grant == grant.id)
    return Account(grant, approved_by(grant, signed), revoked_by(grant, signed), usage, uses)


def _uses(db: sqlite3.Connection) -> tuple[Use, ...]:
    return tuple(Use(*row) for row in db.execute(f"SELECT {_USE} FROM uses ORDER BY time, rowid"))  # noqa: S608


def _use(db: sqlite3.Connection, run: str) -> Use | None:
    row = db.execute(f"SELECT {_USE} FROM uses WHERE run = ?", (run,)).fetchone()  # noqa: S608
    return None if row is None else Use(*row)


def _usage(db: sqlite3.Connection, grant: str, dataset: str, *, besides: str) -> Usage:
    committed, reserved, spent, asked = db.execute(
        "SELECT COALESCE(SUM(state = 'committed'), 0), COALESCE(SUM(state = 'reserved'), 0),"
        " COALESCE(SUM(spent), 0), COALESCE(SUM(iif(state = 'reserved', asked, 0)), 0)"
        " FROM uses WHERE grant_id = ? AND run != ?",
        (grant, besides),
    ).fetchone()
    (of_dataset,) = db.execute(
        "SELECT COALESCE(SUM(iif(state = 'reserved', asked, spent)), 0) FROM uses WHERE dataset = ? AND run != ?",
        (dataset, besides),
    ).fetchone()
    return Usage(committed, reserved, spent, asked, of_dataset)


def _complete(db: sqlite3.Connection, state: State, grant: Grant, dataset: str, run: str) -> State:
    """What is known outside, with what this file knows."""
    signed = _signed(db, grant.id)
    return replace(
        state,
        approvals=max(state.approvals, approved_by(grant, signed), key=len),
        revoked=state.revoked or bool(revoked_by(grant, signed)),
        usage=_usage(db, grant.id, dataset, besides=run),
    )


def _against_run(run: str, held: Any, wanted: tuple[str, str]) -> tuple[str, ...]:
    if held is None or held[2] == "released":
        return ()
    if held[2] == "committed":
        return (f"run: {run} has had its use; allowed: a new run",)
    return () if tuple(held[:2]) == wanted else (f"run: {run} holds a use for another grant or request",)


def _clock_warning(now: int, latest: int) -> str:
    if now >= latest:
        return ""
    return f"this machine's clock is {latest - now} ms behind the latest time seen, which is used instead"


def _refusal(reasons: tuple[str, ...], warning: str) -> RefusedError:
    error = BudgetExceeded if all(reason.partition(":")[0] in _AMOUNTS for reason in reasons) else RefusedError
    return error("; ".join([*reasons, *([warning] if warning else [])]))
