"""Witnesses from outside a federation: the auditor's policy that names them, and what enough of them co-signed.

Keys are C2SP signed-note verifier keys `NAME+ID+BASE64`, lines are tlog-cosignatures (Ed25519, v1). A ledger keeps
each line under the key that gave it: one that this key did not sign for its checkpoint is broken; a sound one counts
if the policy names the key. Whoever writes a ledger can add lines of keys made up: they count for nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .format import Broken, Card, NotALedger, Note, cosignature, cosigned_at
from .report import SHORT_OF_QUORUM, OutsideReport, Report, RunReport
from .signatures import Check

POLICY = "fedseal witness policy v1"
MAX_POLICY, MAX_KEY = 1 << 20, 1024
_NAME = re.compile(r"[^\s+]{1,256}")
_URL = re.compile(r"(https?://[^\s?#]{1,1000})?")


def read_key(text: Any) -> Card:
    """Read a witness's verifier key, which has one spelling; raises Broken."""
    name, _, data = text.split("+", 2) if isinstance(text, str) and text.count("+") > 1 else ("", "", "")
    try:
        held = base64.b64decode(data, validate=True) if len(text) < MAX_KEY else b""
        raw = held[1:] if len(held) == 33 and held[0] == 4 else b""
        key = Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, TypeError):
        raise Broken("not the key of a witness from outside") from None
    key_id = hashlib.sha256(name.encode("utf-8", "replace") + b"\n" + held).hexdigest()[:8]
    if not _NAME.fullmatch(name) or text != f"{name}+{key_id}+{base64.b64encode(held).decode()}":
        raise Broken("not the key of a witness from outside")
    return Card(name, raw, key, {})


@dataclass(frozen=True)
class Policy:
    """Of which keys how many must have co-signed: k of n."""

    quorum: int
    keys: tuple[str, ...]


def read_policy(path: Path) -> Policy:
    """Read a policy file; raises OSError, or NotALedger where it is none."""
    with path.open("rb") as file:
        data = file.read(MAX_POLICY + 1)
    try:
        if len(data) > MAX_POLICY:
            raise Broken(f"more than {MAX_POLICY} bytes")
        return _policy(json.loads(data))
    except (ValueError, RecursionError):
        raise NotALedger(f"{path}: no JSON file of a witness policy") from None
    except Broken as error:
        raise NotALedger(f"{path}: {error.reason}") from None


def _policy(table: Any) -> Policy:
    if not isinstance(table, dict) or set(table) != {"type", "quorum", "witnesses"} or table["type"] != POLICY:
        raise Broken(f"not a witness policy; allowed: type {POLICY!r}, quorum, witnesses")
    quorum, witnesses = table["quorum"], table["witnesses"]
    cards: dict[str, Card] = {}
    for entry in witnesses if isinstance(witnesses, list) else [None]:
        if not isinstance(entry, dict) or not {"key"} <= set(entry) <= {"key", "url"}:
            raise Broken("a witness is a table of key and url")
        if not isinstance(entry.get("url", ""), str) or not _URL.fullmatch(entry.get("url", "")):
            raise Broken("the url of a witness; allowed: https://HOST/PREFIX")
        card = read_key(entry["key"])
        if any(card.raw == other.raw or card.name == other.name for other in cards.values()):
            raise Broken("a witness is named twice")
        cards[entry["key"]] = card
    if type(quorum) is not int or not 1 <= quorum <= len(cards):
        raise Broken(f"the quorum; allowed: 1 to {len(cards)}")
    return Policy(quorum, tuple(cards))


class Outsiders:
    """Follows the checkpoints of a log for the co-signatures from outside.

    Attributes
    ----------
    lines
        How many were there, of keys in the policy or not.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy, self.lines = policy, 0
        self._cards: dict[str, Card] = {}
        self._newest: dict[int, tuple[int, dict[str, int]]] = {}  # by how many signed: entries, times by key
        self._last: dict[str, int] = {}  # by key: the most entries it signed for

    def take(self, note: Note, lines: Sequence[tuple[Any, Any]], seq: int) -> Iterator[Check]:
        """Take the lines of the next checkpoint; yield what must verify for them to count.  Raises Broken."""
        times: dict[str, int] = {}
        for key, line in lines:
            if not isinstance(key, str) or key not in self._cards:
                self._cards[key] = read_key(key)
            card = self._cards[key]
            signature, data = cosignature(note, line, card)
            yield Check(seq, card, signature, data, "a co-signature from outside does not verify")
            self.lines += 1
            if self.policy is not None and key in self.policy.keys:
                times[key], self._last[key] = cosigned_at(line), note.size
        if times:
            self._newest[len(times)] = (note.size, times)

    def conclude(self, report: Report, runs: Mapping[str, RunReport]) -> None:
        """Write into the report of a log that holds what the policy finds; all these runs must be covered."""
        policy = self.policy
        if policy is None:
            return
        of, due = len(policy.keys), max((_due(run) for run in runs.values()), default=1)
        enough = [found for count, found in self._newest.items() if count >= policy.quorum]
        covered, times = max(enough, default=(0, {}), key=lambda found: found[0])
        signed = {self._cards[key].name: seconds for key, seconds in times.items()}
        there = set(times) if covered >= due else {key for key, size in self._last.items() if size >= due}
        missing = [read_key(key).name for key in policy.keys if key not in there]
        report.outside = OutsideReport(policy.quorum, of, due, covered, signed, missing)
        if covered >= due:
            return
        most = max((count for count, (size, _) in self._newest.items() if size >= due), default=0)
        words = f"short of witnesses from outside: {most} of {of} co-signed the first {due} entries, "
        words += f"the policy asks for {policy.quorum}" + (f"; so many did the first {covered}" if covered else "")
        report.reason = f"{report.reason}; {words}" if report.status else f"valid, but {words}"
        report.status = SHORT_OF_QUORUM


def _due(run: RunReport) -> int:
    """How many entries of the log a run needs to have co-signed: up to its end, or to its last where it has none."""
    if run.state == "idle":
        return 1
    return (run.last if run.end is None else run.end) + 1
