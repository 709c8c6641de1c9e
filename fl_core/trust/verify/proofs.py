"""The verification of proofs taken from a ledger: JSON documents that need nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .format import (
    FIELDS,
    MAX_LEAF,
    Broken,
    Card,
    Note,
    check_log_signature,
    check_signature,
    decode,
    encode,
    leaf_hash,
    node_hash,
    read_card,
    read_note,
    signed_bytes,
    unhex,
)
from .report import BROKEN, VALID

INCLUSION = "fedseal inclusion proof v1"
CONSISTENCY = "fedseal consistency proof v1"


@dataclass(frozen=True)
class ProofReport:
    """The verdict on one proof: status 0 valid or 1 broken, why, and what it is about."""

    status: int
    reason: str
    log: str = ""
    coordinator: str = ""
    size: int = 0
    root: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able values."""
        return asdict(self)


def verify_inclusion_proof(document: Any, *, coordinator_key_hex: str | None = None) -> ProofReport:
    """Check a document of `inclusion_proof_document`: the entry, its signature, its place, the checkpoint.

    That `signer` and `card` are the cards of whom they name is not proven by the document: compare them with
    what is known, or give the coordinator's key.
    """
    names = {"type", "entry", "size", "proof", "checkpoint", "card", "signer"}
    return _judge(document, INCLUSION, names, coordinator_key_hex, _check_inclusion)


def verify_consistency_proof(document: Any, *, coordinator_key_hex: str | None = None) -> ProofReport:
    """Check a document of `consistency_proof_document`: the older checkpoint is a prefix of the newer."""
    names = {"type", "old", "new", "proof", "card"}
    return _judge(document, CONSISTENCY, names, coordinator_key_hex, _check_consistency)


def _judge(
    document: Any, kind: str, names: set[str], key: str | None, check: Callable[[dict[str, Any], Card], Note]
) -> ProofReport:
    try:
        if not isinstance(document, dict) or set(document) != names or document["type"] != kind:
            raise Broken(f"not a {kind}")
        card = read_card(document["card"])
        if key not in (None, card.raw.hex()):
            raise Broken("of another coordinator than expected")
        note = check(document, card)
    except Broken as error:
        return ProofReport(BROKEN, error.reason)
    return ProofReport(VALID, "valid", note.origin, card.raw.hex(), note.size, note.root.hex())


def _signed_note(text: Any, card: Card) -> Note:
    note = read_note(text)
    check_log_signature(note, card)
    return note


def _hashes(proof: Any) -> list[bytes]:
    if not isinstance(proof, list):
        raise Broken("not a list of hashes")
    return [unhex(item, 32) for item in proof]


def check_inclusion(leaf: bytes, index: Any, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Check that leaf hash `leaf` stands at `index` of the tree of `size` (RFC 9162 §2.1.3.2); raises Broken."""
    last = size - 1
    if type(index) is not int or not 0 <= index <= last:
        raise Broken("the entry is beyond the checkpoint")
    for element in proof:
        if last == 0:
            raise Broken("the inclusion proof is too long")
        if index & 1 or index == last:
            leaf = node_hash(element, leaf)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            leaf = node_hash(leaf, element)
        index, last = index >> 1, last >> 1
    if last != 0 or leaf != root:
        raise Broken("the entry is not under the checkpoint's root")


def check_consistency(old: Note, new: Note, hashes: Sequence[bytes]) -> None:
    """Check that the older checkpoint is a prefix of the newer (RFC 9162 §2.1.4.2); raises Broken."""
    proof = list(hashes)
    if not 0 < old.size <= new.size:
        raise Broken("the newer checkpoint is smaller, or the older is empty")
    if old.size == new.size:
        if proof or old.root != new.root:
            raise Broken("two roots for one size, or a proof where none is needed")
        return
    if old.size & (old.size - 1) == 0:
        proof.insert(0, old.root)
    fn, sn = old.size - 1, new.size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = proof[0] if proof else b""
    for element in proof[1:]:
        if sn == 0:
            raise Broken("the consistency proof is too long")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(element, fr), node_hash(element, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, element)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or (fr, sr) != (old.root, new.root):
        raise Broken("the newer checkpoint does not continue the older")


def _check_inclusion(document: dict[str, Any], card: Card) -> Note:
    note, signer = _signed_note(document["checkpoint"], card), read_card(document["signer"])
    entry = document["entry"]
    leaf = _canonical_entry(entry)
    if document["size"] != note.size or entry["log"] != note.origin or entry["by"] != signer.name:
        raise Broken("entry, signer and checkpoint do not belong together")
    check_signature(signer, unhex(entry["sig"], 64), signed_bytes(entry), "the statement is not signed by it")
    check_inclusion(leaf_hash(leaf), entry["seq"], note.size, note.root, _hashes(document["proof"]))
    return note


def _canonical_entry(entry: Any) -> bytes:
    if not isinstance(entry, dict) or set(entry) != FIELDS:
        raise Broken("not an entry")
    try:
        leaf = encode(entry)
    except (ValueError, TypeError, RecursionError):
        raise Broken("not an entry") from None
    decode(leaf, MAX_LEAF)
    return leaf


def _check_consistency(document: dict[str, Any], card: Card) -> Note:
    old, new = _signed_note(document["old"], card), _signed_note(document["new"], card)
    check_consistency(old, new, _hashes(document["proof"]))
    return new
