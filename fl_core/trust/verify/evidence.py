"""Evidence of a fork: two checkpoints of one log and one size with different roots, both signed by its coordinator.

An honest log signs one root for a size, ever, so the two notes convict its key; nobody else can make them. Checkpoints
of different sizes prove nothing by themselves: the larger may continue the smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

from .documents import read_checkpoint
from .files import CHECKPOINT, ENTRIES, Folder, Reader
from .format import MAX_NOTE, Broken, Card, NotALedger, Note, check_log_signature, decode, encode, read_card, read_note
from .proofs import ProofReport
from .report import BROKEN, VALID
from .stream import MAX_LINE, Leaf, Record, open_records, read_record

EVIDENCE = "fedseal fork evidence v1"


def verify_evidence(document: Any, *, coordinator_key_hex: str | None = None) -> ProofReport:
    """Check a document of `find_fork`: that the key of `card` signed both notes, and that they contradict each other.

    Whose key that is the document does not prove: compare it with what is known, or give the coordinator's key.
    """
    try:
        note, card = _check_evidence(document, coordinator_key_hex)
    except Broken as error:
        return ProofReport(BROKEN, f"no evidence: {error.reason}")
    reason = f"valid evidence: the log's coordinator signed two histories of {note.size} entries"
    return ProofReport(VALID, reason, note.origin, card.raw.hex(), note.size, note.root.hex())


def _check_evidence(document: Any, key: str | None) -> tuple[Note, Card]:
    if not isinstance(document, dict) or set(document) != {"type", "card", "notes"} or document["type"] != EVIDENCE:
        raise Broken(f"not a {EVIDENCE}")
    card, notes = read_card(document["card"]), document["notes"]
    if key not in (None, card.raw.hex()):
        raise Broken("of another coordinator than expected")
    if not isinstance(notes, list) or len(notes) != 2:
        raise Broken("not two checkpoint notes")
    first, second = (read_note(note) for note in notes)
    check_log_signature(first, card)
    check_log_signature(second, card)
    if first.size != second.size:
        raise Broken(
            f"checkpoints over {first.size} and over {second.size} entries do not contradict each other: "
            "the larger may continue the smaller"
        )
    if first.root == second.root:
        raise Broken("the two checkpoints say the same")
    return first, card


def signed_roots(path: Path, card: Card) -> dict[int, bytes]:
    """Return the roots by size of the checkpoints in a pack, a ledger or a note that the key of `card` signed.

    Raises OSError or NotALedger where the file is none of these, or holds no such checkpoint.
    """
    roots: dict[int, bytes] = {}
    for text in notes_of(path):
        if (note := _signed(text, card)) is not None:
            roots.setdefault(note.size, note.root)
    if not roots:
        raise NotALedger(f"{path}: no checkpoint that this log's coordinator signed")
    return roots


def find_fork(path: Path, other: Path, card: Card, roots: Mapping[int, bytes]) -> dict[str, Any] | None:
    """Return evidence from two packs, ledgers or notes, if they hold any; `roots`: `signed_roots` of the other."""
    for text in notes_of(path):
        note = _signed(text, card)
        if note is None or roots.get(note.size, note.root) == note.root:
            continue
        for against in notes_of(other):
            found = _signed(against, card)
            if found is not None and (found.size, found.root) == (note.size, roots[note.size]):
                return {"type": EVIDENCE, "card": card.fields, "notes": sorted([text, against])}
    return None


def write_evidence(folder: Path, document: dict[str, Any]) -> Path:
    """Write evidence as `evidence-<size>.json` into `folder`, or `-2`, … where another file has that name.

    Raises OSError where it cannot be written.
    """
    name, data = f"evidence-{read_note(document['notes'][0]).size}", encode(document) + b"\n"
    for number in count(1):
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
                continue
        return path
    raise AssertionError


def card_of(path: Path) -> Card | None:
    """Return the coordinator's card that a pack's or a ledger's first entry shows; None for anything else."""
    for record in _records(path):
        if not isinstance(record, Leaf):
            return None
        try:
            return read_card(decode(record.data, MAX_LINE)["body"]["card"])
        except (Broken, KeyError, TypeError):
            return None
    return None


def notes_of(path: Path) -> Iterator[str]:
    """Yield the checkpoint notes in a pack, a ledger, its JSON lines, or a file that is such a note.

    What follows the first malformed line is left out: verifying the file itself tells what is wrong with it.
    """
    if _is_note(path):
        yield path.read_text(encoding="utf-8")
        return
    for record in _records(path):
        if not isinstance(record, Leaf) and isinstance(record.note, str):
            yield record.note


def _is_note(path: Path) -> bool:
    if path.is_dir() or path.stat().st_size > 2 * MAX_NOTE:
        return False
    try:
        read_note(path.read_bytes().decode("utf-8"))
    except (Broken, UnicodeDecodeError):
        return False
    return True


def _records(path: Path) -> Iterator[Record]:
    try:
        if not path.is_dir():
            with closing(open_records(path)) as records:
                yield from records
            return
        files = Folder(path)
        files.sizes()
        with ExitStack() as stack:
            entries, checkpoint = Reader(files, ENTRIES), Reader(files, CHECKPOINT)
            stack.callback(entries.close)
            stack.callback(checkpoint.close)
            while (line := entries.line(MAX_LINE)) is not None:
                yield read_record(line)
            yield read_checkpoint(checkpoint.rest())[0]
    except Broken:
        return


def _signed(text: str, card: Card) -> Note | None:
    try:
        note = read_note(text)
        check_log_signature(note, card)
    except Broken:
        return None
    return note
