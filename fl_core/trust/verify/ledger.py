"""The verification of a ledger: one pass over its records, in constant memory but for cards and runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
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
    read_rotation,
    signed_of,
    tree_root,
    unhex,
)
from .outside import Outsiders, Policy
from .report import BROKEN, SHORT_OF_QUORUM, Report, RunReport
from .signatures import Check, Signatures
from .stream import Leaf, Record, StoredCheckpoint, open_records

KINDS = frozenset({
    "log", "card", "job", "join", "roster", "key", "update", "aggregate", "round", "metrics", "refusal",
    "failure", "drop", "resume", "publish", "receipt", "close", "session", "end", "stop", "node", "person",
    "served", "dataset", "grant", "grant-request", "grant-end", "use", "rotate", "revoke",
    "profile",
})  # fmt: skip
# a run with one of these did something that its parties should have witnessed
WORK = frozenset({"key", "update", "aggregate", "round", "metrics", "publish", "receipt", "close", "session"})

_RUN = re.compile(r"[\x21-\x7e]{0,128}")


class BrokenLink(Broken):
    """An entry, whose leaf hash is `leaf`, names another predecessor `prev`: one of the two was changed."""

    def __init__(self, reason: str, *, prev: bytes, leaf: bytes) -> None:
        super().__init__(reason)
        self.prev, self.leaf = prev, leaf


class LedgerCheck:
    """The verifier's state after the records so far: constant, but for cards and runs.

    Attributes
    ----------
    noted
        Called with each entry that holds so far; its signature may still be waiting to be checked.
    roots
        Sizes at which the root is wanted; filled as the records pass.
    others
        Roots by size, of checkpoints that this coordinator signed and somebody else was shown.
    outside
        Takes the co-signatures of witnesses from outside.
    """

    def __init__(self, since: Note | None, coordinator_key: str | None, report: Report | None = None) -> None:
        self.since, self.coordinator_key = since, coordinator_key
        self.report = report or Report()
        self.noted: Callable[[dict[str, Any]], None] = lambda entry: None
        self.roots: dict[int, bytes | None] = {}
        self.others: Mapping[int, bytes] = {}
        self.signatures = Signatures()
        self.outside = Outsiders()
        self.size = self.at = 0
        self.peaks: list[bytes] = []
        self.peaks_before: list[bytes] = []
        self.prev = bytes(32)
        self.cards: dict[str, Card] = {}
        self.keys: set[bytes] = set()  # every one that was shown, held or past
        self.coordinator: Card | None = None
        self.ended: dict[str, RunReport] = {}  # runs whose end has no quorum yet
        self.uncovered: dict[str, RunReport] = {}  # runs with rounds that have none yet

    def add(self, record: Record) -> None:
        """Check the next record; raises Broken."""
        self.at = self.size if isinstance(record, Leaf) else max(self.size - 1, 0)
        try:
            if isinstance(record, Leaf):
                self._entry(record)
            else:
                self._checkpoint(record)
        except Broken as error:
            if error.seq is None:
                error.seq = self.at
            raise

    def _entry(self, record: Leaf) -> None:
        entry = decode(record.data, MAX_LEAF)
        self._check_fields(entry, record.columns)
        card, seq = self._signer(entry), self.at
        reason = "the statement is not signed by its party"
        self.signatures.add(Check(seq, card, unhex(entry["sig"], 64), signed_of(record.data), reason))
        leaf = leaf_hash(record.data)
        self._check_place(entry, leaf, record)
        self.prev, self.size = leaf, seq + 1
        self.report.entries += 1
        self._note_run(entry, seq)
        self._check_kept()
        self.noted(entry)

    def _check_seq(self, seq: Any) -> None:
        """Check the entry's number and take it up as `at`."""
        if seq != self.size or isinstance(seq, bool):
            raise Broken(f"entry {self.size} is missing or out of its place")

    def _check_place(self, entry: dict[str, Any], leaf: bytes, _: Leaf) -> None:
        """Check that the entry stands where it says."""
        prev = unhex(entry["prev"], 32)
        if prev != self.prev:
            raise BrokenLink(f"entry {self.at} does not follow the entry before it", prev=prev, leaf=leaf)
        self.peaks_before = list(self.peaks)
        push(self.peaks, self.at, leaf)

    def _check_kept(self) -> None:
        if self.size in self.roots or self.size in self.others:
            self.note_root(self.size, tree_root(self.peaks))
        since = self.since
        if since is not None and since.size == self.size and since.root != tree_root(self.peaks):
            raise Broken("history was rewritten: the kept checkpoint is of other entries")

    def note_root(self, size: int, root: bytes) -> None:
        """Take up the root of the first `size` entries; raises Broken where another was signed for it elsewhere."""
        if size in self.roots:
            self.roots[size] = root
        if self.others.get(size, root) != root:
            raise Broken(f"a fork: elsewhere its coordinator signed another root over {size} entries")

    def _check_fields(self, entry: dict[str, Any], columns: tuple[Any, ...] | None) -> None:
        if set(entry) != FIELDS or entry["v"] != 1 or isinstance(entry["v"], bool):
            raise Broken("an entry of another shape or version")
        self._check_seq(entry["seq"])
        if not isinstance(entry["t"], int) or isinstance(entry["t"], bool) or entry["t"] < 0:
            raise Broken("an entry without a proper time")
        if not isinstance(entry["kind"], str) or entry["kind"] not in KINDS:
            raise Broken("an unknown kind")
        if (entry["kind"] == "log") != (self.at == 0):
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
            known = known or self._take_card(shown)
        if known is None:
            raise Broken(f"{by}: signs without having shown a card")
        if self.coordinator is None:
            self._begin(known)
        if entry["log"] != self.report.log:
            raise Broken(f"{by}: a statement for another log")
        if entry["kind"] in ("rotate", "revoke"):
            self._change_card(entry, known)
        return known

    def _take_card(self, card: Card) -> Card:
        if card.raw in self.keys:
            raise Broken(f"{card.name}: shows another party's key, or one that was rotated or revoked")
        self.keys.add(card.raw)
        self.cards[card.name] = card
        return card

    def _change_card(self, entry: dict[str, Any], signer: Card) -> None:
        """Take up a rotation or a revocation: what follows is held against the new card, or against none."""
        own = "" if self.coordinator is None else self.coordinator.name
        name = signer.name if entry["kind"] == "rotate" else read_revoked(entry, signer.name, own)
        if name == own:
            raise Broken("the coordinator's key is changed; it is the log's identity")
        if entry["kind"] == "rotate":
            self._take_card(read_rotation(entry, signer))
            return
        held = self.cards.pop(name, None)
        if held is None or held.fingerprint != entry["body"]["card"]:
            raise Broken(f"{name}: revoked is a card that it does not have")

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
        run.last = seq
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
        note, seq = read_note(record.note), self.at
        if self.coordinator is None or record.size not in (None, note.size):
            raise Broken("a checkpoint out of its place")
        check_log_signature(note, self.coordinator)
        self.signatures.count += 1
        if note.size <= self.report.sound:
            raise Broken("a checkpoint twice, or out of its place")
        self._check_root(note, record)
        for name, line in record.cosignatures.items():
            if name not in self.cards:
                raise Broken("a co-signature of a party that shows no card, or whose card was revoked")
            signature, data = cosignature(note, line, self.cards[name])
            reason = "a co-signature does not verify"
            self.signatures.add(Check(seq, self.cards[name], signature, data, reason))
        for check in self.outside.take(note, record.outside, seq):
            self.signatures.add(check)
        self.report.sound = note.size
        self.report.checkpoints += 1
        self._count_witnesses(set(record.cosignatures))

    def _check_root(self, note: Note, _: StoredCheckpoint) -> None:
        """Check that the checkpoint is over the entries before it."""
        if note.size > self.size:
            raise Broken(f"the tail is cut: a checkpoint covers {note.size} entries", self.size)
        if note.size < self.size:
            raise Broken("a checkpoint out of its place")
        if note.root != tree_root(self.peaks):
            raise Broken(f"entries {self.report.sound} to {self.at} do not have the root signed for {note.size}")

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
        size = self._head()[0]
        if self.since is not None and self.since.size > size:
            raise Broken(f"the tail is cut: the kept checkpoint covers {self.since.size} entries", size)

    def conclude(self, failure: Broken | None, lacking: list[str], started: float) -> None:
        """Write the verdict into the report."""
        report = self.report
        report.size, report.root = self._head()
        report.signatures = self.signatures.count
        report.seconds = time.monotonic() - started
        if failure is not None:
            report.status, report.reason, report.first_bad = BROKEN, failure.reason, failure.seq
            if failure.seq is not None:  # else no entry is at fault
                report.sound = min(report.sound, failure.seq)
        elif lacking:
            report.status = SHORT_OF_QUORUM
            report.reason = f"valid, but short of quorum: {', '.join(lacking[:5])}"

    def _head(self) -> tuple[int, str]:
        return self.size, tree_root(self.peaks).hex() if self.peaks else ""

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
    others: Mapping[int, bytes] | None = None,
    witnesses: Policy | None = None,
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
    others
        Roots by size, of checkpoints seen elsewhere that this coordinator signed.
    witnesses
        Which witnesses from outside must have co-signed the log up to the end of its last run.
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
    ledger = LedgerCheck(kept_note(since), coordinator_key_hex)
    ledger.others, ledger.outside = others or {}, Outsiders(witnesses)
    records = open_records(path)
    try:
        failure = first_bad(ledger, records, progress)
    finally:
        records.close()
        ledger.signatures.close()
    ledger.conclude(failure, sorted(name for name, run in ledger.report.runs.items() if lacks(run)), started)
    if failure is None:
        ledger.outside.conclude(ledger.report, ledger.report.runs)
    return ledger.report


