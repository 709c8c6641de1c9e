"""Identities: tampered cards, loose permissions, races, swapped cards."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fl_core.errors import BadMessage, BadSignature, UsageError, WrongKey
from fl_core.trust.identity import Card, CardBook, Identity, check_name

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def card(parties):
    return parties["bank_a"].card


def test_sealing_key_of_another_party_is_refused(card, parties):
    with pytest.raises(BadSignature, match="bank_a"):
        dataclasses.replace(card, x25519=parties["bank_b"].card.x25519)


def test_certificate_does_not_carry_over_to_another_name(card):
    with pytest.raises(BadSignature):
        dataclasses.replace(card, name="bank_b")


@pytest.mark.parametrize("field", ["ed25519", "x25519", "seal_sig"])
def test_every_changed_hex_digit_of_a_card_is_refused(card, field):
    text = getattr(card, field)
    for place in range(0, len(text), 5):
        digit = "0" if text[place] != "0" else "1"
        with pytest.raises((BadSignature, BadMessage)):
            dataclasses.replace(card, **{field: text[:place] + digit + text[place + 1 :]})


@pytest.mark.parametrize(
    "change",
    [
        {"ed25519": "AB" * 32}, {"ed25519": "ab" * 31}, {"x25519": 7}, {"seal_sig": None}, {"name": ""},
        {"name": "../x"}, {"name": "Bank"}, {"extra": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_cards_are_refused(card, change):
    with pytest.raises(BadMessage):
        Card.from_dict({**card.to_dict(), **change})
    with pytest.raises(BadMessage):
        Card.from_dict([card.to_dict()])


def test_card_survives_its_dictionary_and_verifies_what_its_identity_signs(parties):
    identity = parties["bank_a"]
    card = Card.from_dict(identity.card.to_dict())
    assert card == identity.card and card.fingerprint == identity.card.fingerprint
    card.verify(b"text", identity.sign(b"text"))
    with pytest.raises(BadSignature):
        card.verify(b"other", identity.sign(b"text"))
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(card.ed25519)).verify(identity.sign(b"x"), b"x")
    mine = X25519PrivateKey.generate()
    shared = identity.sealing_key.exchange(mine.public_key())
    assert shared == mine.exchange(card.sealing_public_key)


@pytest.mark.parametrize("name", ["a", "0", "bank_a.eu-1", "a" * 64])
def test_proper_names_pass(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a b", "a\n", "a" * 65, "é", "a/b", 7, None])
def test_names_that_are_no_file_or_note_names_are_refused(name):
    with pytest.raises(BadMessage):
        check_name(name)


def test_private_key_is_for_its_owner_only_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        identity = Identity.load_or_create(tmp_path / "home" / "bank", "bank")
    finally:
        os.umask(old)
    key = tmp_path / "home" / "bank" / "identity.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert Identity.load_or_create(key.parent, "bank").card == identity.card
    assert [path.name for path in key.parent.iterdir()] == ["identity.key"]


def test_key_that_others_may_read_is_refused(tmp_path):
    Identity.load_or_create(tmp_path, "bank")
    (tmp_path / "identity.key").chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        Identity.load_or_create(tmp_path, "bank")


def test_damaged_or_foreign_key_file_is_refused(tmp_path):
    Identity.load_or_create(tmp_path, "bank")
    with pytest.raises(UsageError, match="'bank', not of 'other'"):
        Identity.load_or_create(tmp_path, "other")
    (tmp_path / "identity.key").write_bytes(b"{}")
    with pytest.raises(UsageError, match="not an identity file"):
        Identity.load_or_create(tmp_path, "bank")


def _create(directory, results):
    results.put(Identity.load_or_create(directory, "bank").card.fingerprint)


def test_racing_first_uses_agree_on_one_key(tmp_path):
    results = FORK.Queue()
    children = [FORK.Process(target=_create, args=(tmp_path / "bank", results)) for _ in range(8)]
    for child in children:
        child.start()
    seen = {results.get(timeout=30) for _ in children}
    for child in children:
        child.join()
    assert seen == {Identity.load_or_create(tmp_path / "bank", "bank").card.fingerprint}


def test_secrets_never_show(parties):
    identity = parties["bank_a"]
    secret = identity.sealing_key.private_bytes_raw().hex()
    assert secret not in repr(identity) and secret not in str(vars(identity.card))
    assert repr(identity).startswith("Identity('bank_a', key ")
    with pytest.raises(TypeError):
        pickle.dumps(identity)


def test_swapped_card_is_refused_and_the_pinned_one_stays(tmp_path, card):
    book = CardBook(tmp_path / "cards.json")
    assert book.get("bank_a") is None
    assert book.pin(card) == card
    assert book.pin(card) == card
    with pytest.raises(WrongKey, match="bank_a"):
        book.pin(Identity.create("bank_a").card)
    assert CardBook(tmp_path / "cards.json").get("bank_a") == card
    assert stat.S_IMODE((tmp_path / "cards.json").stat().st_mode) == 0o600


def test_first_card_must_be_the_one_that_the_job_names(tmp_path, card):
    book = CardBook(tmp_path / "cards.json")
    with pytest.raises(WrongKey, match="bank_a"):
        book.pin(Identity.create("bank_a").card, fingerprint=card.fingerprint)
    assert book.get("bank_a") is None
    book.pin(card, fingerprint=card.fingerprint)
    assert book.get("bank_a") == card


def _pin(path, name):
    CardBook(path).pin(Identity.create(name).card)


def test_concurrent_pins_lose_no_card(tmp_path):
    names = [f"bank_{n}" for n in range(8)]
    children = [FORK.Process(target=_pin, args=(tmp_path / "cards.json", name)) for name in names]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert all(CardBook(tmp_path / "cards.json").get(name) for name in names)
