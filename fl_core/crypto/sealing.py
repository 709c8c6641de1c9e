"""Sealing to one receiver: HPKE in base mode (RFC 9180, section 5.1.1, single-shot).

Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305.  The relay learns the length and, from the
public header around it, sender and receiver.  Base mode does not say who sealed: the packet around a sealed
blob is signed.  Receivers use a key of the run, so that a blob kept in a database cannot be opened later.

`info` says what a blob is for (`key_info`), and a blob sealed for another run, roster or pair does not open.
The library's single-shot interface takes no associated data; `aad` is therefore bound through the key
schedule as well, each of the two preceded by its length.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fl_core.errors import BadMessage

PUBLIC_KEY_BYTES = 32
#: Encapsulated key and tag.
OVERHEAD_BYTES = 32 + 16

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_TAG = b"fedseal/sealed/v1"
_KEY_TAG = b"fedseal/key-info/v1"


def _encode(*parts: bytes) -> bytes:
    """Concatenation that can be taken apart in one way only."""
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def key_info(run: str, roster_digest: str, sender: str, receiver: str) -> bytes:
    """What binds a sealed key to its run, the signed roster and the two parties' names."""
    return _encode(_KEY_TAG, *(text.encode() for text in (run, roster_digest, sender, receiver)))


def seal(public_key: bytes, plaintext: bytes, *, info: bytes, aad: bytes) -> bytes:
    """Seal `plaintext` to the holder of an X25519 key.

    Args:
        public_key: 32 raw bytes; a point of small order is `BadMessage`.
        plaintext: anything; the result is `OVERHEAD_BYTES` longer.
        info: what the blob is for, see `key_info`.
        aad: further data that must be the same at the receiver.
    """
    try:
        receiver = X25519PublicKey.from_public_bytes(public_key)
        return _SUITE.encrypt(plaintext, receiver, _encode(_TAG, info, aad))
    except ValueError:
        raise BadMessage("the receiver's public key is not usable") from None


def open_sealed(private_key: X25519PrivateKey, blob: bytes, *, info: bytes, aad: bytes) -> bytes:
    """The plaintext of `seal`; whatever is wrong is the same `BadMessage`, so that nothing is told apart."""
    try:
        return _SUITE.decrypt(blob, private_key, _encode(_TAG, info, aad))
    except (InvalidTag, ValueError):
        raise BadMessage("a sealed message does not open") from None
