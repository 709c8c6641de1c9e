"""The formats a ledger is made of, read strictly: canonical JSON, cards, RFC 6962 hashes, C2SP notes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FIELDS = frozenset({"v", "log", "seq", "prev", "t", "kind", "run", "body", "by", "sig"})
MAX_LEAF = 260 * 1024
MAX_NOTE = 64 * 1024
MAX_DEPTH = 32
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")

_STATEMENT = b"fedseal statement v1\n"
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")
_SIGNATURE_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


class NotALedger(ValueError):
    """The file is no ledger of this version, or the kept checkpoint is no checkpoint."""


class Broken(Exception):
    """The evidence fails, at entry `seq` if one can be named."""

    def __init__(self, reason: str, seq: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.seq = reason, seq


def _refuse(_: str) -> None:
    raise ValueError


_dump = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
_load = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse).decode


def encode(value: Any) -> bytes:
    """Return canonical JSON (RFC 8785 for the values allowed here)."""
    return _dump(value).encode("utf-8")


def decode(data: Any, limit: int) -> dict[str, Any]:
    """Read a canonical JSON object: values that encode to exactly `data` again, no floats, no null."""
    if not isinstance(data, bytes) or len(data) > limit:
        raise Broken(f"not a record of at most {limit} bytes")
    try:
        value = _load(data.decode("utf-8"))
        _check_value(value, MAX_DEPTH)
        again = encode(value)
    except (ValueError, RecursionError):
        raise Broken("not canonical JSON") from None
    if again != data or not isinstance(value, dict):
        raise Broken("not canonical JSON")
    return value


def _check_value(value: Any, depth: int) -> None:
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise Broken(f"not canonical JSON: nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            keys = "".join(value)
            if not (keys.isascii() and keys.isprintable()):
                raise Broken("not canonical JSON: a key beyond printable ASCII")
            value = value.values()
        for item in value:
            if type(item) is not str:  # most are, and a call costs more than the test
                _check_value(item, depth - 1)
    elif value is None or (isinstance(value, int) and abs(value) >= 2**53):
        raise Broken("not canonical JSON: null, or an integer beyond 2^53-1")


def unhex(text: Any, length: int) -> bytes:
    """Read exactly `length` bytes of lower-case hex."""
    if isinstance(text, str) and len(text) == 2 * length:
        try:
            data = bytes.fromhex(text)
        except ValueError:
            data = b""
        if data.hex() == text:
            return data
    raise Broken(f"not {length} bytes of hex")


@dataclass(frozen=True)
class Card:
    """A party's name and signing key; `fields` is the card as shown."""

    name: str
    raw: bytes
    key: Ed25519PublicKey
    fields: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the card, hex."""
        return hashlib.sha256(encode(self.fields)).hexdigest()


def read_card(fields: Any) -> Card:
    """Read a card and check that its signing key certifies its sealing key."""
    if not isinstance(fields, dict) or set(fields) != {"name", "ed25519", "x25519", "seal_sig"}:
        raise Broken("not a card")
    if not isinstance(fields["name"], str) or not NAME.fullmatch(fields["name"]):
        raise Broken("a card without a proper name")
    raw = unhex(fields["ed25519"], 32)
    unhex(fields["x25519"], 32)
    card = Card(fields["name"], raw, Ed25519PublicKey.from_public_bytes(raw), fields)
    sealed = b"fedseal sealing key v1\n" + encode({"name": card.name, "x25519": fields["x25519"]})
    check_signature(card, unhex(fields["seal_sig"], 64), sealed, "the card's sealing key is not certified")
    return card


def read_rotation(entry: dict[str, Any], old: Card) -> Card:
    """Return the card that a `rotate` entry brings in the place of `old`, signed for by the new key as well."""
    body = entry["body"]
    if entry["run"] or set(body) != {"card", "old", "sig"} or body["old"] != old.fingerprint:
        raise Broken(f"{old.name}: not a rotation of its card")
    card = read_card(body["card"])
    if card.name != old.name:
        raise Broken(f"{old.name}: a rotation to a card of another name")
    fields = {"log": entry["log"], "name": old.name, "old": old.fingerprint, "new": card.fingerprint}
    signed = b"fedseal rotation v1\n" + encode(fields)
    check_signature(card, unhex(body["sig"], 64), signed, "the new key did not sign for the rotation")
    return card


def check_signature(card: Card, signature: bytes, data: bytes, reason: str) -> None:
    """Raise Broken with `reason` unless the party of `card` signed `data`."""
    try:
        card.key.verify(signature, data)
    except InvalidSignature:
        raise Broken(f"{card.name}: {reason}") from None


def log_id(card: Card) -> str:
    """Return the origin of the log that this coordinator keeps."""
    return "fedseal/" + hashlib.sha256(card.raw).hexdigest()[:16]


def signed_bytes(entry: dict[str, Any]) -> bytes:
    """Return what the party signed of an entry: all but seq, prev and t."""
    signed = {name: entry[name] for name in ("v", "log", "kind", "run", "body", "by")}
    return _STATEMENT + encode(signed)


def signed_of(data: bytes) -> bytes:
    """Return the same from the canonical bytes of an entry with exactly `FIELDS`, without encoding it again.

    Keys stand in order, `body` first; what follows it holds no other object, and within a string a quote has a
    backslash before it: so the last of each of these marks is the key itself.
    """
    prev, run, seq, version = (data.rindex(mark) for mark in (b',"prev":', b',"run":', b',"seq":', b',"v":'))
    return b"".join((_STATEMENT, data[:prev], data[run:seq], data[version:]))


def leaf_hash(data: bytes) -> bytes:
    """RFC 6962 §2.1."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 §2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def push(peaks: list[bytes], size: int, leaf: bytes) -> None:
    """Append a leaf hash to the complete subtrees of a tree of `size` leaves."""
    while size & 1:
        leaf, size = node_hash(peaks.pop(), leaf), size >> 1
    peaks.append(leaf)


