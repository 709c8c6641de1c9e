"""Writing an audit pack: one run's evidence as a folder of text files that `verify` checks offline.

By default a pack holds the run's entries and those outside any run (cards, nodes, people, grants), each with a proof
that it stands under the newest checkpoint; it shows nothing of other runs but cards, keys and profiles that stand in
them. With `whole` it holds the log up to that checkpoint, which alone can show that nothing of the run was left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fl_core.errors import UsageError
from fl_core.trust import canonical
from fl_core.trust.checkpoint import open_checkpoint, quorum_size
from fl_core.trust.entry import Entry
from fl_core.trust.ledger import Ledger
from fl_core.trust.once import temporary_name

PACK = "fedseal audit pack v1"
MLFLOW_VALUES = "fedseal mlflow values v1"
ARTIFACT_LIST = "fedseal artifacts v1"
OUTSIDE_LINES = "fedseal outside co-signatures v1"
README_TEXT = (
    "Evidence of one fedseal run. Check it offline: `fedseal audit verify FOLDER`, or copy fl_core/trust/verify of "
    "fedseal (it needs Python and the package cryptography) and run `python -m verify FOLDER`.\n"
    "Exit status: 0 valid, 1 broken, 2 usage, 4 valid but short of quorum. Compare the keys in policy.json with those "
    "that the parties themselves gave you.\n"
)
MAX_VALUES, MAX_LIST = 16 << 20, 1 << 20

_ANY_RUN = ("card", "profile", "rotate", "revoke")
_HEAD = re.compile("[1-9][0-9]{0,14}")


@dataclass(frozen=True)
class Packed:
    """What was written: entries and checkpoints in the pack, the log's size at its checkpoint, entries beyond that."""

    path: Path
    entries: int
    checkpoints: int
    size: int
    left_out: int


