"""Statements and entries: what is signed, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from fl_core.errors import BadMessage, BadSignature
from fl_core.trust import canonical
from fl_core.trust.entry import MAX_BODY, NO_PREVIOUS, Entry, Statement, check_roster

LOG = "fedseal/0123456789abcdef"


@pytest.fixture
def statement(parties):
    return Statement.make(parties["bank_a"], log=LOG, kind="update", run="run-1", body={"round": 1})


def test_signature_is_over_exactly_the_documented_bytes(statement, parties):
    text = (
        b'fedseal statement v1\n{"body":{"round":1},"by":"bank_a","kind":"update","log":"fedseal/0123456789abcdef",'
        b'"run":"run-1","v":1}'
    )
    assert statement.signed_bytes() == text
    parties["bank_a"].card.verify(text, bytes.fromhex(statement.sig))
    statement.verify(parties["bank_a"].card)
    assert statement.digest == hashlib.sha256(canonical.encode(statement.to_dict())).hexdigest()


@pytest.mark.parametrize(
    "change", [{"body": {"round": 2}}, {"run": "run-2"}, {"kind": "metrics"}, {"log": "fedseal/" + "f" * 16}], ids=str
)
def test_statement_moved_to_another_place_does_not_verify(statement, parties, change):
    with pytest.raises(BadSignature):
        dataclasses.replace(statement, **change).verify(parties["bank_a"].card)


def test_statement_does_not_verify_under_another_partys_card(statement, parties):
    with pytest.raises(BadSignature):
        statement.verify(parties["bank_b"].card)
    with pytest.raises(BadSignature):
        dataclasses.replace(statement, by="bank_b").verify(parties["bank_b"].card)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"v": True}, {"kind": "gossip"}, {"kind": ["log"]}, {"run": "a b"}, {"run": "é"}, {"run": "x" * 129},
        {"run": 1}, {"body": []}, {"body": {"x": 1.5}}, {"body": {"x": "y" * MAX_BODY}}, {"by": "Bank"}, {"sig": "00"},
        {"sig": "A" * 128}, {"log": "other"}, {"log": None}, {"surplus": 1},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_malformed_statements_are_refused(statement, change):
    with pytest.raises(BadMessage):
        Statement.from_dict({**statement.to_dict(), **change})


def test_missing_fields_are_refused(statement):
    fields = statement.to_dict()
    for name in fields:
        with pytest.raises(BadMessage):
            Statement.from_dict({key: value for key, value in fields.items() if key != name})


def test_statement_and_entry_survive_their_bytes(statement):
    assert Statement.decode(statement.encode()) == statement
    entry = Entry(statement, seq=0, prev=NO_PREVIOUS, t=1)
    assert Entry.decode(entry.encode()) == entry
    assert set(entry.to_dict()) == {"v", "log", "seq", "prev", "t", "kind", "run", "body", "by", "sig"}
    assert entry.leaf_hash == hashlib.sha256(b"\x00" + entry.encode()).digest()
    with pytest.raises(BadMessage):
        Entry.decode(statement.encode())
    with pytest.raises(BadMessage):
        Statement.decode(entry.encode())


@pytest.mark.parametrize("change", [{"seq": -1}, {"seq": True}, {"t": "1"}, {"prev": "0" * 63}, {"prev": "G" * 64}])
def test_malformed_entries_are_refused(statement, change):
    fields = {**statement.to_dict(), "seq": 0, "prev": NO_PREVIOUS, "t": 1}
    with pytest.raises(BadMessage):
        Entry.from_dict({**fields, **change})


def test_card_statement_must_show_its_signers_own_card(parties):
    mine, other = parties["bank_a"], parties["bank_b"]

    def shown(body):
        return Statement.make(mine, log=LOG, kind="card", run="", body=body).shown_card()

    assert shown({"card": mine.card.to_dict()}) == mine.card
    for body in ({}, {"card": other.card.to_dict()}, {"card": mine.card.to_dict(), "x": 1}, {"card": []}):
        with pytest.raises(BadMessage):
            shown(body)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"parties": [], "min_parties": 1}, {"parties": ["a", "a"], "min_parties": 1}, {"parties": ["a"]},
        {"parties": ["a"], "min_parties": 2}, {"parties": ["a"], "min_parties": True}, {"parties": "ab"},
        {"parties": ["A"], "min_parties": 1},
    ],
    ids=str,
)  # fmt: skip
def test_roster_from_which_no_quorum_follows_is_refused(body):
    check_roster({"parties": ["a", "b"], "min_parties": 2, "more": True})
    with pytest.raises(BadMessage):
        check_roster(body)
