"""The tree against a slow recursive reference; proofs exhaustively to 64 leaves; everything that must fail."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest

from fl_core.errors import ForkDetected, LedgerBroken, UsageError
from fl_core.trust import merkle

SIZES = 64
LEAVES = [merkle.leaf_hash(bytes([n])) for n in range(SIZES)]


def slow_root(leaves):
    """RFC 6962 §2.1, as written there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = max(2**i for i in range(8) if 2**i < len(leaves))
    return hashlib.sha256(b"\x01" + slow_root(leaves[:k]) + slow_root(leaves[k:])).digest()


def slow_path(m, leaves):
    """RFC 6962 §2.1.1."""
    if len(leaves) == 1:
        return []
    k = max(2**i for i in range(8) if 2**i < len(leaves))
    if m < k:
        return [*slow_path(m, leaves[:k]), slow_root(leaves[k:])]
    return [*slow_path(m - k, leaves[k:]), slow_root(leaves[:k])]


def slow_proof(m, leaves, whole=True):
    """RFC 6962 §2.1.2."""
    if m == len(leaves):
        return [] if whole else [slow_root(leaves)]
    k = max(2**i for i in range(8) if 2**i < len(leaves))
    if m <= k:
        return [*slow_proof(m, leaves[:k], whole), slow_root(leaves[k:])]
    return [*slow_proof(m - k, leaves[k:], False), slow_root(leaves[:k])]


class Store:
    """Complete subtrees as a ledger stores them; counts look-ups."""

    def __init__(self, leaves):
        self.hashes, self.lookups, frontier = {}, 0, merkle.Frontier()
        for index, leaf in enumerate(leaves):
            self.hashes[0, index] = leaf
            self.hashes |= {(level, idx): value for level, idx, value in frontier.append(leaf)}

    def node(self, level, index):
        self.lookups += 1
        return self.hashes[level, index]


STORE = Store(LEAVES)
ROOTS = [slow_root(LEAVES[:size]) for size in range(SIZES + 1)]


def inclusion(index, size, /, **change):
    proof = merkle.inclusion_proof(index, size, STORE.node)
    given = {"leaf": LEAVES[index], "index": index, "size": size, "root": ROOTS[size], "proof": proof}
    merkle.verify_inclusion(**{**given, **change})


def consistency(old, new, /, **change):
    proof = merkle.consistency_proof(old, new, STORE.node)
    given = {"old_size": old, "old_root": ROOTS[old], "new_size": new, "new_root": ROOTS[new], "proof": proof}
    merkle.verify_consistency(**{**given, **change})


def test_published_rfc6962_roots():
    """Root hashes of the test tree of the certificate-transparency projects, in every of their implementations."""
    data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    expected = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    frontier = merkle.Frontier()
    for size in range(9):
        if size in expected:
            assert frontier.root().hex() == expected[size]
        if size < 8:
            frontier.append(merkle.leaf_hash(bytes.fromhex(data[size])))


def test_frontier_agrees_with_the_reference_and_can_be_loaded_anywhere():
    frontier = merkle.Frontier()
    for size in range(SIZES + 1):
        assert frontier.root() == ROOTS[size]
        assert merkle.Frontier.load(size, STORE.node) == frontier
        if size < SIZES:
            frontier.append(LEAVES[size])


def test_every_inclusion_proof_to_64_leaves():
    for size in range(1, SIZES + 1):
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, STORE.node)
            assert proof == slow_path(index, LEAVES[:size])
            inclusion(index, size)


def test_every_consistency_proof_to_64_leaves():
    for new in range(1, SIZES + 1):
        for old in range(1, new + 1):
            assert merkle.consistency_proof(old, new, STORE.node) == slow_proof(old, LEAVES[:new])
            consistency(old, new)


