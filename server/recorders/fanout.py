"""One recorder that feeds several."""

from __future__ import annotations

from collections.abc import Sequence

from fl_core.records import Recorder, RoundRecord


class Fanout:
    """Gives each record to every recorder in order: the ledger first, so that no view shows more than it."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = tuple(recorders)

    def record(self, record: RoundRecord) -> None:
        """Pass one record on; an error of one recorder (the ledger's) leaves those after it without."""
        for recorder in self._recorders:
            recorder.record(record)
