"""What a party keeps: its identity and witness for good, and one folder a run that a crash cannot leave half-written.

::

    parties/<name>/identity.key  cards.json  witness  budget.db  commitment.key  log.txt
    parties/<name>/grants.db  consent/    what the owner granted, and what was used; see `clients.consent`
    parties/<name>/runs/<run>/state.npz   weights, optimiser, what was applied, the roster
                              key         the run's group key (gone when the run ends)
                              ephemeral   opens the sealed group key once
                              reply.npz   the last answer: a repeated question gets the same bytes, no second upload
"""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.consent.decision import Consent
from fl_core.files import locked, private_dir, write_atomic
from fl_core.messages import HEAD
from fl_core.trust.budget import Budget
from fl_core.trust.identity import CardBook, Identity
from fl_core.trust.witness import Witness


class PartyStore:
    """A party's own folder."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = private_dir(path)
        self.identity = Identity.load_or_create(path, name)
        self.cards = CardBook(path / "cards.json")
        self.witness = Witness(path / "witness", self.identity)
        self.budget = Budget(path / "budget.db")
        self.consent = Consent(path, self.identity)
        self.log = _logger(path / "log.txt", name)

    @property
    def commitment_key(self) -> bytes:
        """The HMAC key of this owner's dataset commitments, made on first use."""
        path = self.path / "commitment.key"
        with locked(self.path / ".commitment.lock"):
            if not path.exists():
                write_atomic(path, secrets.token_bytes(32))
        return path.read_bytes()

    def run(self, run: str) -> RunStore:
        """The folder of one run."""
        return RunStore(private_dir(self.path / "runs" / run))


@dataclass
class RunState:
    """Everything a party needs to go on with a run in a new process.

    `weights` is float64 (P,), the global model after sum `applied`; `arrays` holds the optimiser's state and the pooled
    mean and deviation; `facts` is JSON.
    """

    applied: int
    weights: NDArray[np.float64]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class RunStore:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> RunState | None:
        """The saved state, if any."""
        held = _read_npz(self.path / "state.npz")
        if held is None:
            return None
        facts = json.loads(held.pop("facts").tobytes())
        weights = held.pop("weights")
        return RunState(int(facts.pop("applied")), weights, held, facts)

    def save(self, state: RunState) -> None:
        """Replace the saved state."""
        facts = json.dumps({**state.facts, "applied": state.applied}).encode()
        _write_npz(self.path / "state.npz", {**state.arrays, "weights": state.weights, "facts": _bytes(facts)})

    def secret(self, name: str) -> bytes | None:
        """A secret kept for this run (`key`, `ephemeral`)."""
        path = self.path / name
        return path.read_bytes() if path.exists() else None

    def keep_secret(self, name: str, data: bytes) -> None:
        """Keep a secret, mode 0600."""
        write_atomic(self.path / name, data, mode=0o600)

    def drop_secret(self, name: str) -> None:
        """Forget a secret."""
        (self.path / name).unlink(missing_ok=True)

    def reply(self, step: str, number: int) -> dict[str, bytes] | None:
        """The stored answer to that very question."""
        if self.last_question() != f"{step} {number}":
            return None
        held = _read_npz(self.path / "reply.npz") or {}
        return {name: array.tobytes() for name, array in held.items() if name != "question"}

    def last_question(self) -> str:
        """What the stored answer answers; empty when there is none."""
        return self._reply_part("question").decode()

    def last_head(self) -> bytes:
        """The head of the stored answer, without its blobs; empty when there is none."""
        return self._reply_part(HEAD)

    def _reply_part(self, name: str) -> bytes:
        path = self.path / "reply.npz"
        if not path.exists():
            return b""
        with np.load(path, allow_pickle=False) as held:  # reads the one member only
            return bytes(held[name].tobytes())

    def keep_reply(self, step: str, number: int, arrays: Mapping[str, bytes]) -> None:
        """Store an answer before it leaves."""
        question = f"{step} {number}".encode()
        _write_npz(
            self.path / "reply.npz",
            {"question": _bytes(question), **{k: _bytes(v) for k, v in arrays.items()}},
        )


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


def _write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def _read_npz(path: Path) -> dict[str, NDArray[Any]] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _logger(path: Path, name: str) -> logging.Logger:
    """The party's own log: full texts of failures stay here."""
    log = logging.getLogger(f"fedseal.party.{name}.{os.getpid()}")
    log.propagate = False
    log.setLevel(logging.INFO)
    target = str(path)
    for handler in list(log.handlers):
        if getattr(handler, "baseFilename", "") != os.path.abspath(target):
            log.removeHandler(handler)
            handler.close()
    if not log.handlers:
        handler = logging.FileHandler(target, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    return log
