"""Random 1-of-2 oblivious transfers: the sender gets pairs of keys, the chooser one key of each pair.

The "simplest" protocol of Chou and Orlandi (LATINCRYPT 2015, ePrint 2015/267, figure 1) over the prime-order
subgroup of edwards25519, libsodium's through PyNaCl.

Who learns what: the sender, both keys of each pair and nothing of the choices (information-theoretically: each point
that it gets is uniform either way); the chooser, the key that it chose and nothing of the other (computational
Diffie-Hellman, the hash as random oracle).  The count is public.

Honest-but-curious parties, 128 bits.  Against a chooser who deviates each pair still has one key that it cannot
compute, since every received point is checked to be in the subgroup; that its choice could be extracted, which a
proof in the malicious model needs, is not claimed.  Whoever needs that must take an endemic transfer (Masny and
Rindal, CCS 2019) instead.

Keys are bound to the session, to both parties, to the label, to the index of the transfer and to both public points,
so that no two transfers share a key.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable

import numpy as np
from nacl import bindings as sodium
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.errors import BadFrame

KEY_BYTES = 16
POINT_BYTES = 32

_TAG = b"fedseal/oblivious-transfer/v1"
_OFFER, _CHOICES = "transfer offer", "transfer choices"
_Derive = Callable[[int, bytes, bytes], bytes]


def send_keys(channel: Channel, chooser: str, count: int, *, label: bytes) -> list[tuple[bytes, bytes]]:
    """The sender's part of `count` transfers.

    Parameters
    ----------
    label : what the keys are for, the same at both.

    Returns
    -------
    (key for choice 0, key for choice 1) of each transfer, 16 bytes each.

    Raises
    ------
    BadFrame : a point that is not in the subgroup, or that would make both keys known.
    """
    secret = _secret_scalar()
    offer = sodium.crypto_scalarmult_ed25519_base_noclamp(secret)
    channel.send(chooser, offer, step=_OFFER)
    shift = sodium.crypto_scalarmult_ed25519_noclamp(secret, offer)
    points = bytes(channel.recv_exactly(chooser, step=_CHOICES, size=count * POINT_BYTES))
    derive = _key_derivation(channel, sender=channel.me, chooser=chooser, label=label, offer=offer)
    pairs = []
    for index in range(count):
        point = points[index * POINT_BYTES : (index + 1) * POINT_BYTES]
        if point == offer or not sodium.crypto_core_ed25519_is_valid_point(point):
            raise BadFrame(chooser, _CHOICES, f"point {index} of {count} is not one of the group")
        shared = sodium.crypto_scalarmult_ed25519_noclamp(secret, point)
        other = sodium.crypto_core_ed25519_sub(shared, shift)
        pairs.append((derive(index, point, shared), derive(index, point, other)))
    return pairs


def choose_keys(channel: Channel, sender: str, choices: NDArray[np.bool_], *, label: bytes) -> list[bytes]:
    """The chooser's part, a transfer for each of `choices`: the chosen keys, 16 bytes each.

    Raises
    ------
    BadFrame : the sender's point is not in the subgroup.
    """
    offer = bytes(channel.recv_exactly(sender, step=_OFFER, size=POINT_BYTES))
    if not sodium.crypto_core_ed25519_is_valid_point(offer):
        raise BadFrame(sender, _OFFER, "its point is not one of the group")
    derive = _key_derivation(channel, sender=sender, chooser=channel.me, label=label, offer=offer)
    points, keys = [], []
    for index, choice in enumerate(choices.tolist()):
        secret = _secret_scalar()
        blind = sodium.crypto_scalarmult_ed25519_base_noclamp(secret)
        shifted = sodium.crypto_core_ed25519_add(blind, offer)  # always, so that the time does not tell
        points.append(shifted if choice else blind)
        keys.append(derive(index, points[-1], sodium.crypto_scalarmult_ed25519_noclamp(secret, offer)))
    channel.send(sender, *points, step=_CHOICES)
    return keys


def _secret_scalar() -> bytes:
    """Uniform modulo the group's order, to 2^-250, and not zero."""
    while True:
        scalar = sodium.crypto_core_ed25519_scalar_reduce(os.urandom(64))
        if any(scalar):
            return scalar


def _key_derivation(channel: Channel, *, sender: str, chooser: str, label: bytes, offer: bytes) -> _Derive:
    fixed = (_TAG, channel.session, sender.encode(), chooser.encode(), label, offer)
    start = hashlib.sha256(b"".join(struct.pack(">I", len(part)) + part for part in fixed))

    def derive(index: int, point: bytes, shared: bytes) -> bytes:
        digest = start.copy()
        digest.update(struct.pack(">I", index) + point + shared)
        return digest.digest()[:KEY_BYTES]

    return derive
