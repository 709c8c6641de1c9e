"""Checkpoints and co-signatures, byte for byte after C2SP, and every malformed note refused."""

from __future__ import annotations

import base64
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_core.errors import BadMessage, BadSignature, UsageError
from fl_core.trust.checkpoint import (
    Checkpoint,
    cosign,
    log_id,
    open_checkpoint,
    parse_note,
    quorum_size,
    sign_checkpoint,
    verify_cosignature,
)
from fl_core.trust.identity import Identity

ROOT = bytes(range(32))


@pytest.fixture(scope="module")
def head(coordinator):
    return Checkpoint(log_id(coordinator.card), 12, ROOT)


@pytest.fixture(scope="module")
def note(coordinator, head):
    return sign_checkpoint(coordinator, head)


def b64(data):
    return base64.b64encode(data).decode()


def test_note_is_the_one_assembled_by_hand_from_c2sp(coordinator, head, note):
    key = bytes.fromhex(coordinator.card.ed25519)
    origin = "fedseal/" + hashlib.sha256(key).hexdigest()[:16]
    text = f"{origin}\n12\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + key).digest()[:4]
    signature = coordinator.sign(text.encode())
    assert note == f"{text}\n\N{EM DASH} {origin} {b64(key_id + signature)}\n"
    assert open_checkpoint(note, coordinator.card) == head
    assert parse_note(note).signatures[0].blob == signature


def test_cosignature_is_the_one_assembled_by_hand_from_c2sp(parties, note):
    party = parties["bank_a"]
    text = note.split("\n\n")[0] + "\n"
    key = bytes.fromhex(party.card.ed25519)
    key_id = hashlib.sha256(b"bank_a\n\x04" + key).digest()[:4]
    signature = party.sign(b"cosignature/v1\ntime 1679315147\n" + text.encode())
    line = f"\N{EM DASH} bank_a {b64(key_id + struct.pack('>Q', 1679315147) + signature)}"
    assert cosign(party, note, timestamp=1679315147) == line
    assert verify_cosignature(note, line, party.card) == 1679315147


def test_c2sp_example_note_parses():
    """The signed-note of the specification: an empty line within the text, a foreign key name."""
    parsed = parse_note(
        "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n"
        "— quasimodo.example/salvatore "
        "NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n"
    )
    assert parsed.text.endswith("\n\ned è subito sera.\n")
    assert (parsed.signatures[0].name, parsed.signatures[0].key_id.hex()) == ("quasimodo.example/salvatore", "367ba04b")
    assert len(parsed.signatures[0].blob) == 64


def test_lines_of_unknown_keys_are_ignored_before_and_after(coordinator, parties, head, note):
    text, own = note.split("\n\n")
    foreign = f"— elsewhere.example/x {b64(b'1234' + bytes(40))}\n"
    same_name = f"— {head.origin} {b64(b'1234' + bytes(64))}\n"
    same_id = f"— elsewhere {b64(base64.b64decode(own.split()[2])[:4] + bytes(64))}\n"
    cosigned = cosign(parties["bank_a"], note) + "\n"
    whole = f"{text}\n\n{foreign}{same_name}{same_id}{own}{cosigned}"
    assert open_checkpoint(whole, coordinator.card) == head


def test_a_bad_line_of_the_known_key_spoils_the_note(coordinator, head, note):
    text, own = note.split("\n\n")
    key_id = base64.b64decode(own.split()[2])[:4]
    bad = f"— {head.origin} {b64(key_id + bytes(64))}\n"
    with pytest.raises(BadSignature):
        open_checkpoint(f"{text}\n\n{own}{bad}", coordinator.card)


def test_note_without_the_coordinators_line_is_refused(coordinator, parties, note):
    text = note.split("\n\n")[0]
    with pytest.raises(BadSignature, match="not signed by coordinator"):
        open_checkpoint(f"{text}\n\n{cosign(parties['bank_a'], note)}\n", coordinator.card)


def test_every_changed_character_of_a_note_is_refused(coordinator, note):
    for place, character in enumerate(note):
        changed = note[:place] + chr(ord(character) ^ 1) + note[place + 1 :]
        with pytest.raises((BadMessage, BadSignature)):
            open_checkpoint(changed, coordinator.card)


def test_checkpoint_of_another_log_is_refused(coordinator, note):
    other = Identity.create("coordinator")
    with pytest.raises(BadMessage, match="expected fedseal/"):
        open_checkpoint(note, other.card)
    with pytest.raises(UsageError):
        sign_checkpoint(other, open_checkpoint(note, coordinator.card))


