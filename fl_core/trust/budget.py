"""An owner's privacy budget: what all jobs together have told about each dataset, in the owner's own home.

A job *reserves* its whole plan before its first round, *commits* each round's steps before that round's
update leaves, and is *closed* at its end, which gives back what it did not use. Spent is what is committed,
plus all that a run still holds reserved: a crash at any point overstates, never understates. The check and
the reservation are one transaction, so jobs in several processes cannot pass the limit together.

The owner's limit is an ε at δ = 1e-5 (`OWNER_DELTA`), whatever δ a job asks for, so that jobs compose. The
accountant is passed in: this module stores (σ, q, steps) and decides, it does no analysis. σ, q and row
counts stay in this file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Protocol

from fl_core.errors import BudgetExceeded, RefusedError
from fl_core.files import private_dir
from fl_core.trust import database

OWNER_DELTA = 1e-5
_SCHEMA = """
CREATE TABLE spendings (
    dataset TEXT NOT NULL, run TEXT NOT NULL, sigma TEXT NOT NULL, q TEXT NOT NULL, delta TEXT NOT NULL,
    steps_reserved INTEGER NOT NULL, steps_committed INTEGER NOT NULL DEFAULT 0
        CHECK (steps_committed BETWEEN 0 AND steps_reserved),
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed')),
    PRIMARY KEY (run, dataset)) STRICT;
CREATE TABLE commits (
    run TEXT NOT NULL, dataset TEXT NOT NULL, round INTEGER NOT NULL, steps INTEGER NOT NULL,
    PRIMARY KEY (run, dataset, round)) STRICT;
