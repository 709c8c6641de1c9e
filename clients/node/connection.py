"""How a node's connection to its coordinator is: the SuperNode writes it, `fedseal node status` reads it."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fl_core.errors import JobFailed
from fl_core.files import write_atomic

EVERY_SECONDS = 5.0
FRESH_SECONDS = 45.0  # a SuperNode at work calls every half minute
_log = logging.getLogger("fedseal.connection")


@dataclass(frozen=True)
class Contact:
    """The newest call: its outcome, since when it has been that, and when it was; seconds since 1970."""

    state: str
    since: float
    last: float
    detail: str = ""


class Connection:
    """Written whenever the outcome changes, and every five seconds."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._held: Contact | None = None
        self._written = 0.0

    def note(self, state: str, detail: str = "") -> None:
        """One call went so."""
        with self._lock:
            now, before = time.time(), self._held
            changed = before is None or before.state != state
            self._held = Contact(state, now if changed or before is None else before.since, now, detail)
            if changed or now - self._written > EVERY_SECONDS:
                self._written = now
                try:
                    write_atomic(self._path, json.dumps(asdict(self._held)).encode())
                except JobFailed as error:  # a full disk does not cut the node off
                    _log.warning("%s", error)


def read(path: Path) -> Contact | None:
    """What was written last, if anything; a damaged file is no news."""
    try:
        return Contact(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_connected(contact: Contact | None) -> bool:
    """Whether the coordinator answered just now."""
    return contact is not None and contact.state == "connected" and time.time() - contact.last < FRESH_SECONDS
