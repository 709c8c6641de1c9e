"""What leaves the ledger: proofs and exports that `verify.py` checks offline, without fl_core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fl_core.errors import UsageError
from fl_core.trust import canonical
from fl_core.trust.ledger import Ledger

INCLUSION = "fedseal inclusion proof v1"
CONSISTENCY = "fedseal consistency proof v1"


def inclusion_proof_document(ledger: Ledger, seq: int) -> dict[str, Any]:
    """Prove that entry `seq` is under the last checkpoint.

    Returns
    -------
    dict
        `type`, `entry`, `size` (of the checkpoint), `proof` (hex hashes, leaf side first), `checkpoint` (the
        note), `card` (the coordinator's), `signer` (the card of who made the statement). Canonical JSON.

    Raises
    ------
    UsageError
        If there is no such entry, or no checkpoint covers it yet.
    """
    sizes = ledger.checkpoint_sizes(seq + 1)
    entry = next(ledger.entries(seq, seq + 1), None) if seq >= 0 else None
    if entry is None or not sizes:
        raise UsageError(f"no entry {seq} under a checkpoint; the ledger has {ledger.size}")
    signer = ledger.signer(entry)
    return {
        "type": INCLUSION,
        "entry": entry.to_dict(),
        "size": sizes[-1],
        "proof": [item.hex() for item in ledger.inclusion(seq, sizes[-1])],
        "checkpoint": _note(ledger, sizes[-1]),
        "card": ledger.coordinator.to_dict(),
        "signer": signer.to_dict(),
    }


def consistency_proof_document(ledger: Ledger, old: int, new: int) -> dict[str, Any]:
    """Prove that the log of `new` entries extends that of `old`, without changing one.

    Returns
    -------
    dict
        `type`, `old` and `new` (the checkpoint notes), `proof` (hex hashes), `card` (the coordinator's).

    Raises
    ------
    UsageError
        If there is no checkpoint over `old` or over `new` entries, or old > new.
    """
    return {
        "type": CONSISTENCY,
        "old": _note(ledger, old),
        "new": _note(ledger, new),
        "proof": [item.hex() for item in ledger.consistency(old, new)],
        "card": ledger.coordinator.to_dict(),
    }


def export_lines(ledger: Ledger) -> Iterator[bytes]:
    """Yield the whole ledger as JSON lines, each ending in a newline, that `verify_ledger` reads.

    An entry is its canonical bytes; after the entry that it covers last comes each checkpoint as
    `{"checkpoint": note, "cosignatures": {name: line}}`.
    """
    sizes = set(ledger.checkpoint_sizes())
    for entry in ledger.entries():
        yield entry.encode() + b"\n"
        size = entry.seq + 1
        if size in sizes:
            record = {"checkpoint": _note(ledger, size), "cosignatures": ledger.cosignatures(size)}
            yield canonical.encode(record) + b"\n"


def _note(ledger: Ledger, size: int) -> str:
    note = ledger.checkpoint_at(size)
    if note is None:
        sizes = ledger.checkpoint_sizes()
        raise UsageError(f"no checkpoint over {size} entries; the last is over {sizes[-1]}")
    return note