def lacks(run: RunReport) -> bool:
    """Whether a run did more than its witnesses vouch for.

    A run that its coordinator says stopped short may have one round that nobody co-signed yet.  One without a word
    (under way, killed, or its tail cut off) is for the reader to explain.
    """
    return run.state in ("short", "open") or (run.state == "stopped" and (not run.quorum or run.uncovered > 1))


def kept_note(since: str | None) -> Note | None:
    """Read the checkpoint that the auditor has kept; raises NotALedger."""
    try:
        note = None if since is None else read_note(since)
    except Broken as error:
        raise NotALedger(f"the kept checkpoint: {error.reason}") from None
    if note is not None and note.size == 0:
        raise NotALedger("the kept checkpoint covers no entries")
    return note


def first_bad(ledger: LedgerCheck, records: Iterator[Record], progress: Callable[[int], None] | None) -> Broken | None:
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


def read_revoked(entry: dict[str, Any], by: str, coordinator: str) -> str:
    """Return whose card a `revoke` entry ends: its signer's own, or, by the coordinator, anybody's."""
    body = entry["body"]
    texts = all(isinstance(value, str) for value in body.values())
    if entry["run"] or set(body) != {"name", "card", "reason", "asked"} or not texts:
        raise Broken(f"{by}: not a revocation")
    if by not in (body["name"], coordinator):
        raise Broken(f"{by}: revokes the card of another")
    return str(body["name"])


def read_roster(body: dict[str, Any]) -> list[str]:
    """Return the parties of the coordinator's roster."""
    parties, least = body.get("parties"), body.get("min_parties")
    if not isinstance(parties, list) or not all(isinstance(p, str) and NAME.fullmatch(p) for p in parties):
        raise Broken("a roster without a list of names")
    if len(set(parties)) < len(parties) or type(least) is not int or not 1 <= least <= len(parties):
        raise Broken("a roster that names a party twice, or with another min_parties than 1 to their number")
    return parties
