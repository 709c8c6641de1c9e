"""Identities: an Ed25519 signing key and the X25519 sealing key that it certifies.

A party shows others its `Card`. Cards are pinned in a `CardBook` at first use, or by the fingerprint that the
job file names: whoever could swap a card afterwards would read what is sealed to it, so a changed card is
refused.

The signing key signs texts of several kinds.  Each starts with a prefix of its own (`fedseal statement v1`,
`fedseal sealing key v1`, `fedseal node key v1`, `fedseal rotation v1`, `cosignature/v1`, a log's origin); whoever
signs something new brings a new prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fl_core.errors import BadMessage, BadSignature, UsageError, WrongKey
from fl_core.files import locked, write_atomic
from fl_core.trust import canonical
from fl_core.trust.once import create_once

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_SEALING_PREFIX = b"fedseal sealing key v1\n"
_KEY_FILE = "identity.key"


def check_name(name: str) -> str:
    """Return `name` if it can name a party (`[a-z0-9][a-z0-9_.-]{0,63}`), else raise BadMessage."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadMessage(f"party name {name!r:.80}; allowed: [a-z0-9][a-z0-9_.-]{{0,63}}")
    return name


def is_hex(text: Any, length: int) -> bool:
    """Return whether `text` is a string of exactly `length` bytes in lower-case hex."""
    return isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{2 * length}}}", text) is not None


@dataclass(frozen=True)
class Card:
    """The public half of an identity; one that exists is well formed and certified by its own signing key.

    Attributes
    ----------
    name
        The party's name.
    ed25519, x25519
        Public keys, 64 hex digits each.
    seal_sig
        Ed25519 signature, 128 hex digits, over the prefix and the canonical `{name, x25519}`.
    """

    name: str
    ed25519: str
    x25519: str
    seal_sig: str

    def __post_init__(self) -> None:
        check_name(self.name)
        if not (is_hex(self.ed25519, 32) and is_hex(self.x25519, 32) and is_hex(self.seal_sig, 64)):
            raise BadMessage(f"card of {self.name}: keys are 32 bytes of hex, the signature 64")
        self.verify(_sealing_text(self.name, self.x25519), bytes.fromhex(self.seal_sig))

    @classmethod
    def from_dict(cls, fields: Any) -> Card:
        """Build a card from untrusted JSON; raises BadMessage or BadSignature."""
        if not isinstance(fields, dict) or set(fields) != {"name", "ed25519", "x25519", "seal_sig"}:
            raise BadMessage("card: expected exactly name, ed25519, x25519, seal_sig")
        return cls(**fields)

    def to_dict(self) -> dict[str, str]:
        """Return the card as JSON-able strings."""
        return asdict(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical card, 64 hex digits."""
        return canonical.digest(self.to_dict())

    @cached_property
    def signing_public_key(self) -> Ed25519PublicKey:
        """The key that verifies this party's signatures."""
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.ed25519))

    @cached_property
    def sealing_public_key(self) -> X25519PublicKey:
        """The key to which blobs for this party are sealed."""
        return X25519PublicKey.from_public_bytes(bytes.fromhex(self.x25519))

    def verify(self, data: bytes, sig: bytes) -> None:
        """Raise BadSignature unless `sig` is this party's signature over `data`."""
        try:
            self.signing_public_key.verify(sig, data)
        except InvalidSignature:
            raise BadSignature(f"{self.name}: not signed with its key {self.ed25519[:16]}…") from None