def test_proofs_take_logarithmically_many_lookups():
    leaves = [merkle.leaf_hash(n.to_bytes(4, "big")) for n in range(3000)]
    store = Store(leaves)
    for size in (1023, 1024, 1025, 2999, 3000):
        for index in (0, 1, size // 2, size - 1):
            store.lookups = 0
            merkle.inclusion_proof(index, size, store.node)
            merkle.consistency_proof(index + 1, size, store.node)
            assert store.lookups <= 2 * 2 * 12


def test_proofs_out_of_range_are_a_usage_error():
    for index, size in [(5, 5), (-1, 5), (0, 0)]:
        with pytest.raises(UsageError):
            merkle.inclusion_proof(index, size, STORE.node)
    for old, new in [(0, 5), (6, 5), (-1, 5), (0, 0)]:
        with pytest.raises(UsageError):
            merkle.consistency_proof(old, new, STORE.node)


def wrong_proofs(proof):
    """Every element dropped, doubled, flipped, swapped; garbage before and after."""
    garbage = b"\x77" * 32
    yield [garbage, *proof]
    yield [*proof, garbage]
    yield [*proof, b""]
    for place, item in enumerate(proof):
        yield proof[:place] + proof[place + 1 :]
        yield [*proof[:place], item, *proof[place:]]
        yield [*proof[:place], bytes([item[0] ^ 1]) + item[1:], *proof[place + 1 :]]
        yield [*proof[:place], item[:31], *proof[place + 1 :]]
    for place, (left, right) in enumerate(pairwise(proof)):
        yield [*proof[:place], right, left, *proof[place + 2 :]]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64])
def test_altered_inclusion_proofs_fail(size):
    for index in range(size):
        for proof in wrong_proofs(merkle.inclusion_proof(index, size, STORE.node)):
            with pytest.raises(LedgerBroken):
                inclusion(index, size, proof=proof)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_inclusion_at_another_place_or_size_or_root_fails(size):
    for index in range(size):
        for change in (
            {"index": index + 1}, {"index": index - 1}, {"index": size}, {"index": index ^ 2}, {"root": b""},
            {"root": merkle.EMPTY_ROOT}, {"leaf": b""}, {"leaf": ROOTS[size] if size > 1 else LEAVES[1]}, {"size": 0},
            {"root": ROOTS[size - 1]}, {"size": -1},
        ):  # fmt: skip
            with pytest.raises(LedgerBroken):
                inclusion(index, size, **change)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 8), (2, 5), (3, 7), (4, 7), (6, 8), (7, 13), (8, 64), (63, 64)])
def test_altered_consistency_proofs_fail(old, new):
    for proof in [[], *wrong_proofs(merkle.consistency_proof(old, new, STORE.node))]:
        with pytest.raises(LedgerBroken):
            consistency(old, new, proof=proof)
    for change in (
        {"old_size": 0}, {"old_size": -1}, {"old_size": new + 1}, {"new_size": old - 1}, {"new_size": 0},
        {"old_root": ROOTS[new], "new_root": ROOTS[old]}, {"old_root": merkle.EMPTY_ROOT}, {"new_root": b""},
        {"old_root": ROOTS[old - 1]}, {"new_root": ROOTS[new - 1]}, {"old_size": old ^ 2},
    ):  # fmt: skip
        with pytest.raises(LedgerBroken):
            consistency(old, new, **change)


def test_empty_trees_prove_nothing():
    empty = merkle.EMPTY_ROOT
    for old, new, proof in [(0, 0, []), (0, 1, []), (0, 5, [LEAVES[0]])]:
        with pytest.raises(LedgerBroken):
            merkle.verify_consistency(old_size=old, old_root=empty, new_size=new, new_root=ROOTS[new], proof=proof)


def test_equal_sizes_need_equal_roots_and_no_proof():
    for size in range(1, 10):
        consistency(size, size)
        with pytest.raises(ForkDetected):
            consistency(size, size, new_root=ROOTS[size - 1])
        with pytest.raises(LedgerBroken):
            consistency(size, size, proof=[LEAVES[0]])


def test_fork_is_told_from_a_bad_proof_where_the_proof_shows_it():
    other = [merkle.leaf_hash(b"forged"), *LEAVES[1:]]
    store, new = Store(other), 13
    for old in range(1, new):
        change = {"new_root": slow_root(other[:new]), "proof": merkle.consistency_proof(old, new, store.node)}
        with pytest.raises(LedgerBroken) as caught:
            consistency(old, new, **change)
        assert isinstance(caught.value, ForkDetected) == (old & (old - 1) != 0)