def forge(coordinator, text):
    """Sign any note text as the log, so that only the text can be at fault."""
    origin = log_id(coordinator.card)
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + bytes.fromhex(coordinator.card.ed25519)).digest()[:4]
    return f"{text}\n— {origin} {b64(key_id + coordinator.sign(text.encode()))}\n"


@pytest.mark.parametrize(
    "rest",
    [
        "012\n{root}\n", "-1\n{root}\n", "+1\n{root}\n", "1 \n{root}\n", "\n{root}\n", "٣\n{root}\n",
        "9007199254740992\n{root}\n", "99999999999999999\n{root}\n", "1\n{root}\nextension\n", "1\n{root}\n\n", "1\n",
        "1\nAAAA\n", "1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=\n", "1\n{root}=\n", "1\n{root} \n",
        "1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n", "1\n_{root}\n",
    ],
)  # fmt: skip
def test_signed_but_malformed_checkpoints_are_refused(coordinator, rest):
    origin = log_id(coordinator.card)
    assert open_checkpoint(forge(coordinator, f"{origin}\n1\n{b64(ROOT)}\n"), coordinator.card).size == 1
    with pytest.raises(BadMessage):
        open_checkpoint(forge(coordinator, f"{origin}\n{rest.format(root=b64(ROOT))}"), coordinator.card)


def test_malformed_notes_are_refused(coordinator, note):
    text, line = note.rstrip("\n").split("\n\n")
    for bad in (
        "", "\n", note[:-1], note + "\n", note.replace("\n", "\r\n"), f"{text}\n{line}\n", f"{text}\n\n",
        f"\n\n{line}\n",
        note.replace("—", "-"), note.replace("— ", "—"), note.replace("— ", "—  "), f"{text}\n\n{line} x\n",
        f"{text}\n\n{line}\n— a+b AAAAAAAA\n", f"{text}\n\n{line}\n— a AAAA\n", f"{text}\n\n{line}\n— a AAAAAAB=\n",
        note.replace("\n\n", "\n\t\n\n"), note + line + " " * 70_000 + "\n",
    ):  # fmt: skip
        with pytest.raises(BadMessage):
            open_checkpoint(bad, coordinator.card)


def test_cosignature_of_another_party_or_checkpoint_is_refused(coordinator, parties, head, note):
    line = cosign(parties["bank_a"], note)
    with pytest.raises(BadSignature):
        verify_cosignature(note, line, parties["bank_b"].card)
    with pytest.raises(BadSignature):
        verify_cosignature(note, line.replace("bank_a", "bank_b"), parties["bank_a"].card)
    other = sign_checkpoint(coordinator, Checkpoint(head.origin, 13, ROOT))
    with pytest.raises(BadSignature):
        verify_cosignature(other, line, parties["bank_a"].card)


def test_every_changed_character_of_a_cosignature_is_refused(parties, note):
    line = cosign(parties["bank_a"], note)
    for place, character in enumerate(line):
        with pytest.raises((BadMessage, BadSignature)):
            verify_cosignature(note, line[:place] + chr(ord(character) ^ 1) + line[place + 1 :], parties["bank_a"].card)
    with pytest.raises(BadMessage):
        verify_cosignature(note, line + "\n", parties["bank_a"].card)


def test_plain_note_signature_is_no_cosignature(parties, note):
    """The algorithm byte in the key id keeps the two apart, also for one key and one name."""
    party = parties["bank_a"]
    key_id = hashlib.sha256(b"bank_a\n\x04" + bytes.fromhex(party.card.ed25519)).digest()[:4]
    plain = f"— bank_a {b64(key_id + party.sign((note.split(chr(10) * 2)[0] + chr(10)).encode()))}"
    with pytest.raises(BadMessage, match="64 bytes; allowed: 72"):
        verify_cosignature(note, plain, party.card)
    for seconds in (-1, 2**63):
        with pytest.raises((BadMessage, struct.error)):
            cosign(party, note, timestamp=seconds)


def test_key_names_match_the_card(coordinator):
    raw = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    assert raw.hex() != coordinator.card.ed25519
    assert (
        log_id(coordinator.card)
        == "fedseal/" + hashlib.sha256(bytes.fromhex(coordinator.card.ed25519)).hexdigest()[:16]
    )


@pytest.mark.parametrize(("n", "quorum"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 4), (7, 5), (10, 6), (100, 51)])
def test_quorum_by_hand(n, quorum):
    assert quorum_size(n) == quorum


def test_two_quorums_share_an_honest_party():
    for n in range(1, 40):
        for f in range(n // 2):
            q = quorum_size(n, f=f)
            assert q == min(q for q in range(n + 2) if 2 * q > n + f)
            assert 2 * q - n > f  # the least possible overlap
    for n, f in [(0, 1), (3, -1)]:
        with pytest.raises(UsageError):
            quorum_size(n, f=f)
