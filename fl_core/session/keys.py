"""Who is at the other end, and the keys between two parties of a session.

Each party draws an X25519 key for the session and signs it with its identity: run, session, who is in it, and the key.
Two such signed keys give, by HKDF-SHA256, a ChaCha20-Poly1305 key a direction for messages and one for control; the
session, both names and both session keys are in the derivation, so nothing of another session, run or pair opens.  The
session's private key is in memory only and is gone with it: what somebody kept cannot be opened later.

The exchange sees the signed public keys.  It can keep parties from talking, and nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_core.errors import BadMessage, BadSignature
from fl_core.trust import canonical
from fl_core.trust.identity import Card, Identity
from fl_core.wire.exchange_pb2 import Hello

SESSION_BYTES = 32
TAG_BYTES = 16
_PREFIX = b"fedseal session key v1\n"
_HEAD = struct.Struct(">BQ")


@dataclass(frozen=True)
class SessionName:
    """What a session key is signed for, beside the key: one session of one run, among these parties.

    Parameters
    ----------
    run : hex.
    session : 32 random bytes.
    members : every party's card, the coordinator's included.
    """

    run: str
    session: bytes
    members: dict[str, Card]

    def text(self, sender: str, key: bytes) -> bytes:
        """What is signed."""
        table = {
            "run": self.run,
            "session": self.session.hex(),
            "members": {name: card.fingerprint for name, card in self.members.items()},
            "sender": sender,
            "key": key.hex(),
        }
        return _PREFIX + canonical.encode(table)


class Sealer:
    """One direction's key for sending; every number is used once."""

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)

    def seal(self, kind: int, number: int, data: bytes) -> bytes:
        """The sealed bytes, `TAG_BYTES` longer."""
        return self._aead.encrypt(_nonce(number), data, _HEAD.pack(kind, number))


class Opener:
    """One direction's key for receiving."""

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)

    def open(self, kind: int, number: int, sealed: bytes) -> bytes:
        """What was sealed under the same kind and number, else `BadMessage`."""
        try:
            return self._aead.decrypt(_nonce(number), sealed, _HEAD.pack(kind, number))
        except InvalidTag:
            raise BadMessage("it was altered, or is another's") from None


@dataclass(frozen=True)
class Keys:
    """Between this party and a peer."""

    send: Sealer
    receive: Opener
    send_control: Sealer
    receive_control: Opener


class Handshake:
    """This party's session key, and what it makes of the peers'."""

    def __init__(self, identity: Identity, name: SessionName) -> None:
        self._me, self._name, self._key = identity.name, name, X25519PrivateKey.generate()
        self._public = self._key.public_key().public_bytes_raw()
        self.hello = Hello(key=self._public, signature=identity.sign(name.text(self._me, self._public)))

    def keys(self, peer: str, hello: Hello) -> Keys:
        """Verify a peer's key under its card and derive the four keys.  Raises `BadSignature` or `BadMessage`."""
        card = self._name.members[peer]
        if len(hello.key) != 32:
            raise BadMessage(f"a session key of {len(hello.key)} bytes, not 32")
        try:
            card.verify(self._name.text(peer, hello.key), hello.signature)
        except ValueError:  # a signature of another length
            raise BadSignature(f"{peer}: its session key is not signed with its key {card.ed25519[:16]}…") from None
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(hello.key))
        except ValueError:  # a point of small order
            raise BadMessage("a session key that is not usable") from None
        out, back = (self._me, self._public, peer, hello.key), (peer, hello.key, self._me, self._public)
        return Keys(
            Sealer(self._derive(shared, b"message", *out)),
            Opener(self._derive(shared, b"message", *back)),
            Sealer(self._derive(shared, b"control", *out)),
            Opener(self._derive(shared, b"control", *back)),
        )

    def _derive(self, shared: bytes, purpose: bytes, sender: str, key: bytes, receiver: str, other: bytes) -> bytes:
        names = (purpose, self._name.run.encode(), sender.encode(), key, receiver.encode(), other)
        info = _PREFIX + b"".join(struct.pack(">I", len(part)) + part for part in names)
        return HKDF(SHA256(), 32, salt=self._name.session, info=info).derive(shared)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
