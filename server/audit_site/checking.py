"""The verifier over the whole ledger, one at a time, in a thread; its last verdict is kept with what it was about.

It reads files only: a ledger in PostgreSQL is copied in one snapshot to a temporary one, which goes afterwards.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from fl_core.errors import FedsealError
from fl_core.trust.ledger_copy import as_file
from fl_core.trust.verify import NotALedger, Report, verify_ledger
from fl_core.urls import without_passwords
from server.audit_site.rows import Rows

VERDICTS = {0: "VALID", 1: "BROKEN", 4: "VALID, BUT SHORT OF QUORUM"}


@dataclass(frozen=True)
class Checked:
    """How the check stands.

    Attributes
    ----------
    running, read
        Whether one is under way, and how many entries it has read.
    report, at
        The last verdict and when it was given, seconds since 1970; None and 0 before the first.
    problem
        Why the last check gave no verdict, if it gave none.
    current
        Whether the ledger is as it was when that check began.
    """

    running: bool = False
    read: int = 0
    report: Report | None = None
    at: float = 0.0
    problem: str = ""
    current: bool = False


class Checking:
    """Runs checks.

    Parameters
    ----------
    since, key
        A checkpoint note kept earlier, and the coordinator's Ed25519 key (hex), if known.
    """

    def __init__(self, rows: Rows, *, since: str | None = None, key: str | None = None) -> None:
        self._rows, self._since, self._key = rows, since, key
        self._lock = threading.Lock()
        self._running, self._read = False, 0
        self._report: Report | None = None
        self._problem, self._at = "", 0.0
        self._stamp: tuple[int, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the ledger is held against a checkpoint from earlier."""
        return self._since is not None

    def look(self) -> Checked:
        """How it stands now."""
        with self._lock:
            current = self._at > 0 and self._stamp == self._rows.stamp()
            return Checked(self._running, self._read, self._report, self._at, self._problem, current)

    def start(self, *, again: bool = False) -> None:
        """Begin a check unless one is under way, or (without `again`) the ledger is as it was at the last one."""
        if not again and self.look().current:
            return
        with self._lock:
            if self._running:
                return
            self._running, self._read = True, 0
        threading.Thread(target=self._check, name="verify", daemon=True).start()

    def _check(self) -> None:
        stamp = self._rows.stamp()
        report, problem = None, ""
        try:
            with as_file(self._rows.place) as file:
                report = verify_ledger(file, since=self._since, coordinator_key_hex=self._key, progress=self._progress)
        except (NotALedger, FedsealError, OSError) as error:
            problem = without_passwords(" ".join(str(error).split()))[:500]
        finally:
            with self._lock:
                if report is None and not problem:
                    problem = "the verifier ended with an error of its own"
                self._report, self._problem, self._at, self._stamp = report, problem, time.time(), stamp
                self._running = False

    def _progress(self, entries: int) -> None:
        self._read = entries