def tree_root(peaks: list[bytes]) -> bytes:
    """Return the root over the complete subtrees, largest first, of a tree with leaves."""
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


@dataclass(frozen=True)
class Note:
    """A checkpoint note: its signed text, what that says, its signature lines (name, key id, rest)."""

    text: str
    origin: str
    size: int
    root: bytes
    lines: tuple[tuple[str, bytes, bytes], ...]


def read_note(note: Any) -> Note:
    """Take a checkpoint note apart, without verifying it."""
    if not isinstance(note, str) or len(note) > MAX_NOTE or _CONTROL.search(note):
        raise Broken("not a checkpoint note")
    text, separator, lines = note.rpartition("\n\n")
    parts = text.split("\n")
    if not separator or lines[-1:] != "\n":
        raise Broken("a checkpoint note without signature lines")
    if len(parts) != 3 or not parts[0] or not _SIZE.fullmatch(parts[1]):
        raise Broken("a checkpoint that is not origin, size and root")
    root = _unbase64(parts[2])
    if len(root) != 32:
        raise Broken("a checkpoint without a root of 32 bytes")
    signatures = tuple(_signature_line(line) for line in lines[:-1].split("\n"))
    return Note(text + "\n", parts[0], int(parts[1]), root, signatures)


def _signature_line(line: Any) -> tuple[str, bytes, bytes]:
    match = _SIGNATURE_LINE.fullmatch(line) if isinstance(line, str) else None
    blob = _unbase64(match[2]) if match else b""
    if match is None or len(blob) < 5:
        raise Broken("a malformed signature line")
    return match[1], blob[:4], blob[4:]


def _unbase64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise Broken("not base64") from None
    if base64.b64encode(data).decode() != text:
        raise Broken("not canonical base64")
    return data


def _key_id(name: str, algorithm: bytes, card: Card) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + algorithm + card.raw).digest()[:4]


def check_log_signature(note: Note, card: Card) -> None:
    """Check the coordinator's signature on a note of its log; lines of unknown keys are ignored (C2SP)."""
    if note.origin != log_id(card):
        raise Broken("a checkpoint of another log")
    key_id = _key_id(note.origin, b"\x01", card)
    own = [blob for name, line_id, blob in note.lines if (name, line_id) == (note.origin, key_id)]
    if not own:
        raise Broken("a checkpoint that the coordinator did not sign")
    for signature in own:
        check_signature(card, signature, note.text.encode(), "a checkpoint is not signed by it")


def cosigned_at(line: Any) -> int:
    """Return the time that a co-signature line names, seconds since 1970; its signature covers it."""
    return int.from_bytes(_signature_line(line)[2][:8], "big")


def cosignature(note: Note, line: Any, card: Card) -> tuple[bytes, bytes]:
    """Return (signature, signed message) of a party's co-signature line."""
    name, key_id, blob = _signature_line(line)
    if (name, key_id) != (card.name, _key_id(card.name, b"\x04", card)) or len(blob) != 72:
        raise Broken(f"{card.name}: a co-signature under another name or key")
    (seconds,) = struct.unpack(">Q", blob[:8])
    if seconds >= 2**63:
        raise Broken(f"{card.name}: a co-signature without a proper time")
    return blob[8:], f"cosignature/v1\ntime {seconds}\n{note.text}".encode()
