"""Node cards: what travels by mail can be altered on its way, cut, and made up."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fl_core.errors import BadMessage, BadSignature, UsageError
from fl_core.trust.node_card import NodeCard

HEAD = "fedseal-node-card:"


def flower_key() -> str:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


KEY, OTHER_KEY = flower_key(), flower_key()


@pytest.fixture
def card(parties):
    return NodeCard.make(parties["bank_a"], KEY)


def line(fields) -> str:
    """A line as `encode` makes it, of anything."""
    return HEAD + base64.urlsafe_b64encode(rfc8785.dumps(fields)).decode()


def test_a_card_survives_the_mail(card, parties):
    got = NodeCard.decode(card.encode())
    assert got == card
    assert (got.name, got.key, got.card) == ("bank_a", KEY, parties["bank_a"].card)
    assert card.encode().isprintable() and " " not in card.encode(), "one word of one line"


def test_what_two_people_compare_covers_identity_and_key(card, parties):
    assert card.fingerprint == hashlib.sha256(rfc8785.dumps(card.to_dict())).hexdigest()
    others = [NodeCard.make(parties["bank_a"], OTHER_KEY), NodeCard.make(parties["bank_b"], KEY)]
    assert len({card.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_nobody_registers_a_node_of_their_own_under_somebody_elses_card(card, parties):
    mine = NodeCard.make(parties["bank_b"], OTHER_KEY)
    for fields in (
        {**card.to_dict(), "key": OTHER_KEY},
        {**card.to_dict(), "key": OTHER_KEY, "sig": mine.sig},
        {**mine.to_dict(), "card": card.card.to_dict()},
    ):
        with pytest.raises(BadSignature, match="bank_a"):
            NodeCard.from_dict(fields)
        with pytest.raises(UsageError, match="not signed with its key"):
            NodeCard.decode(line(fields))


@pytest.mark.parametrize("prefix", [b"", b"fedseal statement v1\n", b"fedseal sealing key v1\n"])
def test_a_signature_made_for_another_purpose_is_no_node_card(card, parties, prefix):
    text = rfc8785.dumps({"card": card.card.to_dict(), "key": OTHER_KEY})
    forged = parties["bank_a"].sign(prefix + text).hex()
    with pytest.raises(BadSignature):
        NodeCard.from_dict({**card.to_dict(), "key": OTHER_KEY, "sig": forged})


def test_a_character_that_changed_on_the_way_never_makes_another_card(card):
    text = card.encode()
    for at in range(0, len(text), 3):
        other = "A" if text[at] != "A" else "B"
        with pytest.raises(UsageError):
            NodeCard.decode(text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        {"card": None}, {"card": {}}, {"key": None}, {"key": 7}, {"key": ["x"]}, {"sig": None}, {"sig": ""},
        {"sig": "zz"}, {"sig": "é" * 128}, {"sig": "00" * 64}, {"sig": "00" * 63}, {"state": "enabled"},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_fields_are_refused(card, change):
    with pytest.raises((BadMessage, BadSignature)):
        NodeCard.from_dict({**card.to_dict(), **change})


@pytest.mark.parametrize("missing", ["card", "key", "sig"])
def test_a_missing_field_is_refused(card, missing):
    fields = card.to_dict()
    del fields[missing]
    with pytest.raises(BadMessage, match="exactly card, key, sig"):
        NodeCard.from_dict(fields)
    with pytest.raises(BadMessage):
        NodeCard.from_dict([card.to_dict()])


@pytest.mark.parametrize(
    "make",
    [
        lambda card: "",
        lambda card: HEAD,
        lambda card: card.encode().removeprefix(HEAD),
        lambda card: "fedseal-card:" + card.encode().removeprefix(HEAD),
        lambda card: card.encode()[:-1],
        lambda card: card.encode()[:200],
        lambda card: card.encode()[:100] + "\n" + card.encode()[100:],
        lambda card: card.encode() + " ",
        lambda card: HEAD + "é",
        lambda card: HEAD + base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        lambda card: HEAD + base64.urlsafe_b64encode(json.dumps(card.to_dict(), indent=1).encode()).decode(),
        lambda card: line({**card.to_dict(), "key": "x" * 5000}),
        lambda card: line([1, 2]),
        lambda card: HEAD + base64.urlsafe_b64encode(b"[" * 4000).decode(),
        lambda card: HEAD + "\udc80",  # a byte of the command line that is no UTF-8
    ],
    ids=["nothing", "head", "no head", "another head", "cut", "half", "broken line", "blank", "umlaut", "no text",
         "not canonical", "too long", "a list", "deep", "stray byte"],
)  # fmt: skip
def test_what_is_no_card_is_refused_in_one_line(card, make):
    with pytest.raises(UsageError, match="allowed: the line that fedseal node init printed") as refused:
        NodeCard.decode(make(card))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("spell", [str.upper, lambda sig: sig[:64] + " " + sig[64:]], ids=["upper", "blank"])
def test_a_card_has_one_spelling_and_so_one_fingerprint(card, spell):
    with pytest.raises(BadMessage):
        NodeCard.from_dict({**card.to_dict(), "sig": spell(card.sig)})
