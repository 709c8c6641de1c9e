"""Signature checks in batches on all cores: `cryptography` verifies without the interpreter's lock."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from .format import Broken, Card, check_signature

BATCH, BATCH_BYTES = 256, 1 << 20


@dataclass(frozen=True)
class Check:
    """One signature to check; if it fails, the failure is of entry `seq` and has `reason`."""

    seq: int
    card: Card
    signature: bytes
    data: bytes
    reason: str


class Signatures:
    """Checks signatures in the order in which they are added; at most a few batches are in memory.

    A ledger of less than one batch is checked in the calling thread.
    """

    def __init__(self) -> None:
        self._workers = min(os.cpu_count() or 1, 8)
        self._pool: ThreadPoolExecutor | None = None
        self._running: deque[Future[Broken | None]] = deque()
        self._batch: list[Check] = []
        self._bytes = 0
        self.count = 0

    def add(self, check: Check) -> None:
        """Queue a check; raises Broken when an earlier one has failed."""
        self.count += 1
        self._batch.append(check)
        self._bytes += len(check.data)
        if len(self._batch) >= BATCH or self._bytes >= BATCH_BYTES:
            self._pool = self._pool or ThreadPoolExecutor(self._workers)
            self._running.append(self._pool.submit(_first_failure, self._batch))
            self._batch, self._bytes = [], 0
        while len(self._running) > 2 * self._workers:
            _raise(self._running.popleft().result())

    def finish(self) -> None:
        """Wait for all; raises Broken for the first that failed."""
        while self._running:
            _raise(self._running.popleft().result())
        batch, self._batch = self._batch, []
        _raise(_first_failure(batch))

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _raise(failure: Broken | None) -> None:
    if failure is not None:
        raise failure


def _first_failure(batch: list[Check]) -> Broken | None:
    for check in batch:
        try:
            check_signature(check.card, check.signature, check.data, check.reason)
        except Broken as error:
            return Broken(error.reason, check.seq)
    return None
