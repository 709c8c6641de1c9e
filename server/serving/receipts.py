"""Receipts of what was served, on their way from the accounts to the model owner's ledger."""

from __future__ import annotations

import logging
import threading

from fl_core.errors import FedsealError
from fl_core.trust.ledger import Ledger
from server.serving.accounts import Accounts

_log = logging.getLogger("fedseal.predict")


class Receipts:
    """Puts kept receipts on the ledger, from a thread of its own, in groups with a checkpoint each."""

    def __init__(self, ledger: Ledger, accounts: Accounts, *, seconds: float = 0.5) -> None:
        self._ledger, self._accounts, self._seconds = ledger, accounts, seconds
        self._ending = threading.Event()
        last = list(ledger.entries(max(ledger.size - 1000, 0), kind="served"))
        self._there = {entry.statement.digest for entry in last}  # a crash may have come before `drop`
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(self._seconds):
            try:
                self.flush()
                self._accounts.move_log()
            except FedsealError as error:
                _log.error("receipts wait for the ledger: %s", error)

    def flush(self) -> None:
        """Put all there are on the ledger now."""
        while kept := self._accounts.kept():
            new = [statement for _, statement in kept if statement.digest not in self._there]
            if new:
                self._ledger.commit(new)
            self._accounts.drop(kept[-1][0])
            self._there.clear()

    def close(self) -> None:
        """Write the last and end."""
        self._ending.set()
        self._thread.join()
        self.flush()
