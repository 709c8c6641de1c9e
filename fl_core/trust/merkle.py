"""Merkle trees over a growing list of leaves: RFC 6962 §2.1 hashes, RFC 9162 §2.1 proofs.

Hashes are 32 bytes, SHA-256. Proofs are computed through `node(level, index)`, which returns the hash of the
complete subtree over leaves `index·2^level … (index+1)·2^level - 1`, so that a proof reads O(log n) stored
hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fl_core.errors import ForkDetected, LedgerBroken, UsageError

NodeLookup = Callable[[int, int], bytes]

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Hash a leaf (RFC 6962 §2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash an inner node (RFC 6962 §2.1)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass
class Frontier:
    """What appending needs: the roots of the complete subtrees, largest first, one a set bit of `size`."""

    size: int = 0
    peaks: list[bytes] = field(default_factory=list)

    @classmethod
    def load(cls, size: int, node: NodeLookup) -> Frontier:
        """Read the frontier of the first `size` leaves."""
        return cls(size, [node(level, index) for level, index in _peak_positions(size)])

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Append a leaf hash; return the subtrees it completes as (level ≥ 1, index, hash), lowest first."""
        completed = []
        level, index, current = 0, self.size, leaf
        while index & 1:
            current = node_hash(self.peaks.pop(), current)
            level, index = level + 1, index >> 1
            completed.append((level, index, current))
        self.peaks.append(current)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """Return the tree's root; `EMPTY_ROOT` without leaves."""
        if not self.peaks:
            return EMPTY_ROOT
        current = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            current = node_hash(peak, current)
        return current


def inclusion_proof(index: int, size: int, node: NodeLookup) -> list[bytes]:
    """Return PATH(index, D[size]) of RFC 9162 §2.1.3.1, leaf side first."""
    if not 0 <= index < size:
        raise UsageError(f"no entry {index} in a ledger of {size}")
    proof = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_subtree_root(middle, end, node))
            end = middle
        else:
            proof.append(_subtree_root(start, middle, node))
            start = middle
    return proof[::-1]


def consistency_proof(old: int, new: int, node: NodeLookup) -> list[bytes]:
    """Return PROOF(old, D[new]) of RFC 9162 §2.1.4.1; empty where the sizes are equal."""
    if not 0 < old <= new:
        raise UsageError(f"no consistency proof from size {old} to size {new}; allowed: 1 ≤ old ≤ new")
    proof = []
    start, end = 0, new
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(_subtree_root(middle, end, node))
            end = middle
        else:
            proof.append(_subtree_root(start, middle, node))
            start = middle
    if start > 0:  # else the old tree is this subtree, whose root the verifier has
        proof.append(_subtree_root(start, end, node))
    return proof[::-1]


def verify_inclusion(*, leaf: bytes, index: int, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Check that leaf hash `leaf` stands at `index` in the tree of `size` with `root` (RFC 9162 §2.1.3.2).

    Raises LedgerBroken for a wrong position, a missing, superfluous or altered element, or another root.
    """
    _check_hashes([leaf, root, *proof])
    if not 0 <= index < size:
        raise LedgerBroken(f"inclusion proof: position {index} in a tree of {size}")
    position, last, current = index, size - 1, leaf
    for element in proof:
        if last == 0:
            raise LedgerBroken("inclusion proof: superfluous elements")
        if position & 1 or position == last:
            current = node_hash(element, current)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            current = node_hash(current, element)
        position, last = position >> 1, last >> 1
    if last != 0:
        raise LedgerBroken("inclusion proof: too short")
    if current != root:
        raise LedgerBroken(f"inclusion proof: entry {index} is not under the root of size {size}")


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the old tree is a prefix of the new one (RFC 9162 §2.1.4.2).

    Raises
    ------
    ForkDetected
        If the new tree provably has another prefix of the old size: two histories.
    LedgerBroken
        If the proof shows nothing: old size 0, a shrinking tree, a wrong length, altered elements. (Where the
        old size is a power of two its root is no part of the proof, and a fork looks like this, too.)
    """
    _check_hashes([old_root, new_root, *proof])
    if not 0 < old_size <= new_size:
        raise LedgerBroken(f"consistency proof: from size {old_size} to {new_size}; allowed: 1 ≤ old ≤ new")
    if old_size == new_size:
        if proof:
            raise LedgerBroken("consistency proof: superfluous elements between equal sizes")
        if old_root != new_root:
            raise ForkDetected(f"two roots of size {old_size}: {old_root.hex():.16}…, {new_root.hex():.16}…")
        return
    old, new = _fold_consistency(old_size, old_root, new_size, list(proof))
    if new != new_root:
        raise LedgerBroken(f"consistency proof: does not lead from size {old_size} to {new_size}")
    if old != old_root:
        raise ForkDetected(f"size {new_size} does not continue the remembered root of size {old_size}")


def _fold_consistency(old_size: int, old_root: bytes, new_size: int, path: list[bytes]) -> tuple[bytes, bytes]:
    """Recompute both roots from the proof, in the notation of the RFC: fn, sn, fr, sr."""
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise LedgerBroken("consistency proof: too short")
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for element in path[1:]:
        if sn == 0:
            raise LedgerBroken("consistency proof: superfluous elements")
        if fn & 1 or fn == sn:
            fr, sr = node_hash(element, fr), node_hash(element, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, element)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0:
        raise LedgerBroken("consistency proof: too short")
    return fr, sr


def _split(size: int) -> int:
    """Return the largest power of two smaller than `size` ≥ 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _peak_positions(size: int) -> list[tuple[int, int]]:
    """Return (level, index) of the complete subtrees that make up the first `size` leaves, largest first."""
    levels = reversed(range(size.bit_length()))
    return [(level, (size >> level) - 1) for level in levels if size >> level & 1]


def _subtree_root(start: int, end: int, node: NodeLookup) -> bytes:
    """Return the root over leaves start … end-1, which hang under one node of the tree."""
    size = end - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return node(level, start >> level)
    middle = start + _split(size)
    return node_hash(_subtree_root(start, middle, node), _subtree_root(middle, end, node))


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(item) != 32 for item in hashes):
        raise LedgerBroken("proof: every hash has 32 bytes")
