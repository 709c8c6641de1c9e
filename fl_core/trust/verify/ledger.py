"""The verification of a ledger: one pass over its records, in constant memory but for cards and runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .format import (
    FIELDS,
    MAX_LEAF,
    NAME,
    Broken,
    Card,
    NotALedger,
    Note,
    check_log_signature,
    cosignature,
    decode,
    leaf_hash,
    log_id,
    push,
    read_card,
    read_note,
    signed_bytes,
    tree_root,
    unhex,
)
from .report import BROKEN, SHORT_OF_QUORUM, Report, RunReport
from .signatures import Check, Signatures
from .stream import Leaf, Record, StoredCheckpoint, open_records

KINDS = frozenset({
    "log", "card", "job", "join", "roster", "key", "update", "aggregate", "round", "metrics", "refusal",
    "failure", "drop", "resume", "publish", "receipt", "close", "session", "end", "stop", "node", "person",
    "served",
})  # fmt: skip
# a run with one of these did something that its parties should have witnessed
WORK = frozenset({"key", "update", "aggregate", "round", "metrics", "publish", "receipt", "close", "session"})

_RUN = re.compile(r"[\x21-\x7e]{0,128}")


class BrokenLink(Broken):
    """An entry, whose leaf hash is `leaf`, names another predecessor `prev`: one of the two was changed."""

    def __init__(self, reason: str, *, prev: bytes, leaf: bytes) -> None:
        super().__init__(reason)
        self.prev, self.leaf = prev, leaf


class _Ledger:
    """The verifier's state after the records so far: constant, but for cards and runs."""

    def __init__(self, since: Note | None, coordinator_key: str | None) -> None:
        self.since, self.coordinator_key = since, coordinator_key
        self.report = Report()
        self.signatures = Signatures()
        self.size = 0
        self.peaks: list[bytes] = []
        self.peaks_before: list[bytes] = []
        self.prev = bytes(32)
        self.cards: dict[str, Card] = {}
        self.coordinator: Card | None = None
        self.ended: dict[str, RunReport] = {}  # runs whose end has no quorum yet
        self.uncovered: dict[str, RunReport] = {}  # runs with rounds that have none yet

    def add(self, record: Record) -> None:
        """Check the next record; raises Broken."""
        seq = self.size if isinstance(record, Leaf) else max(self.size - 1, 0)
        try:
            if isinstance(record, Leaf):
                self._entry(record)
            else:
                self._checkpoint(record)
        except Broken as error:
            if error.seq is None:
                error.seq = seq
            raise

    def _entry(self, record: Leaf) -> None:
        entry, seq = decode(record.data, MAX_LEAF), self.size
        self._check_fields(entry, record.columns)
        card = self._signer(entry)
        reason = "the statement is not signed by its party"
        self.signatures.add(Check(seq, card, unhex(entry["sig"], 64), signed_bytes(entry), reason))
        leaf, prev = leaf_hash(record.data), unhex(entry["prev"], 32)
        if prev != self.prev:
            raise BrokenLink(f"entry {seq} does not follow the entry before it", prev=prev, leaf=leaf)
        self.peaks_before = list(self.peaks)
        push(self.peaks, seq, leaf)
        self.prev, self.size = leaf, seq + 1
        self._note_run(entry, seq)
        since = self.since
        if since is not None and since.size == self.size and since.root != tree_root(self.peaks):
            raise Broken("history was rewritten: the kept checkpoint is of other entries")

    def _check_fields(self, entry: dict[str, Any], columns: tuple[Any, ...] | None) -> None:
        if set(entry) != FIELDS or entry["v"] != 1 or isinstance(entry["v"], bool):
            raise Broken("an entry of another shape or version")
        if entry["seq"] != self.size or isinstance(entry["seq"], bool):
            raise Broken(f"entry {self.size} is missing or out of its place")
        if not isinstance(entry["t"], int) or isinstance(entry["t"], bool) or entry["t"] < 0:
            raise Broken("an entry without a proper time")
        if not isinstance(entry["kind"], str) or entry["kind"] not in KINDS:
            raise Broken("an unknown kind")
        if (entry["kind"] == "log") != (self.size == 0):
            raise Broken("a log entry that is not the first, or a first that is none")
        if not isinstance(entry["run"], str) or not _RUN.fullmatch(entry["run"]):
            raise Broken("a malformed run id")
        if not isinstance(entry["body"], dict) or not isinstance(entry["by"], str):
            raise Broken("an entry of another shape")
        if columns not in (None, (entry["seq"], entry["run"], entry["kind"], entry["by"])):
            raise Broken("the file's columns differ from the entry")

    def _signer(self, entry: dict[str, Any]) -> Card:
        """Return the card of the signer, taking up the one that the entry shows."""
        by, known = entry["by"], self.cards.get(entry["by"])
        if entry["kind"] in ("log", "card"):
            shown = read_card(entry["body"].get("card")) if set(entry["body"]) == {"card"} else None
            if shown is None or shown.name != by:
                raise Broken(f"{by}: does not show its own card")
            if known is not None and known.fields != shown.fields:
                raise Broken(f"{by}: shows another card than before")
            if known is None and any(card.raw == shown.raw for card in self.cards.values()):
                raise Broken(f"{by}: shows another party's key")
            known = self.cards.setdefault(by, shown)
        if known is None:
            raise Broken(f"{by}: signs without having shown a card")
        if self.coordinator is None:
            self._begin(known)
        if entry["log"] != self.report.log:
            raise Broken(f"{by}: a statement for another log")
        return known

    def _begin(self, card: Card) -> None:
        if self.coordinator_key not in (None, card.raw.hex()):
            raise Broken("the ledger of another coordinator than expected")
        self.coordinator = card
        self.report.log, self.report.coordinator = log_id(card), card.raw.hex()
        if self.since is not None:
            check_log_signature(self.since, card)

    def _note_run(self, entry: dict[str, Any], seq: int) -> None:
        if not entry["run"]:
            return
        run, kind = self.report.runs.setdefault(entry["run"], RunReport()), entry["kind"]
        run.entries += 1
        if kind == "aggregate":
            run.uncovered += 1
            self.uncovered[entry["run"]] = run
        if run.state == "idle" and (kind in WORK or kind == "roster"):
            run.state = "open"
        if self.coordinator is None or entry["by"] != self.coordinator.name:
            return
        if kind == "roster":
            parties = read_roster(entry["body"])
            if not run.quorum:
                run.parties, run.quorum = parties, min((len(parties) + 1) // 2 + 1, len(parties))
        elif kind == "end" and run.state != "idle":
            run.state, run.end, run.cosigned = "short", seq, 0
            self.ended[entry["run"]] = run
        elif kind == "failure" and run.state == "open":
            run.state = "stopped"
        elif kind == "resume" and run.state == "stopped":
            run.state = "open"
        elif kind == "resume" and run.end is not None:
            run.state, run.end, run.cosigned = "open", None, 0
            self.ended.pop(entry["run"], None)

    def _checkpoint(self, record: StoredCheckpoint) -> None:
        note, seq = read_note(record.note), self.size - 1
        if self.coordinator is None or record.size not in (None, note.size):
            raise Broken("a checkpoint out of its place")
        check_log_signature(note, self.coordinator)
        self.signatures.count += 1
        if note.size > self.size:
            raise Broken(f"the tail is cut: a checkpoint covers {note.size} entries", self.size)
        if note.size < self.size:
            raise Broken("a checkpoint out of its place")
        if note.root != tree_root(self.peaks):
            raise Broken(f"entries {self.report.sound} to {seq} do not have the root signed for {note.size}")
        for name, line in record.cosignatures.items():
            if name not in self.cards:
                raise Broken("a co-signature of a party that shows no card")
            signature, data = cosignature(note, line, self.cards[name])
            reason = "a co-signature does not verify"
            self.signatures.add(Check(seq, self.cards[name], signature, data, reason))
        self.report.sound = note.size
        self.report.checkpoints += 1
        self._count_witnesses(set(record.cosignatures))

    def _count_witnesses(self, cosigners: set[str]) -> None:
        """Count the co-signatures of one checkpoint for the runs whose end or rounds it covers."""
        for name, run in list(self.uncovered.items()):
            if len(cosigners.intersection(run.parties)) >= run.quorum > 0:
                run.uncovered = 0
                del self.uncovered[name]
        for name, run in list(self.ended.items()):
            run.cosigned = max(run.cosigned, len(cosigners.intersection(run.parties)))
            if run.cosigned >= run.quorum > 0:
                run.state = "witnessed"
                del self.ended[name]

    def finish(self) -> None:
        """Check what only the end shows; raises Broken."""
        self.signatures.finish()
        if self.size == 0 or self.report.checkpoints == 0:
            raise Broken("no entries, or no checkpoint over them", 0)
        if self.since is not None and self.since.size > self.size:
            raise Broken(f"the tail is cut: the kept checkpoint covers {self.since.size} entries", self.size)

    def blame(self, link: BrokenLink, following: Iterator[Record]) -> int:
        """Return which end of a broken link changed: entry `seq` stands if what follows agrees with it."""
        seq, stands = self.size, False
        if self.report.sound == seq:  # a checkpoint vouches for the entry before
            return seq
        try:
            record = next(following, None)
            if isinstance(record, Leaf):
                stands = decode(record.data, MAX_LEAF).get("prev") == link.leaf.hex()
            elif record is not None and (note := read_note(record.note)).size == seq + 1:
                peaks = list(self.peaks_before)
                push(peaks, seq - 1, link.prev)
                push(peaks, seq, link.leaf)
                stands = tree_root(peaks) == note.root
        except Broken:
            stands = False
        return seq - 1 if stands else seq


def verify_ledger(
    path_or_jsonl: str | os.PathLike[str],
    *,
    since: str | None = None,
    coordinator_key_hex: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Verify a ledger in one pass, in constant memory.

    Parameters
    ----------
    path_or_jsonl
        The SQLite file, or the JSON lines exported from it.
    since
        A checkpoint note that the auditor has kept: the ledger must continue it.
    coordinator_key_hex
        The coordinator's Ed25519 key, 64 hex digits, if known from elsewhere.
    progress
        Called with the number of entries read, every thousand.

    Raises
    ------
    OSError
        If the file cannot be read.
    NotALedger
        If it is no ledger of this version, or `since` is no checkpoint note.
    """
    started, path = time.monotonic(), Path(path_or_jsonl)
    ledger = _Ledger(_kept(since), coordinator_key_hex)
    records = open_records(path)
    try:
        failure = _first_bad(ledger, records, progress)
    finally:
        records.close()
        ledger.signatures.close()
    report = ledger.report
    report.size = report.entries = ledger.size
    report.root = tree_root(ledger.peaks).hex() if ledger.peaks else ""
    report.signatures = ledger.signatures.count
    report.seconds = time.monotonic() - started
    lacking = sorted(name for name, run in report.runs.items() if _lacks(run))
    if failure is not None:
        report.status, report.reason, report.first_bad = BROKEN, failure.reason, failure.seq
        report.sound = min(report.sound, failure.seq or 0)
    elif lacking:
        report.status = SHORT_OF_QUORUM
        report.reason = f"valid, but short of quorum: {', '.join(lacking[:5])}"
    return report


def _lacks(run: RunReport) -> bool:
    """Whether a run did more than its witnesses vouch for.

    A run that its coordinator says stopped short may have one round that nobody co-signed yet.  One without a word
    (under way, killed, or its tail cut off) is for the reader to explain.
    """
    return run.state in ("short", "open") or (run.state == "stopped" and (not run.quorum or run.uncovered > 1))


def _kept(since: str | None) -> Note | None:
    try:
        note = None if since is None else read_note(since)
    except Broken as error:
        raise NotALedger(f"the kept checkpoint: {error.reason}") from None
    if note is not None and note.size == 0:
        raise NotALedger("the kept checkpoint covers no entries")
    return note


def _first_bad(ledger: _Ledger, records: Iterator[Record], progress: Callable[[int], None] | None) -> Broken | None:
    """Run through all records and return the failure at the earliest entry, if there is one."""
    try:
        for record in records:
            ledger.add(record)
            if progress is not None and isinstance(record, Leaf) and ledger.size % 1000 == 0:
                progress(ledger.size)
        ledger.finish()
    except Broken as error:
        if error.seq is None:
            error.seq = ledger.size
        if isinstance(error, BrokenLink):
            error.seq = ledger.blame(error, records)
        try:
            ledger.signatures.finish()
        except Broken as earlier:
            return earlier if (earlier.seq or 0) <= error.seq else error
        return error
    return None


def read_roster(body: dict[str, Any]) -> list[str]:
    """Return the parties of the coordinator's roster."""
    parties, least = body.get("parties"), body.get("min_parties")
    if not isinstance(parties, list) or not all(isinstance(p, str) and NAME.fullmatch(p) for p in parties):
        raise Broken("a roster without a list of names")
    if len(set(parties)) < len(parties) or type(least) is not int or not 1 <= least <= len(parties):
        raise Broken("a roster that names a party twice, or with another min_parties than 1 to their number")
    return parties
