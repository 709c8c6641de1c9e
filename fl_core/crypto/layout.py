"""How a vector and its tail lie in blocks, and what of a blob is compared.

One flat array [vector, tail] is cut into rows; the last value of each row is a canary, a public constant that
every party adds, so that the sum shows how many contributions a block holds.
"""

from __future__ import annotations

import numpy as np

from fl_core.crypto.block_cipher import BlockCipher, Values, Vector
from fl_core.crypto.ciphers import context_digest
from fl_core.crypto.envelope import Header, Kind
from fl_core.crypto.profiles import Profile
from fl_core.errors import BadMessage, WrongKey


def as_vector(values: Vector) -> Vector:
    """`values` as contiguous float64 of one dimension; another number of them is a `ValueError`."""
    array = np.ascontiguousarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"a vector has one dimension, not shape {array.shape}")
    return array


def effective_clip(profile: Profile, clip: float | None) -> float:
    """The clip that counts: only BFV's quantisation has one."""
    return float(clip or 0.0) if profile.scheme == "bfv" else 0.0


def block_count(cipher: BlockCipher, length: int, tail: int) -> int:
    """Blocks for a vector and a tail; an empty pair has one, for its canary."""
    return max(1, -(-cipher.slots(length, tail) // (cipher.width - 1)))


def to_rows(cipher: BlockCipher, values: Values) -> Values:
    """Lay values out over rows of `width`, zero-padded, with a canary at the end of each."""
    capacity = cipher.width - 1
    blocks = max(1, -(-len(values) // capacity))
    rows = np.zeros((blocks, cipher.width), cipher.dtype)
    full = len(values) // capacity
    rows[:full, :-1] = values[: full * capacity].reshape(full, capacity)
    if full < blocks:
        rest = values[full * capacity :]
        rows[full, : len(rest)] = rest
    rows[:, -1] = cipher.canaries(blocks)
    return rows


def expected_header(
    cipher: BlockCipher, key_id: str, length: int, tail: int, *, kind: Kind, count: int, clip: float
) -> Header:
    """The header that a blob of this kind must have."""
    profile = cipher.profile
    return Header(
        kind=kind, profile=profile.name, parties=cipher.parties, count=count, key_id=key_id,
        context_digest=context_digest(cipher), length=length, tail=tail, clip=clip,
        scale_bits=profile.scale_bits, blocks=block_count(cipher, length, tail),
    )  # fmt: skip


def compare(header: Header, expected: Header) -> None:
    """Refuse a header that differs: another key or parameter set is `WrongKey`, the rest `BadMessage`."""
    for name in ("profile", "parties", "context_digest", "key_id"):
        got, want = getattr(header, name), getattr(expected, name)
        if got != want:
            raise WrongKey(f"the {name} is {got}, not {want}")
    for name in ("kind", "count", "length", "tail", "clip", "scale_bits", "blocks"):
        got, want = getattr(header, name), getattr(expected, name)
        if got != want:
            raise BadMessage(f"the {name} is {got}, not {want}")


def check_canaries(cipher: BlockCipher, sums: Values, count: int) -> None:
    """Refuse a sum that does not hold exactly `count` contributions in each block.

    Raises:
        BadMessage: every block holds a whole number of contributions, but not `count`.
        WrongKey: anything else.
    """
    constants = cipher.canaries(len(sums))
    if np.all(np.abs(sums - count * constants) <= cipher.canary_tolerance):
        return
    held = np.rint(sums / constants)
    consistent = np.abs(sums - held * constants) <= cipher.canary_tolerance
    if np.all(consistent & (held >= 0) & (held <= cipher.parties)):
        raise BadMessage(f"blocks hold {held.min():.0f} to {held.max():.0f} contributions, not {count}")
    raise WrongKey("a canary does not add up: another key, or an altered block")