class Identity:
    """A party's private keys.  They never leave the process except into the party's own key file."""

    def __init__(self, name: str, *, signing_key: Ed25519PrivateKey, sealing_key: X25519PrivateKey) -> None:
        self.name = check_name(name)
        self.sealing_key = sealing_key
        self._signing_key = signing_key
        x25519 = sealing_key.public_key().public_bytes_raw().hex()
        self.card = Card(
            name=name,
            ed25519=signing_key.public_key().public_bytes_raw().hex(),
            x25519=x25519,
            seal_sig=signing_key.sign(_sealing_text(name, x25519)).hex(),
        )

    @classmethod
    def create(cls, name: str) -> Identity:
        """Make fresh keys from the operating system's randomness; nothing is stored."""
        return cls(name, signing_key=Ed25519PrivateKey.generate(), sealing_key=X25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, directory: Path, name: str) -> Identity:
        """Load `directory/identity.key` (mode 0600, directory 0700), making it on first use.

        Several processes may race on the first use: one key is kept and all of them return it.

        Raises
        ------
        UsageError
            If the file belongs to another name, is readable by others, or is damaged.
        """
        check_name(name)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        path = directory / _KEY_FILE
        if not path.exists():
            create_once(path, cls.create(name)._encode())
        return cls._load(path, name)

    @classmethod
    def _load(cls, path: Path, name: str) -> Identity:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path}: others may read this private key; run: chmod 600 {path}")
        try:
            fields = canonical.decode(path.read_bytes())
            owner = fields["name"]
            signing_key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(fields["ed25519"]))
            sealing_key = X25519PrivateKey.from_private_bytes(bytes.fromhex(fields["x25519"]))
        except (BadMessage, KeyError, TypeError, ValueError):
            raise UsageError(f"{path}: not an identity file") from None
        if owner != name:
            raise UsageError(f"{path}: the identity of {owner!r}, not of {name!r}")
        return cls(name, signing_key=signing_key, sealing_key=sealing_key)

    def _encode(self) -> bytes:
        return canonical.encode(
            {
                "name": self.name,
                "ed25519": self._signing_key.private_bytes_raw().hex(),
                "x25519": self.sealing_key.private_bytes_raw().hex(),
            }
        )

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) over `data`, which starts with its purpose's own prefix."""
        return self._signing_key.sign(data)

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, key {self.card.ed25519[:16]}…)"


class CardBook:
    """Cards of peers as first seen, in one JSON file (0600).  Safe for several processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pin(self, card: Card, *, fingerprint: str | None = None) -> Card:
        """Remember `card`, or check it against the remembered one.

        Parameters
        ----------
        card
            The card just received.
        fingerprint
            The fingerprint (64 hex digits) that the job file names for this party, if it does.

        Raises
        ------
        WrongKey
            If `card` has another fingerprint, or differs from the card pinned before.
        """
        if fingerprint is not None and card.fingerprint != fingerprint:
            raise WrongKey(f"{card.name}: shows card {card.fingerprint[:16]}…, not {fingerprint:.16}…")
        self.pin_all([card])
        return card

    def pin_all(self, cards: Iterable[Card]) -> None:
        """Remember several cards, or check them against the remembered ones, and write once; raises WrongKey."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self._path.with_name(f".{self._path.name}.lock")):
            held = self._read()
            new = {}
            for card in cards:
                fields = card.to_dict()
                if (known := held.get(card.name, fields)) != fields:
                    pinned = Card.from_dict(known).fingerprint
                    raise WrongKey(f"{card.name}: shows card {card.fingerprint[:16]}…, pinned is {pinned[:16]}…")
                new[card.name] = fields
            if not new.keys() <= held.keys():
                write_atomic(self._path, canonical.encode(held | new))

    def replace(self, card: Card, *, before: Card) -> None:
        """Pin `card` in the place of `before`; raises WrongKey if another one is pinned by now.

        For whoever has checked both signatures of a rotation (`fl_core.trust.rotation`).
        """
        self._put(card.name, card.to_dict(), before)

    def forget(self, card: Card) -> None:
        """Pin nothing for a name any more; raises WrongKey if another card than `card` is pinned by now."""
        self._put(card.name, None, card)

    def _put(self, name: str, fields: dict[str, str] | None, before: Card) -> None:
        with locked(self._path.with_name(f".{self._path.name}.lock")):
            held = self._read()
            if held.get(name) != before.to_dict():
                raise WrongKey(f"{name}: card {before.fingerprint[:16]}… is not the one that is pinned")
            rest = {other: shown for other, shown in held.items() if other != name}
            write_atomic(self._path, canonical.encode(rest | ({name: fields} if fields else {})))

    def all(self) -> dict[str, Card]:
        """Return every pinned card by name."""
        return {name: Card.from_dict(fields) for name, fields in sorted(self._read().items())}

    def get(self, name: str) -> Card | None:
        """Return the card pinned for `name`, if any."""
        fields = self._read().get(name)
        return None if fields is None else Card.from_dict(fields)

    def _read(self) -> dict[str, dict[str, str]]:
        """Cards as they were written; one is verified when it is used."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        return dict(canonical.decode(data))


def _sealing_text(name: str, x25519: str) -> bytes:
    return _SEALING_PREFIX + canonical.encode({"name": name, "x25519": x25519})
