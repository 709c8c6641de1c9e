"""The runs of a ledger: read once, and then only what was added.

What a run is called and how it stands is taken from the coordinator's own entries; whether they are signed is for the
verifier to say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.audit_site.look import Look, Row

STATES = ("open", "ended", "failed", "refused", "stopped")
_TELLING = ("log", "job", "roster", "end", "failure", "resume")
PAGE = 500


@dataclass
class Run:
    """What is shown of a run; `began`, `last_time` are milliseconds since 1970, `digest` is that of its job."""

    run: str
    first: int
    last: int
    entries: int = 0
    name: str = ""
    kind: str = ""
    digest: str = ""
    model: str = ""
    state: str = "open"
    code: str = ""
    submitted: str = ""
    began: int = 0
    roster: tuple[str, ...] = ()
    signers: set[str] = field(default_factory=set)

    @property
    def parties(self) -> list[str]:
        """Everybody who is on its roster or signed in it."""
        return sorted({*self.roster, *self.signers})

    def matches(self, text: str) -> bool:
        """Whether its id or a digest starts so, its name holds this, or a party or its kind is called so."""
        low = text.casefold()
        starts = any(value.startswith(text) for value in (self.run, self.digest, self.model) if value)
        return starts or low in self.name.casefold() or low == self.kind or low in self.parties


class RunIndex:
    """Kept up to date by `read`; several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.changed_at = 0.0  # when a ledger was found here that is not a continuation of what was read, if ever
        self._forget()

    def _forget(self) -> None:
        self.runs: dict[str, Run] = {}
        self._next, self._tail, self._coordinator = 0, "", ""

    def read(self, look: Look) -> Mapping[str, Run]:
        """Take up what was added; every run by its id, in the order of their first entries."""
        with self._lock:
            tail = look.row(self._next - 1) if self._next else None
            if self._next and (tail is None or tail.leaf_hash != self._tail):
                self.changed_at = time.time()
                self._forget()
            while rows := look.outline(self._next, _TELLING, limit=PAGE):
                last = look.row(rows[-1].seq)
                self._take_all(rows, last.leaf_hash if last else "")
                if len(rows) < PAGE:
                    break
            return dict(self.runs)

    def _take_all(self, rows: list[Row], tail: str) -> None:
        """Take up a page whose last entry has the leaf hash `tail`: all of it, since what reads may fail between."""
        for row in rows:
            self._take(row.seq, row.run, row.by)
            if row.leaf is not None:
                self._hear(row)
        self._tail = tail

    def _take(self, seq: int, run: str, by: str) -> None:
        self._next = seq + 1
        if not run:
            return
        held = self.runs.get(run)
        if held is None:
            held = self.runs[run] = Run(run, seq, seq)
        held.entries, held.last = held.entries + 1, seq
        held.signers.add(by)

    def _hear(self, row: Row) -> None:
        if not row.seq:
            self._coordinator = row.by
        elif row.run and row.by == self._coordinator:
            fields = row.fields()
            body = fields.get("body")
            _tell(self.runs[row.run], row.kind, body if isinstance(body, dict) else {}, fields.get("t"))


def _tell(run: Run, kind: str, body: Mapping[str, Any], t: Any) -> None:
    """What one of the coordinator's entries says of its run."""
    if kind == "job" and not run.digest:
        view = body.get("view")
        view = view if isinstance(view, dict) else {}
        run.name, run.kind, run.digest = _text(view, "name"), _text(view, "kind"), _text(body, "job")
        submitted = body.get("submitted", body.get("grantee"))
        run.submitted = _text(submitted, "name") if isinstance(submitted, dict) else ""
        run.began = t if type(t) is int else 0
    elif kind == "roster" and not run.roster and isinstance(body.get("parties"), list):
        run.roster = tuple(str(name)[:200] for name in body["parties"][:1024])
    elif kind == "end":
        run.state, run.code, run.model = "ended", "", _text(body, "model")
    elif kind == "failure":
        status = body.get("status")
        run.state, run.code = status if status in STATES else "failed", _text(body, "code")
        if run.code == run.state:  # said once
            run.code = ""
    elif kind == "resume":
        run.state, run.code = "open", ""


def _text(table: Mapping[str, Any], name: str) -> str:
    return str(table.get(name, ""))[:200]
