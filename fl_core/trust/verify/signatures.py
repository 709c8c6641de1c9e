"""Signature checks in batches: here, and at the same time in processes of `worker`, which take most of the work.

`cryptography` verifies without the interpreter's lock, but a thread that needs the lock again after each check waits
for it as long as a check takes, or longer; a process does not.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from .format import Broken, Card, check_signature
from .worker import ANSWER, COUNT, HEAD

BATCH, BATCH_BYTES = 512, 1 << 20
ALONE = 1500  # checks that are not worth a process
MAX_WORKERS = 3  # of 20 MB each
_PROGRAM = Path(__file__).with_name("worker.py")


class Check(NamedTuple):
    """One signature to check; if it fails, the failure is of entry `seq` and has `reason`."""

    seq: int
    card: Card
    signature: bytes
    data: bytes
    reason: str


class Signatures:
    """Checks signatures in the order in which they are added; at most a few batches are in memory."""

    def __init__(self) -> None:
        self._most = min(_cores() - 1, MAX_WORKERS)
        self._pool: ThreadPoolExecutor | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        self._found: deque[Future[Broken | None]] = deque()
        self._batch: list[Check] = []
        self._bytes = 0
        self.count = 0

    def add(self, check: Check) -> None:
        """Queue a check; raises Broken when an earlier one has failed."""
        self.count += 1
        self._batch.append(check)
        self._bytes += len(check.data)
        if len(self._batch) >= BATCH or self._bytes >= BATCH_BYTES:
            self._flush()
            while self._found and self._found[0].done():
                _raise(self._found.popleft().result())

    def finish(self) -> None:
        """Wait for all; raises Broken for the first that failed."""
        self._flush()
        while self._found:
            _raise(self._found.popleft().result())

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.kill()
            process.communicate()

    def _flush(self) -> None:
        """Give the batch to a worker, or check it here where all have enough to do."""
        batch, self._batch, self._bytes = self._batch, [], 0
        if self.count > ALONE and self._most > 0:
            pool = self._pool or self._start()
            if sum(not found.done() for found in self._found) < 2 * self._most:
                self._found.append(pool.submit(self._ask, batch))
                return
        here: Future[Broken | None] = Future()
        here.set_result(_first_failure(batch))
        self._found.append(here)

    def _start(self) -> ThreadPoolExecutor:
        for _ in range(self._most):
            process = _open_worker()
            self._idle.put(process)
            self._processes += [process] if process is not None else []
        self._pool = ThreadPoolExecutor(self._most)
        return self._pool

    def _ask(self, batch: list[Check]) -> Broken | None:
        """Have a batch checked by an idle worker; one that fails checks nothing more."""
        process = self._idle.get()
        try:
            failed = None if process is None else _answer(process, batch)
        except (OSError, struct.error):
            process = failed = None
        self._idle.put(process)
        if failed is None:
            return _first_failure(batch)
        return _first_failure(batch[failed:]) if failed >= 0 else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_worker() -> subprocess.Popen[bytes] | None:
    """Start a worker; None where this machine has no way to."""
    if not sys.executable or not _PROGRAM.is_file():
        return None
    command = [sys.executable, "-P", str(_PROGRAM)]  # -P: no module of this folder hides one of the library
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing)
    except OSError:
        return None


def _answer(process: subprocess.Popen[bytes], batch: list[Check]) -> int:
    """Return the place of the first failure, or -1; raises OSError or struct.error where that is no worker any more."""
    if process.stdin is None or process.stdout is None:
        raise OSError
    parts = [COUNT.pack(len(batch))]
    for check in batch:
        parts += [HEAD.pack(len(check.data), check.card.raw, check.signature), check.data]
    process.stdin.write(b"".join(parts))
    process.stdin.flush()
    answer = int(ANSWER.unpack(process.stdout.read(ANSWER.size))[0])
    if not -1 <= answer < len(batch):
        raise OSError
    return answer


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
