"""What a node shows the operator who registers it: a party's card and the key that Flower knows the node by.

The card travels by hand (mail, a ticket); the operator compares its fingerprint with the one that the owner reads out.
The identity signs the Flower key, so that nobody can register a node of their own under somebody else's card.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from fl_core.errors import BadMessage, BadSignature, UsageError
from fl_core.trust import canonical
from fl_core.trust.identity import Card, Identity, is_hex

_PREFIX = b"fedseal node key v1\n"
_HEAD = "fedseal-node-card:"
_MAX = 4096


@dataclass(frozen=True)
class NodeCard:
    """A verified node card; `key` is the Flower key, PEM."""

    card: Card
    key: str
    sig: str

    @classmethod
    def make(cls, identity: Identity, key: str) -> NodeCard:
        """Sign a node's key."""
        return cls(identity.card, key, identity.sign(_text(identity.card, key)).hex())

    @property
    def name(self) -> str:
        """The party's name."""
        return self.card.name

    @property
    def fingerprint(self) -> str:
        """SHA-256, 64 hex digits, over identity and key: what two people compare."""
        return canonical.digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"card": self.card.to_dict(), "key": self.key, "sig": self.sig}

    def encode(self) -> str:
        """One line of text."""
        return _HEAD + base64.urlsafe_b64encode(canonical.encode(self.to_dict())).decode()

    @classmethod
    def decode(cls, text: str) -> NodeCard:
        """Read and verify one line of text.  Raises `UsageError`."""
        try:
            if not text.startswith(_HEAD):
                raise BadMessage("another kind of text")
            data = base64.b64decode(text.removeprefix(_HEAD).encode(), altchars=b"-_", validate=True)
            return cls.from_dict(canonical.decode(data, max_bytes=_MAX))
        except (BadMessage, BadSignature, binascii.Error, UnicodeEncodeError) as error:
            raise UsageError(f"node card: {error}; allowed: the line that fedseal node init printed") from None

    @classmethod
    def from_dict(cls, fields: Any) -> NodeCard:
        """Verify untrusted JSON.  Raises `BadMessage` or `BadSignature`."""
        if not isinstance(fields, dict) or set(fields) != {"card", "key", "sig"}:
            raise BadMessage("expected exactly card, key, sig")
        card, key, sig = Card.from_dict(fields["card"]), fields["key"], fields["sig"]
        if not isinstance(key, str) or not is_hex(sig, 64):
            raise BadMessage("key is text, sig 64 bytes of lower-case hex")
        card.verify(_text(card, key), bytes.fromhex(sig))
        return cls(card, key, sig)


def _text(card: Card, key: str) -> bytes:
    return _PREFIX + canonical.encode({"card": card.to_dict(), "key": key})
