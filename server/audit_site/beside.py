"""MLflow beside the ledger, run by run: asked in a thread, since MLflow is slow to begin and may not answer.

A view, never evidence.  It is only read.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fl_core.errors import FedsealError
from fl_core.home import Home
from fl_core.trust.ledger import Ledger
from fl_core.trust.postgres_url import Place

if TYPE_CHECKING:
    from server.reconcile.compare import Reconciled

FRESH_SECONDS = 60.0
MOST = 200  # runs that are remembered


@dataclass(frozen=True)
class Shown:
    """What MLflow shows of a run.

    Attributes
    ----------
    reading
        Whether the answer is on its way.
    problem
        Why there is none, if so.
    metrics
        Decimal texts by name and step.
    reconciled
        What comparing came to.
    at
        When, seconds since 1970.
    """

    reading: bool = False
    problem: str = ""
    metrics: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    reconciled: Reconciled | None = None
    at: float = 0.0


class Beside:
    """Asks MLflow of one home about the runs of a ledger."""

    def __init__(self, home: Home, ledger: Place) -> None:
        self._home, self._ledger = home, ledger
        self._lock, self._one = threading.Lock(), threading.Lock()
        self._held: dict[str, tuple[int, Shown]] = {}
        self._asked: set[str] = set()

    def look(self, run: str, last: int) -> Shown:
        """What is known of a run whose last entry is `last`; asks where that is nothing or too old."""
        with self._lock:
            size, shown = self._held.get(run, (-1, Shown()))
            if run in self._asked or (size == last and time.time() - shown.at < FRESH_SECONDS):
                return Shown(reading=True) if run in self._asked else shown
            if len(self._asked) >= 8:
                return Shown(problem="MLflow is being asked about other runs; ask again")
            self._asked.add(run)
        threading.Thread(target=self._ask, args=(run, last), name="mlflow", daemon=True).start()
        return Shown(reading=True)

    def _ask(self, run: str, last: int) -> None:
        shown = Shown(problem="MLflow could not be read", at=time.time())
        try:
            with self._one:
                shown = self._read(run)
        except (FedsealError, OSError) as error:
            shown = Shown(problem=" ".join(str(error).split())[:300], at=time.time())
        finally:
            with self._lock:
                self._asked.discard(run)
                self._held[run] = (last, shown)
                while len(self._held) > MOST:
                    self._held.pop(next(iter(self._held)))

    def _read(self, run: str) -> Shown:
        from server.reconcile.compare import Reconciler

        with Ledger.open(self._ledger) as ledger:
            reconciler = Reconciler(self._home, ledger)
            if not reconciler.store(run).is_there:
                return Shown(problem="there is no MLflow here", at=time.time())
            _, found, reconciled = reconciler.weigh(run)
        return Shown(metrics=found.metrics if found else {}, reconciled=reconciled, at=time.time())
