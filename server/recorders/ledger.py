"""Round records as statements of the coordinator on the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_core.records import RoundRecord
from fl_core.trust.entry import Statement

if TYPE_CHECKING:
    from fl_core.trust.identity import Identity
    from fl_core.trust.ledger import Ledger


class LedgerRecorder:
    """Appends an entry of kind `round` for each record; the next checkpoint covers it."""

    def __init__(self, ledger: Ledger, identity: Identity, run: str) -> None:
        self._ledger = ledger
        self._identity = identity
        self._run = run

    def record(self, record: RoundRecord) -> None:
        """Append one record.

        Raises
        ------
        FedsealError
            If the ledger refuses it or the disk does: a round that is not on the ledger did not happen.
        """
        statement = Statement.make(
            self._identity, log=self._ledger.log, kind="round", run=self._run, body=record.body()
        )
        self._ledger.append([statement])
