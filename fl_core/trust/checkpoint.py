"""Checkpoints: a log's signed head, and the co-signatures of those who saw it.

C2SP signed-note, tlog-checkpoint and tlog-cosignature (Ed25519, v1). A note is text, an empty line, and
signature lines `— NAME base64(key id ‖ signature)`, key id = SHA-256(NAME ‖ 0x0A ‖ algorithm ‖ public
key)[:4]. The log signs under its origin as name (algorithm 0x01, over the text); a party co-signs under its
party name (0x04, over `cosignature/v1`, the time and the text). As the note format demands, lines of unknown
keys are ignored, lines of known keys must verify, and malformed ones spoil the note. Extension lines, which
C2SP advises against, are refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fl_core.errors import BadMessage, BadSignature, UsageError
from fl_core.trust.canonical import MAX_INT
from fl_core.trust.identity import Identity

MAX_NOTE = 64 * 1024
_ED25519, _COSIGNATURE = b"\x01", b"\x04"
_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


class Key(Protocol):
    """Whose signatures are checked: a `Card`, or an outsider's key alone (`fl_core.trust.outside.VerifierKey`)."""

    @property
    def name(self) -> str:
        """As on signature lines; of a log's key any name for messages."""
        ...

    @property
    def ed25519(self) -> str:
        """The public key, 64 hex digits."""
        ...

    def verify(self, data: bytes, sig: bytes) -> None:
        """Raise BadSignature unless `sig` is over `data`."""
        ...


def log_id(card: Key) -> str:
    """Return the origin of the log that the coordinator of `card` keeps: `fedseal/` and 16 hex digits."""
    return "fedseal/" + hashlib.sha256(bytes.fromhex(card.ed25519)).hexdigest()[:16]


