"""The verification of an audit pack: the evidence of one run as a folder, read once, in bounded memory.

Either `entries.jsonl` is the whole log up to the checkpoint, checked like a ledger, or it holds the run's entries
(and those outside any run), each with a proof in `proofs.jsonl` that it stands under the checkpoint's root. All other
files must say what follows from the entries, in the one spelling there is; what follows from none is named as
unchecked. `manifest.json` shows damage only: it is not signed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from .claims import Artifacts, MlflowValues, RunStory
from .documents import (
    MAX_PROOF_LINE,
    PACK,
    README_TEXT,
    read_artifacts,
    read_checkpoint,
    read_manifest,
    read_mlflow,
    read_policy,
    read_proof,
    read_witnesses,
)
from .excerpt import Excerpt
from .files import (
    ARTIFACTS,
    CHECKPOINT,
    ENTRIES,
    LIMITS,
    MANIFEST,
    MLFLOW,
    POLICY,
    PROOFS,
    README,
    REQUIRED,
    WITNESSES,
    Files,
    Folder,
    Reader,
)
from .format import Broken, Note, read_note
from .ledger import LedgerCheck, first_bad, kept_note, lacks
from .outside import Outsiders, Policy
from .proofs import check_consistency
from .report import BROKEN, PackReport, RunReport
from .stream import MAX_LINE, Record, StoredCheckpoint, read_record


def verify_pack(
    path: str | os.PathLike[str],
    *,
    since: str | None = None,
    coordinator_key_hex: str | None = None,
    others: Mapping[int, bytes] | None = None,
    witnesses: Policy | None = None,
    progress: Callable[[int], None] | None = None,
) -> PackReport:
    """Verify a pack.

    Parameters
    ----------
    path
        The folder.
    since
        A checkpoint note that the auditor has kept: the log must continue it.
    coordinator_key_hex
        The coordinator's Ed25519 key, 64 hex digits, if known from elsewhere.
    others
        Roots by size, of checkpoints seen elsewhere that this coordinator signed.
    witnesses
        Which witnesses from outside must have co-signed the log up to the end of the run.
    progress
        Called with the number of entries read, every thousand.

    Raises
    ------
    OSError
        If the folder cannot be read.
    NotALedger
        If it is no pack, or `since` is no checkpoint note.
    """
    return verify_files(
        Folder(Path(path)),
        since=since,
        coordinator_key_hex=coordinator_key_hex,
        others=others,
        witnesses=witnesses,
        progress=progress,
    )


def verify_files(
    files: Files,
    *,
    since: str | None = None,
    coordinator_key_hex: str | None = None,
    others: Mapping[int, bytes] | None = None,
    witnesses: Policy | None = None,
    progress: Callable[[int], None] | None = None,
) -> PackReport:
    """Verify a pack from its files; see `verify_pack`."""
    started, report, kept = time.monotonic(), PackReport(), kept_note(since)
    with ExitStack() as stack:
        try:
            pack = _Pack(files, report, stack)
            check = pack.begin(kept, coordinator_key_hex)
        except Broken as error:
            report.status, report.reason, report.seconds = BROKEN, error.reason, time.monotonic() - started
            return report
        stack.callback(check.signatures.close)
        check.others, check.outside = others or {}, Outsiders(witnesses)
        failure = first_bad(check, pack.records(), progress)
        try:
            if failure is None:
                pack.finish(check)
        except Broken as error:
            failure = error
    run = report.runs.get(report.run, RunReport())
    lacking = [report.run] if lacks(run) else []
    if failure is None and report.differing:
        first = report.differences[0]
        failure = Broken(f"MLflow or the artifacts differ from the ledger ({report.differing} times): {first}")
    check.conclude(failure, lacking, started)
    if failure is None:
        check.outside.conclude(report, {report.run: run})
    if not report.whole:
        report.runs = {report.run: run}
    pack.tell(check, kept)
    return report


class _Pack:
    """The files read so far: the small ones at once, the entries as they are asked for."""

    def __init__(self, files: Files, report: PackReport, stack: ExitStack) -> None:
        self._files, self._report, self._stack = files, report, stack
        sizes = files.sizes()
        for name, size in sizes.items():
            if size > LIMITS[name]:
                raise Broken(f"{name}: {size} bytes; allowed: {LIMITS[name]}")
        for name in sorted(REQUIRED - set(sizes)):
            raise Broken(f"{name} is missing")
        self._digests: dict[str, dict[str, object]] = {}
        self._manifest = read_manifest(self._small(MANIFEST), set(sizes) - {MANIFEST})
        self._policy = read_policy(self._small(POLICY))
        report.run, report.whole = self._policy["run"], PROOFS not in sizes
        if self._policy["whole"] != report.whole:
            raise Broken("policy.json says whole where proofs.jsonl is, or not whole where it is not")
        if self._small(README) != README_TEXT.encode():
            raise Broken("README.txt is not that of a pack")
        self._record, self.head = read_checkpoint(self._small(CHECKPOINT))
        self._outside = read_witnesses(self._small(WITNESSES)) if WITNESSES in sizes else {}
        self._story, self._mlflow, self._artifacts = RunStory(), None, None
        if MLFLOW in sizes:
            self._mlflow = MlflowValues(read_mlflow(self._small(MLFLOW)), report.run, report)
        if ARTIFACTS in sizes:
            self._artifacts = Artifacts(read_artifacts(self._small(ARTIFACTS)), report)
        self._head_proof: tuple[bytes, ...] | None = None

    def begin(self, kept: Note | None, key: str | None) -> LedgerCheck:
        """Return what the records are to be given to."""
        report = self._report
        check = LedgerCheck(kept, key, report) if report.whole else Excerpt(self.head, report.run, kept, key, report)
        check.noted = lambda entry: self._noted(check, entry)
        if self._mlflow is not None:
            check.roots[self._mlflow.head] = None
        return check

    def records(self) -> Iterator[Record]:
        """Yield the records; raises Broken."""
        entries = self._open(ENTRIES)
        proofs = None if self._report.whole else self._open(PROOFS)
        while (line := entries.line(MAX_LINE)) is not None:
            record = read_record(line, None if proofs is None else self._proof(proofs))
            if isinstance(record, StoredCheckpoint):
                note = read_note(record.note)
                if len(note.lines) != 1:
                    raise Broken("a checkpoint with lines of unknown keys")
                record = replace(record, outside=self._outside.pop(note.size, ()))
            yield record
        if proofs is not None:
            if self._mlflow is not None and self._mlflow.head:
                self._head_proof = self._proof(proofs)
            if proofs.line(MAX_PROOF_LINE) is not None:
                raise Broken("proofs.jsonl has more lines than entries.jsonl")
            self._digests[PROOFS] = proofs.digest()
        self._digests[ENTRIES] = entries.digest()
        yield replace(self._record, outside=self._outside.pop(self.head.size, ()))
        if self._outside:
            raise Broken(f"{WITNESSES}: co-signatures of a checkpoint that is not there")

    def finish(self, check: LedgerCheck) -> None:
        """Check what only the end shows; raises Broken."""
        report = self._report
        if report.run not in report.runs:
            raise Broken("no entry of the run that the pack is about")
        self._check_policy(check)
        for name, digest in self._digests.items():
            if name != MANIFEST and self._manifest[name] != digest:
                raise Broken(f"{name} is not the file that manifest.json names")
        if self._mlflow is not None:
            self._mlflow.finish(self._told_root(check, self._mlflow))
        if self._artifacts is not None:
            self._artifacts.finish()

    def tell(self, check: LedgerCheck, kept: Note | None) -> None:
        """Say what could not be checked."""
        report, words = self._report, self._report.unchecked
        if isinstance(check, Excerpt):
            if check.hidden:
                places = ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in check.gaps)
                words.append(
                    f"{check.hidden} places between the run's first and last entry are not shown and could be of it: "
                    + places + (" …" if check.hidden > sum(b - a + 1 for a, b in check.gaps) else "")
                )  # fmt: skip
            words.append(
                f"whether entries of the run stand before its first one here ({check.first}) or after its last "
                f"({check.last}): {report.entries} of the log's {report.size} entries are shown"
            )
        elif others := sorted(name for name, run in report.runs.items() if name != report.run and lacks(run)):
            words.append(f"other runs are short of quorum: {', '.join(others[:5])}")
        outside = report.outside
        if outside is None and check.outside.lines:
            words.append("whose the co-signatures from outside are: no policy of witnesses was given")
        if kept is None and (outside is None or outside.covered < outside.due):
            words.append("that the log was not issued anew as a whole: no checkpoint kept from earlier was given")
        if self._mlflow is None:
            words.append("MLflow: the pack has none of its values")
        if self._artifacts is None:
            words.append("artifacts: the pack names none")
        words.append("that the keys in policy.json are those of whom they name; statements that were never ordered")

    def _noted(self, check: LedgerCheck, entry: dict[str, Any]) -> None:
        if entry["run"] != self._report.run:
            return
        own = check.coordinator is not None and entry["by"] == check.coordinator.name
        self._story.take(entry, own=own)
        if own and self._mlflow is not None:
            self._mlflow.take(entry)
        if self._artifacts is not None:
            self._artifacts.take(entry)

    def _check_policy(self, check: LedgerCheck) -> None:
        report, coordinator = self._report, check.coordinator
        if coordinator is None:
            raise Broken("no coordinator")
        run = report.runs[report.run]
        names = [coordinator.name, *(name for name in run.parties if name in check.cards)]
        due = {
            "type": PACK,
            "run": report.run,
            "whole": report.whole,
            "log": report.log,
            "coordinator": coordinator.fields,
            "roster": run.parties,
            "quorum": run.quorum,
            "keys": {name: check.cards[name].raw.hex() for name in names},
            "entries": report.entries,
            "checkpoints": report.checkpoints,
            "cosigned": list(self._record.cosignatures),
        }
        for name, value in due.items():
            if self._policy[name] != value:
                raise Broken(f"policy.json: {name} is not what the entries show")

    def _told_root(self, check: LedgerCheck, mlflow: MlflowValues) -> bytes | None:
        """The log's root at the size that MLflow names, None where it has none."""
        if self._report.whole or not mlflow.head or len(mlflow.root) != 32:
            return check.roots.get(mlflow.head)
        told = Note("", self.head.origin, mlflow.head, mlflow.root, ())
        try:
            check_consistency(told, self.head, self._head_proof or ())
        except Broken:
            return None
        return mlflow.root

    def _proof(self, proofs: Reader) -> tuple[bytes, ...]:
        line = proofs.line(MAX_PROOF_LINE)
        if line is None:
            raise Broken("proofs.jsonl has fewer lines than entries.jsonl")
        return read_proof(line)

    def _open(self, name: str) -> Reader:
        reader = Reader(self._files, name)
        self._stack.callback(reader.close)
        return reader

    def _small(self, name: str) -> bytes:
        reader = self._open(name)
        data = reader.rest()
        self._digests[name] = reader.digest()
        return data