def write_pack(
    ledger: Ledger,
    run: str,
    out: Path,
    *,
    whole: bool = False,
    mlflow: Mapping[str, Any] | None = None,
    since: str | None = None,
) -> Packed:
    """Write the pack of a run; the folder appears when it is complete.

    Parameters
    ----------
    out
        A folder that is not there, or is empty.
    whole
        The log up to its newest checkpoint instead of the run's entries with proofs.
    mlflow
        What MLflow shows of the run: `run_id` and `status`, texts; `metrics`, rows of name, step and value; `params`
        and `tags`, rows of name and value, all texts; `artifacts`, tables of `name`, `sha256` and `size`.
    since
        A checkpoint note that the auditor has kept: the pack will show that the log continues it.

    Raises
    ------
    UsageError
        If the run has no entry under a checkpoint, `since` is no checkpoint of this log, or `out` holds something.
    """
    plan = _Plan.make(ledger, run, whole=whole, sizes=() if since is None else (_size_of(since, ledger),))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: holds something; allowed: a new folder")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_name(out.absolute())
    folder.mkdir(mode=0o755)
    try:
        packed = _write(ledger, plan, folder, mlflow)
        os.rename(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Packed(out, *packed, plan.head, plan.beyond)


@dataclass(frozen=True)
class _Plan:
    """What goes into a pack; `sizes` are those of the checkpoints beside the newest, `beyond` entries not covered.

    `outside`: by size the co-signatures of witnesses from outside, each with its key.
    """

    run: str
    whole: bool
    head: int
    sizes: frozenset[int]
    parties: list[str]
    quorum: int
    beyond: int
    outside: dict[int, dict[str, str]]

    @classmethod
    def make(cls, ledger: Ledger, run: str, *, whole: bool, sizes: Sequence[int]) -> _Plan:
        every = ledger.checkpoint_sizes()
        head, own = every[-1], ledger.coordinator.name
        entries = beyond = 0
        parties: list[str] = []
        for entry in ledger.entries(run=run):
            if entry.seq >= head:
                beyond += 1
                continue
            entries += 1
            if entry.kind == "roster" and entry.by == own and not parties:
                parties = list(entry.body["parties"])
        if not entries:
            raise UsageError(f"run {run}: no entry under a checkpoint of {ledger.log}")
        if any(size > head for size in sizes):
            raise UsageError(f"--since: a checkpoint over {max(sizes)} entries; allowed: at most {head}")
        quorum = quorum_size(len(parties)) if parties else 0
        outside = _newest_of_each(ledger, every)
        chosen = set(every) if whole else {*sizes, *outside, *_with_quorum(ledger, every, parties, quorum)}
        return cls(run, whole, head, frozenset(chosen - {head}), parties, quorum, beyond, outside)


def _with_quorum(ledger: Ledger, sizes: list[int], parties: list[str], quorum: int) -> list[int]:
    """The newest checkpoint that a quorum of the run co-signed: it covers all that any of them does."""
    for size in reversed(sizes):
        if quorum and len(set(ledger.cosignatures(size)).intersection(parties)) >= quorum:
            return [size]
    return []


def _newest_of_each(ledger: Ledger, sizes: list[int]) -> dict[int, dict[str, str]]:
    """The co-signatures from outside but for those that a later checkpoint has as well, from all who gave them.

    So for every policy the newest checkpoint with enough of them is there.
    """
    found: dict[int, dict[str, str]] = {}
    for size in reversed(sizes):
        lines = ledger.outside_cosignatures(size)
        if lines and not any(set(lines) <= set(later) for later in found.values()):
            found[size] = lines
    return found


def _size_of(note: str, ledger: Ledger) -> int:
    size = open_checkpoint(note, ledger.coordinator).size
    if ledger.checkpoint_at(size) is None:
        raise UsageError(f"--since: a checkpoint over {size} entries; the ledger has none of that size")
    return size


def _write(ledger: Ledger, plan: _Plan, folder: Path, mlflow: Mapping[str, Any] | None) -> tuple[int, int]:
    """Write the files; return how many entries and checkpoints."""
    commits: dict[str, int | None] = {file["sha256"]: None for file in mlflow["artifacts"]} if mlflow else {}
    told = dict(mlflow["tags"]).get("ledger.size", "") if mlflow else ""
    entries = checkpoints = 0
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context((folder / "entries.jsonl").open("wb"))
        proofs = None if plan.whole else stack.enter_context((folder / "proofs.jsonl").open("wb"))
        for record in _records(ledger, plan):
            if isinstance(record, int):
                checkpoints += 1
                cosigned = {"checkpoint": ledger.checkpoint_at(record), "cosignatures": ledger.cosignatures(record)}
                _line(lines, canonical.encode(cosigned))
                _prove(proofs, ledger.consistency(record, plan.head) if proofs else [])
                continue
            entries += 1
            _line(lines, record.encode())
            _prove(proofs, ledger.inclusion(record.seq, plan.head) if proofs else [])
            if record.run == plan.run and commits:
                _note_commits(record, commits)
        if _HEAD.fullmatch(told):  # that MLflow's head is one of this log
            size = int(told)
            _prove(proofs, ledger.consistency(size, plan.head) if proofs and size <= plan.head else [])
    cosignatures, counts = ledger.cosignatures(plan.head), {"entries": entries, "checkpoints": checkpoints + 1}
    policy = _policy(ledger, plan) | counts | {"cosigned": sorted(cosignatures)}
    _small(folder / "policy.json", canonical.encode(policy) + b"\n", MAX_LIST)
    _small(folder / "checkpoint", _checkpoint(ledger, plan.head, cosignatures), MAX_LIST)
    _small(folder / "README.txt", README_TEXT.encode(), MAX_LIST)
    if plan.outside:
        _small(folder / "witnesses.json", _witnesses(plan.outside), MAX_LIST)
    if mlflow is not None:
        _small(folder / "mlflow.json", _values(mlflow), MAX_VALUES)
        _small(folder / "artifacts.json", _artifacts(mlflow["artifacts"], commits), MAX_LIST)
    _manifest(folder)
    return entries, checkpoints + 1


def _policy(ledger: Ledger, plan: _Plan) -> dict[str, Any]:
    """Who had to witness the run: what the auditor compares with what the parties say."""
    cards = {name: ledger.card(name, plan.head) for name in plan.parties}
    keys = {name: card.ed25519 for name, card in cards.items() if card is not None}
    return {
        "type": PACK,
        "run": plan.run,
        "whole": plan.whole,
        "log": ledger.log,
        "coordinator": ledger.coordinator.to_dict(),
        "roster": plan.parties,
        "quorum": plan.quorum,
        "keys": {ledger.coordinator.name: ledger.coordinator.ed25519, **keys},
    }


def _records(ledger: Ledger, plan: _Plan) -> Iterator[Entry | int]:
    """The pack's entries in order, and after the last entry that it covers the size of each checkpoint."""
    sizes = sorted(plan.sizes)
    for entry in _entries(ledger, plan):
        while sizes and sizes[0] <= entry.seq:
            yield sizes.pop(0)
        yield entry
    yield from sizes


def _entries(ledger: Ledger, plan: _Plan) -> Iterator[Entry]:
    if plan.whole:
        yield from ledger.entries(0, plan.head)
        return
    streams = [ledger.entries(0, plan.head, run=run) for run in ("", plan.run)]
    streams += [ledger.entries(0, plan.head, kind=kind) for kind in _ANY_RUN]
    before = -1
    for entry in heapq.merge(*streams, key=lambda entry: entry.seq):
        if entry.seq > before:
            yield entry
        before = entry.seq


def _note_commits(entry: Entry, commits: dict[str, int | None]) -> None:
    waiting: list[Any] = [entry.body]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if commits.get(item, 0) is None:
                commits[item] = entry.seq
        elif isinstance(item, (dict, list)):
            waiting += item.values() if isinstance(item, dict) else item


def _checkpoint(ledger: Ledger, size: int, lines: Mapping[str, str]) -> bytes:
    """The newest checkpoint as one signed note: the log's signature, then the co-signatures sorted by name."""
    note = ledger.checkpoint_at(size) or ""
    return (note + "".join(f"{lines[name]}\n" for name in sorted(lines))).encode()


def _witnesses(outside: Mapping[int, Mapping[str, str]]) -> bytes:
    """The co-signatures from outside as a document, in the order of checkpoints and keys."""
    found = sorted(outside.items())
    table = [{"size": size, "lines": sorted([key, line] for key, line in lines.items())} for size, lines in found]
    return canonical.encode({"type": OUTSIDE_LINES, "checkpoints": table}) + b"\n"


def _values(mlflow: Mapping[str, Any]) -> bytes:
    document: dict[str, Any] = {"type": MLFLOW_VALUES, "run_id": str(mlflow["run_id"]), "status": mlflow["status"]}
    for name in ("metrics", "params", "tags"):
        document[name] = sorted([str(item) for item in row] for row in mlflow[name])
    return canonical.encode(document) + b"\n"


def _artifacts(files: Sequence[Mapping[str, Any]], commits: Mapping[str, int | None]) -> bytes:
    table = []
    for file in sorted(files, key=lambda f: str(f["name"])):
        seq = commits[file["sha256"]]
        fields = {"name": file["name"], "sha256": file["sha256"], "size": file["size"]}
        table.append(fields | ({} if seq is None else {"entry": seq}))
    return canonical.encode({"type": ARTIFACT_LIST, "files": table}) + b"\n"


def _manifest(folder: Path) -> None:
    """The SHA-256 and size of each file: it shows damage on the way, and nothing else."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.name] = {"sha256": digest, "size": path.stat().st_size}
    _small(folder / "manifest.json", canonical.encode({"type": PACK, "files": files}) + b"\n", MAX_LIST)


def _prove(proofs: BinaryIO | None, hashes: Sequence[bytes]) -> None:
    if proofs is not None:
        _line(proofs, canonical.encode({"proof": [item.hex() for item in hashes]}))


def _line(file: BinaryIO, data: bytes) -> None:
    file.write(data + b"\n")


def _small(path: Path, data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise UsageError(f"{path.name}: {len(data)} bytes; a pack allows {limit}")
    path.write_bytes(data)
