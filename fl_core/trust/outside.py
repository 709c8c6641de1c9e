"""Witnesses from outside a federation: their keys, the policy that names them, and what they are asked.

C2SP signed-note verifier keys and the tlog-witness protocol: a log sends its new checkpoint with a proof that it
continues the one that the witness signed last, and gets a co-signature (tlog-cosignature, Ed25519, v1) or is refused.
A witness sees sizes and roots of the log and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fl_core.errors import BadMessage, BadSignature, UsageError
from fl_core.trust.checkpoint import MAX_NOTE, verify_cosignature
from fl_core.trust.identity import Identity

POLICY = "fedseal witness policy v1"
LOG_KEY, WITNESS_KEY = 1, 4  # algorithms: Ed25519 over a note, and over a co-signature
MAX_PROOF = 63
MAX_REQUEST = MAX_NOTE + 64 * 48
MAX_POLICY = 1 << 20
_NAME = re.compile(r"[^\s+]{1,256}")
_OLD = re.compile(r"old (0|[1-9][0-9]{0,15})")


@dataclass(frozen=True)
class VerifierKey:
    """A key as `NAME+ID+BASE64` names it.

    Attributes
    ----------
    name : on signature lines; of a log its origin. algorithm : `LOG_KEY` or `WITNESS_KEY`. ed25519 : 64 hex digits.
    """

    name: str
    algorithm: int
    ed25519: str

    @classmethod
    def parse(cls, text: Any, *, algorithm: int) -> VerifierKey:
        """Read a verifier key; raises `BadMessage`, also for one of another algorithm."""
        what = "a log's key" if algorithm == LOG_KEY else "a witness's key"
        parts = text.split("+", 2) if isinstance(text, str) and len(text) < 1024 else []
        try:
            name, _, data = parts
            held = base64.b64decode(data, validate=True)
            key = cls(name, held[0], held[1:].hex())
            sound = len(held) == 33 and held[0] == algorithm and _NAME.fullmatch(name) and key.text == text
            Ed25519PublicKey.from_public_bytes(held[1:])
        except (ValueError, IndexError, binascii.Error):
            sound = False
        if not sound:
            raise BadMessage(f"{str(text)[:60]!r}: not {what}; allowed: NAME+ID+BASE64 of an Ed25519 key")
        return key

    @classmethod
    def of(cls, identity: Identity, *, name: str = "", algorithm: int) -> VerifierKey:
        """The key of an identity, under its own name or another."""
        return cls(name or identity.name, algorithm, identity.card.ed25519)

    @cached_property
    def text(self) -> str:
        """As others write it down."""
        data = bytes([self.algorithm]) + bytes.fromhex(self.ed25519)
        key_id = hashlib.sha256(self.name.encode() + b"\n" + data).digest()[:4]
        return f"{self.name}+{key_id.hex()}+{base64.b64encode(data).decode()}"

    def verify(self, data: bytes, sig: bytes) -> None:
        """Raise BadSignature unless `sig` is this key's over `data`."""
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.ed25519)).verify(sig, data)
        except InvalidSignature:
            raise BadSignature(f"{self.name}: not signed with its key {self.ed25519[:16]}…") from None


@dataclass(frozen=True)
class Outsider:
    """A witness, and where it is asked: its submission prefix, or empty."""

    key: VerifierKey
    url: str = ""


@dataclass(frozen=True)
class Policy:
    """Of which witnesses how many must co-sign: k of n."""

    quorum: int
    witnesses: tuple[Outsider, ...]

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a policy file; raises `UsageError`."""
        try:
            with path.open("rb") as file:
                return cls.from_dict(json.loads(file.read(MAX_POLICY)))
        except (OSError, ValueError, RecursionError):
            raise UsageError(f"{path}: no JSON file of a witness policy") from None
        except BadMessage as error:
            raise UsageError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, table: Any) -> Policy:
        """From untrusted JSON; raises `BadMessage`."""
        names = {"type", "quorum", "witnesses"}
        if not isinstance(table, dict) or set(table) != names or table["type"] != POLICY:
            raise BadMessage(f"not a witness policy; allowed: type {POLICY!r}, quorum, witnesses")
        found = []
        for entry in table["witnesses"] if isinstance(table["witnesses"], list) else [None]:
            if not isinstance(entry, dict) or not {"key"} <= set(entry) <= {"key", "url"}:
                raise BadMessage("a witness is a table of key and url")
            url = entry.get("url", "")
            if not isinstance(url, str) or not re.fullmatch(r"(https?://[^\s?#]{1,1000})?", url):
                raise BadMessage(f"witness url {str(url)[:60]!r}; allowed: https://HOST/PREFIX")
            found.append(Outsider(VerifierKey.parse(entry["key"], algorithm=WITNESS_KEY), url.rstrip("/")))
        if len({o.key.ed25519 for o in found}) < len(found) or len({o.key.name for o in found}) < len(found):
            raise BadMessage("a witness is named twice")
        if type(table["quorum"]) is not int or not 1 <= table["quorum"] <= len(found):
            raise BadMessage(f"quorum {str(table['quorum'])[:20]}; allowed: 1 to {len(found)}")
        return cls(table["quorum"], tuple(found))

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
        witnesses = [{"key": o.key.text} | ({"url": o.url} if o.url else {}) for o in self.witnesses]
        return {"type": POLICY, "quorum": self.quorum, "witnesses": witnesses}


def write_request(old: int, proof: Sequence[bytes], note: str) -> bytes:
    """The body of `add-checkpoint`."""
    lines = [f"old {old}", *(base64.b64encode(part).decode() for part in proof), "", note]
    return "\n".join(lines).encode()


def read_request(body: bytes) -> tuple[int, list[bytes], str]:
    """Old size, consistency proof and note of an `add-checkpoint`; raises `BadMessage`."""
    try:
        head, separator, note = body.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise BadMessage("not UTF-8") from None
    first, *lines = head.split("\n")
    found = _OLD.fullmatch(first)
    if found is None or not separator or len(lines) > MAX_PROOF:
        raise BadMessage("expected an old size, at most 63 lines of proof, an empty line and a checkpoint")
    try:
        proof = [base64.b64decode(line, validate=True) for line in lines]
    except (binascii.Error, ValueError):
        raise BadMessage("a line of the proof is not base64") from None
    if any(len(part) != 32 for part in proof):
        raise BadMessage("a line of the proof is not a hash")
    return int(found[1]), proof, note


def valid_line(answer: str, note: str, key: VerifierKey) -> str:
    """The co-signature of `key` for a note among a witness's lines; lines of other keys are passed over.

    Raises `BadSignature` where there is none.
    """
    for line in answer.split("\n")[:100]:
        try:
            verify_cosignature(note, line, key)
        except (BadMessage, BadSignature):
            continue
        return line
    raise BadSignature(f"{key.name}: no co-signature of this checkpoint under its key")