def quorum_size(parties: int, *, f: int = 1) -> int:
    """Return how many of `parties` must co-sign: the least integer > (parties + f)/2, at most all of them.

    Two such quorums share an honest party while at most `f` lie, so a fork cannot gather two (with fewer than
    f + 2 parties it takes all of them, and that is the most there is).
    """
    if parties < 1 or f < 0:
        raise UsageError(f"a quorum of {parties} parties with {f} liars; allowed: parties ≥ 1, liars ≥ 0")
    return min((parties + f) // 2 + 1, parties)


@dataclass(frozen=True)
class Checkpoint:
    """The head of a log: its origin, its number of entries, and the tree's root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def body(self) -> str:
        """Return the note text that is signed."""
        return f"{self.origin}\n{self.size}\n{_b64(self.root)}\n"


@dataclass(frozen=True)
class NoteSignature:
    """One signature line: the key's name, its id (4 bytes), and what follows the id."""

    name: str
    key_id: bytes
    blob: bytes


@dataclass(frozen=True)
class Note:
    """A well-formed signed note; nothing is verified yet.  `text` ends in a newline."""

    text: str
    signatures: tuple[NoteSignature, ...]


def parse_note(note: str) -> Note:
    """Take a signed note apart; raises BadMessage if it is malformed."""
    if not isinstance(note, str) or len(note) > MAX_NOTE:
        raise BadMessage(f"note: not text of at most {MAX_NOTE} characters")
    if _CONTROL.search(note):
        raise BadMessage("note: holds control characters")
    text, separator, lines = note.rpartition("\n\n")
    if not separator or not text or not lines.endswith("\n"):
        raise BadMessage("note: expected text, an empty line, and signature lines that end in a newline")
    return Note(text + "\n", tuple(_parse_line(line) for line in lines[:-1].split("\n")))


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a checkpoint's note text; raises BadMessage unless it is exactly what `Checkpoint.body` writes."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or not _SIZE.fullmatch(lines[1]):
        raise BadMessage("checkpoint: expected the lines origin, size and root")
    checkpoint = Checkpoint(lines[0], int(lines[1]), _unb64(lines[2]))
    if checkpoint.size > MAX_INT or len(checkpoint.root) != 32:
        raise BadMessage("checkpoint: the size is beyond 2^53-1 or the root has not 32 bytes")
    return checkpoint


def sign_checkpoint(identity: Identity, checkpoint: Checkpoint) -> str:
    """Return the note that signs `checkpoint` of the log of `identity`; UsageError for another log's."""
    if checkpoint.origin != log_id(identity.card):
        raise UsageError(f"{identity.name} keeps {log_id(identity.card)}, not {checkpoint.origin}")
    text = checkpoint.body()
    blob = identity.sign(text.encode())
    return f"{text}\n{_line(checkpoint.origin, _ED25519, identity.card, blob)}\n"


def open_checkpoint(note: str, card: Key) -> Checkpoint:
    """Return the checkpoint in `note`, verified to be signed by the coordinator of `card`.

    Raises
    ------
    BadMessage
        If the note is malformed or of another log.
    BadSignature
        If the coordinator's signature is missing or wrong.
    """
    parsed = parse_note(note)
    checkpoint = parse_checkpoint(parsed.text)
    if checkpoint.origin != log_id(card):
        raise BadMessage(f"checkpoint of {checkpoint.origin:.80}, expected {log_id(card)}")
    own = _lines_of(parsed.signatures, checkpoint.origin, _ED25519, card)
    if not own:
        raise BadSignature(f"checkpoint of {checkpoint.origin}: not signed by {card.name}")
    for signature in own:
        card.verify(parsed.text.encode(), signature.blob)
    return checkpoint


def cosign(identity: Identity, note: str, *, timestamp: int | None = None) -> str:
    """Return the co-signature line of `identity` for the checkpoint in `note`, without a newline.

    It says that this is the largest consistent head that the signer has seen, so `Witness.observe` is what
    should call it.

    Parameters
    ----------
    identity
        The party that co-signs.
    note
        A checkpoint note.
    timestamp
        Seconds since 1970; now by default.
    """
    text = parse_note(note).text
    parse_checkpoint(text)
    seconds = int(time.time()) if timestamp is None else timestamp
    blob = struct.pack(">Q", seconds) + identity.sign(_cosigned_message(text, seconds))
    return _line(identity.name, _COSIGNATURE, identity.card, blob)


def verify_cosignature(note: str, line: str, card: Key) -> int:
    """Check the co-signature `line` of the party of `card` for `note`; return its time, seconds since 1970.

    Raises BadMessage if note or line is malformed, BadSignature if it is not this party's for this
    checkpoint.
    """
    text = parse_note(note).text
    parse_checkpoint(text)
    own = _lines_of([_parse_line(line)], card.name, _COSIGNATURE, card)
    if not own:
        raise BadSignature(f"{card.name}: the co-signature is under another name or key")
    if len(own[0].blob) != 72:
        raise BadMessage(f"{card.name}: a co-signature of {len(own[0].blob)} bytes; allowed: 72")
    (seconds,) = struct.unpack(">Q", own[0].blob[:8])
    card.verify(_cosigned_message(text, seconds), own[0].blob[8:])
    return int(seconds)


def _cosigned_message(text: str, seconds: int) -> bytes:
    if not 0 <= seconds < 2**63:
        raise BadMessage("co-signature: the time is beyond 2^63-1")
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _key_id(name: str, algorithm: bytes, card: Key) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + algorithm + bytes.fromhex(card.ed25519)).digest()[:4]


def _line(name: str, algorithm: bytes, card: Key, blob: bytes) -> str:
    return f"— {name} {_b64(_key_id(name, algorithm, card) + blob)}"


def _parse_line(line: str) -> NoteSignature:
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadMessage("note: a malformed signature line")
    blob = _unb64(match[2])
    if len(blob) < 5:
        raise BadMessage("note: a signature line without a signature")
    return NoteSignature(match[1], blob[:4], blob[4:])


def _lines_of(lines: Sequence[NoteSignature], name: str, algorithm: bytes, card: Key) -> list[NoteSignature]:
    key_id = _key_id(name, algorithm, card)
    return [line for line in lines if line.name == name and line.key_id == key_id]


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadMessage("note: not base64") from None
    if _b64(data) != text:  # another spelling of the same bytes
        raise BadMessage("note: not canonical base64")
    return data
