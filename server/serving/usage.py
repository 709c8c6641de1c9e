"""Who was served how much, summed from the `served` receipts on a ledger of a model's owner."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from fl_core.trust.ledger import Ledger


@dataclass(frozen=True)
class Used:
    """What one client had of one model; `bytes` are of ciphertexts, both ways."""

    client: str
    model: str
    blocks: int
    rows: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class Usage:
    """The sums so far, which go on where they ended before; safe to use from several threads.

    `fedseal audit verify` says whether the receipts may be believed.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._lock = ledger, threading.Lock()
        self._next, self._sums = 0, dict[tuple[str, str], list[int]]()

    def read(self, seconds: float = math.inf) -> int:
        """Add what is new on the ledger, for about so long; returns how many entries are left."""
        with self._lock:
            size, end = self._ledger.size, time.monotonic() + seconds
            for entry in self._ledger.entries(self._next, size, kind="served"):
                body, request = entry.body, entry.body["request"]
                line = self._sums.setdefault((request["by"], request["body"]["model"]), [0, 0, 0])
                for i, value in enumerate((1, request["body"]["rows"], body["received"] + body["answered"])):
                    line[i] += value
                self._next = entry.seq + 1
                if time.monotonic() > end:
                    return size - self._next
            self._next = size
            return 0

    def lines(self) -> list[Used]:
        """The sums, by client and model."""
        with self._lock:
            return [Used(client, model, *sums) for (client, model), sums in sorted(self._sums.items())]


def sum_usage(ledger: Ledger) -> list[Used]:
    """The sums of all there is."""
    sums = Usage(ledger)
    sums.read()
    return sums.lines()
