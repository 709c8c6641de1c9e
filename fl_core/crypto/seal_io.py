"""Bytes in and out of `tenseal.sealapi` objects, which save and load by path only.

The path is that of one anonymous in-memory file a process (`memfd_create`, ``/proc/self/fd/N``), made when
first used and never shared across a fork: a child that inherited the descriptor would overwrite its parent's
bytes.  Where `memfd_create` is missing a file in a private temporary directory takes its place.  The file is
emptied after every use, so that no key stays behind in it.
"""

from __future__ import annotations

import os
import tempfile
import threading
from typing import Any

from fl_core.errors import BadMessage

#: Far above the largest object of any profile (a TenSEAL context is some 100 KB).
MAX_OBJECT_BYTES = 1 << 20


class _Scratch:
    """One file that SEAL can open by path, and the lock for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("seal")
            self.path = f"/proc/self/fd/{self.fd}"
        else:
            self._directory = tempfile.TemporaryDirectory(prefix="fedseal-")  # 0700, removed at exit
            self.path = os.path.join(self._directory.name, "object")
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


_scratch: dict[int, _Scratch] = {}


def _of_this_process() -> _Scratch:
    pid = os.getpid()
    scratch = _scratch.get(pid)
    if scratch is None:
        # setdefault is atomic: two first threads agree on one file
        scratch = _scratch.setdefault(pid, _Scratch())
    return scratch


def save(item: Any) -> bytes:
    """The SEAL stream of `item` (anything with ``save(path)``)."""
    scratch = _of_this_process()
    with scratch.lock:
        try:
            item.save(scratch.path)
            return os.pread(scratch.fd, os.fstat(scratch.fd).st_size, 0)
        finally:
            os.ftruncate(scratch.fd, 0)


def load(item: Any, context: Any, data: bytes, *, limit: int = MAX_OBJECT_BYTES) -> Any:
    """Fill the empty SEAL object `item` from `data` and return it.

    SEAL checks that the object is valid for `context`; whatever it refuses, and anything over
    `limit` bytes, is `BadMessage`.
    """
    if len(data) > limit:
        raise BadMessage(f"{len(data)} bytes for one SEAL object, at most {limit}")
    scratch = _of_this_process()
    with scratch.lock:
        try:
            os.pwrite(scratch.fd, data, 0)
            item.load(context, scratch.path)
        except (RuntimeError, ValueError, IndexError, MemoryError):
            raise BadMessage("SEAL does not accept the object") from None
        finally:
            os.ftruncate(scratch.fd, 0)
    return item