CREATE TABLE datasets (dataset TEXT PRIMARY KEY, num_rows INTEGER NOT NULL) STRICT;
"""
_FILE = database.FileType("privacy budget", 0x66736264, 1, _SCHEMA)  # "fsbd"


class SpendLike(Protocol):
    """What `fl_core.learning.privacy.Spend` is."""

    @property
    def noise_multiplier(self) -> float:
        """σ."""

    @property
    def sample_rate(self) -> float:
        """q."""

    @property
    def steps(self) -> int:
        """How many steps."""


@dataclasses.dataclass(frozen=True)
class Spending:
    """Steps of one (σ, q), as stored."""

    noise_multiplier: float
    sample_rate: float
    steps: int


Accountant = Callable[[Sequence[SpendLike], float], float]
"""(spendings, δ) → ε of all of them together, as `fl_core.learning.privacy.epsilon`."""


class Budget:
    """The budget file of one owner; safe to use from several processes. Holds no connection between calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        private_dir(path.parent)
        if not path.exists():
            database.create(path, _FILE, mode=0o600, fill=lambda db: None)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: others wait, and what is done is on the disk when the block has ended."""
        with (
            database.storage_errors(self.path),
            contextlib.closing(database.connect(self.path, _FILE, writable=True)) as db,
            database.transaction(db),
        ):
            yield db

    def reserve(
        self,
        dataset: str,
        run: str,
        *,
        spend: SpendLike,
        limit: float | None,
        epsilon: Accountant,
        delta: float = OWNER_DELTA,
    ) -> float:
        """Set the whole plan of a run aside, or refuse it.

        Asking again for a run that still holds the same plan changes nothing (resume). A closed run may come
        back with the same plan: it is weighed again with all its steps.

        Parameters
        ----------
        spend : σ, q and the steps of all rounds.
        limit : the owner's ε at `delta` over all jobs; None: no limit, still recorded.

        Returns
        -------
        float : ε at `delta` of everything spent or reserved for `dataset`, this run included.

        Raises
        ------
        BudgetExceeded : it would pass the limit. RefusedError : the run holds another plan.
        """
        plan = (
            repr(float(spend.noise_multiplier)),
            repr(float(spend.sample_rate)),
            spend.steps,
            repr(float(delta)),
        )
        epsilon([spend], delta)  # refuses a bad plan, and warms the accountant's cache outside the lock
        with self._transaction() as db:
            held = db.execute(
                "SELECT sigma, q, steps_reserved, delta, state FROM spendings WHERE run = ? AND dataset = ?",
                (run, dataset),
            ).fetchone()
            if held and tuple(held[:4]) != plan:
                raise RefusedError(f"dataset {dataset!r}: run {run} holds a reservation for another plan")
            total = epsilon([*_held(db, dataset, besides=run), spend], delta)
            if held and held[4] == "open":
                return total
            _refuse_over(limit, total, dataset, delta)
            db.execute(
                "INSERT INTO spendings (dataset, run, sigma, q, steps_reserved, delta)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run, dataset) DO UPDATE SET state = 'open'",
                (dataset, run, *plan),
            )
        return total

    def check(
        self,
        dataset: str,
        *,
        spend: SpendLike,
        limit: float | None,
        epsilon: Accountant,
        delta: float = OWNER_DELTA,
        run: str = "",
    ) -> float:
        """What `reserve` would say to `run` (empty: a new one), changing nothing."""
        with self._transaction() as db:
            held = _held(db, dataset, besides=run)
        total = epsilon([*held, spend], delta)
        _refuse_over(limit, total, dataset, delta)
        return total

    def holds(self, run: str) -> bool:
        """Whether a run has a reservation that is not closed."""
        return run in self.open_runs()

    def commit(self, run: str, dataset: str, round: int, steps: int) -> bool:
        """Record a round as spent, durably, before its update leaves the party.

        Returns
        -------
        bool : False where this round was committed before. Then its update may already be out: send the same
            bytes again, never a second draw of the noise.

        Raises
        ------
        RefusedError : no open reservation, or the round was committed with other steps.
        BudgetExceeded : more steps than reserved.
        """
        where = f"dataset {dataset!r}, run {run}, round {round}"
        if steps < 0:
            raise ValueError(f"{steps} steps")
        with self._transaction() as db:
            done = db.execute(
                "SELECT steps FROM commits WHERE run = ? AND dataset = ? AND round = ?", (run, dataset, round)
            ).fetchone()
            if done:
                if done[0] != steps:
                    raise RefusedError(f"{where}: committed with {done[0]} steps before, not {steps}")
                return False
            held = db.execute(
                "SELECT steps_reserved, steps_committed, state FROM spendings WHERE run = ? AND dataset = ?",
                (run, dataset),
            ).fetchone()
            if held is None or held[2] != "open":
                raise RefusedError(f"{where}: no budget is reserved")
            if held[1] + steps > held[0]:
                raise BudgetExceeded(f"{where}: {held[1]} + {steps} steps; reserved are {held[0]}")
            db.execute("INSERT INTO commits VALUES (?, ?, ?, ?)", (run, dataset, round, steps))
            db.execute(
                "UPDATE spendings SET steps_committed = steps_committed + ? WHERE run = ? AND dataset = ?",
                (steps, run, dataset),
            )
        return True

    def close(self, run: str) -> None:
        """Give back what a run reserved and did not commit; an unknown or closed run changes nothing."""
        with self._transaction() as db:
            db.execute("UPDATE spendings SET state = 'closed' WHERE run = ?", (run,))

    def spent(self, dataset: str, delta: float, epsilon: Accountant, *, reserved: bool = False) -> float:
        """ε at `delta` of all committed steps; with `reserved`, of all that open runs hold as well."""
        with self._transaction() as db:
            held = _held(db, dataset, committed_only=not reserved)
        return epsilon(held, delta)

    def open_runs(self) -> tuple[str, ...]:
        """Runs that still hold a reservation: under way, or crashed and neither resumed nor closed."""
        with self._transaction() as db:
            return tuple(
                r[0] for r in db.execute("SELECT DISTINCT run FROM spendings WHERE state = 'open' ORDER BY run")
            )

    def datasets(self) -> list[str]:
        """Every name for which privacy was set aside or rows are known."""
        with self._transaction() as db:
            return [r[0] for r in db.execute("SELECT dataset FROM spendings UNION SELECT dataset FROM datasets")]

    def remember_rows(self, dataset: str, n: int) -> None:
        """Keep the number of training rows, so that a later job can be planned before the data are opened."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO datasets VALUES (?, ?)", (dataset, n))

    def rows(self, dataset: str) -> int | None:
        """What `remember_rows` was told last."""
        with self._transaction() as db:
            row = db.execute("SELECT num_rows FROM datasets WHERE dataset = ?", (dataset,)).fetchone()
        return None if row is None else int(row[0])


def _held(db: sqlite3.Connection, dataset: str, *, besides: str = "", committed_only: bool = False) -> list[Spending]:
    rows = db.execute(
        "SELECT sigma, q, sum(iif(state = 'open' AND NOT ?, steps_reserved, steps_committed)) FROM spendings"
        " WHERE dataset = ? AND run != ? GROUP BY sigma, q ORDER BY sigma, q",
        (committed_only, dataset, besides),
    )
    return [Spending(float(sigma), float(q), steps) for sigma, q, steps in rows]


def _refuse_over(limit: float | None, total: float, dataset: str, delta: float) -> None:
    if limit is not None and not total <= limit:
        raise BudgetExceeded(
            f"dataset {dataset!r}: with this job epsilon would be {_up(total)} at delta {delta:g}; "
            f"the owner's limit is {limit:g}"
        )


def _up(eps: float) -> str:
    return str(Decimal(repr(eps)).quantize(Decimal("0.01"), rounding=ROUND_CEILING)) if eps < 1e9 else f"{eps:g}"
