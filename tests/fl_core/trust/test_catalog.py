"""The catalog: only owners change it, nothing old comes back, and cards say no more than they may."""

from __future__ import annotations

import dataclasses
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import BadMessage, BadSignature, UsageError
from fl_core.trust import canonical
from fl_core.trust.catalog import (
    UNLIMITED,
    Catalog,
    DatasetCard,
    from_micro,
    round_rows,
    schema_digest,
    to_micro,
    withdraw,
)
from fl_core.trust.entry import Statement
from tests.fl_core.trust.consent import COLUMNS, LOG, dataset_card


@pytest.fixture
def owner(parties):
    return parties["bank_a"]


@pytest.fixture
def card():
    return dataset_card("bank_a")


def test_card_survives_the_ledger(card):
    assert DatasetCard.from_dict(canonical.decode(canonical.encode(card.to_dict()))) == card
    bare = dataclasses.replace(card, columns=(), epsilon=UNLIMITED, delta="0")
    assert DatasetCard.from_dict(bare.to_dict()) == bare


@pytest.mark.parametrize(
    "change",
    [
        {"surplus": 1}, {"owner": "Bank"}, {"name": "a/b"}, {"name": "../x"}, {"name": 1}, {"schema": "00"},
        {"columns": "age"}, {"columns": [["age"]]}, {"columns": [["income", "float64"], ["age", "int64"]]},
        {"columns": [["age", "int64"]]}, {"columns": [["age", 1], ["income", "float64"]]}, {"columns": [1]},
        {"rows": 1234}, {"rows": -1}, {"rows": True}, {"rows": "1200"}, {"rows": 1200.0},
        {"purposes": []}, {"purposes": "credit"}, {"purposes": ["a", "a"]}, {"purposes": ["a\nb"]}, {"purposes": [" a"]},
        {"purposes": ["x" * 201]}, {"purposes": ["\u202egnirocs"]}, {"purposes": [""]}, {"purposes": ["a"] * 33},
        {"kinds": []}, {"kinds": ["PSI"]}, {"kinds": [{}]}, {"epsilon": -1}, {"epsilon": 2**53}, {"epsilon": "5"},
        {"delta": "1e-5"}, {"delta": "0.10"}, {"delta": "1"}, {"delta": "1.5"}, {"delta": ".1"}, {"delta": 0},
        {"min_cohort": 0}, {"version": ""}, {"version": "AB" * 32}, {"published": -1}, {"published": None},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_cards_are_refused(card, change):
    with pytest.raises(BadMessage) as caught:
        DatasetCard.from_dict({**card.to_dict(), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [field.name for field in dataclasses.fields(DatasetCard)])
def test_card_without_a_field_is_refused(card, missing):
    table = card.to_dict()
    del table[missing]
    with pytest.raises(BadMessage, match="expected exactly"):
        DatasetCard.from_dict(table)


@given(st.integers(0, 10**15))
def test_rounded_rows_are_two_digits_near_the_truth_and_stay(rows):
    rounded = round_rows(rows)
    assert len(str(rounded).rstrip("0")) <= 2 and round_rows(rounded) == rounded
    assert abs(rounded - rows) * 20 <= rows


def test_rows_by_hand():
    cases = {0: 0, 7: 7, 99: 99, 104: 100, 105: 110, 994: 990, 995: 1000, 1234: 1200, 1250: 1300, 99_999: 100_000}
    assert {rows: round_rows(rows) for rows in cases} == cases


def test_schema_digest_is_over_the_sorted_pairs(card):
    assert schema_digest(reversed(COLUMNS)) == card.schema == canonical.digest([list(pair) for pair in COLUMNS])
    assert schema_digest([("age", "float64"), COLUMNS[1]]) != card.schema
    for bad in ([], [("a", "int"), ("a", "text")], [("a", "b", "c")], ["ab"], [("a", "b\n")], [("x", "int")] * 5000):
        with pytest.raises(BadMessage):
            schema_digest(bad)


def test_epsilon_in_millionths_is_never_rounded_in_the_jobs_favour():
    assert to_micro(1.0000001, up=True) == 1_000_001 and to_micro(1.0000009, up=False) == 1_000_000
    assert to_micro(0.1, up=True) == to_micro(0.1, up=False) == to_micro("0.1", up=True) == 100_000
    said = {0: "0", 1: "0.000001", 1_500_000: "1.5", 30_000_000: "30", UNLIMITED: "no limit"}
    assert {micro: from_micro(micro) for micro in said} == said
    for bad in (-0.1, float("nan"), float("inf"), "many", sys.float_info.max, 1e10):
        with pytest.raises(UsageError, match="allowed: a number from 0"):
            to_micro(bad, up=True)


# ---- the fold


def test_only_the_owner_publishes_and_withdraws(card, parties, owner):
    catalog = Catalog()
    stranger = parties["bank_b"]
    with pytest.raises(BadMessage, match="published by bank_b; allowed: its owner"):
        catalog.add(card.sign(stranger, log=LOG), stranger.card)
    with pytest.raises(BadSignature):
        catalog.add(dataclasses.replace(card.sign(stranger, log=LOG), by="bank_a"), owner.card)
    with pytest.raises(BadSignature):
        catalog.add(card.sign(owner, log=LOG), stranger.card)
    catalog.add(card.sign(owner, log=LOG), owner.card)
    with pytest.raises(BadMessage, match="bank_b/credit: withdrawn, but was never published"):
        catalog.add(withdraw(stranger, "credit", time=500, log=LOG), stranger.card)
    assert catalog.get("bank_a", "credit").card == card and not catalog.get("bank_a", "credit").withdrawn


def test_altered_statement_is_refused(card, owner):
    statement = card.sign(owner, log=LOG)
    richer = {**statement.body, "card": {**statement.body["card"], "epsilon": UNLIMITED}}
    with pytest.raises(BadSignature):
        Catalog().add(dataclasses.replace(statement, body=richer), owner.card)


def test_latest_version_stands_and_all_versions_are_known(card, owner):
    catalog = Catalog()
    second = dataclasses.replace(card, version="ef" * 32, published=200, epsilon=1)
    again = dataclasses.replace(card, published=300)
    for version in (card, second, again):
        catalog.add(version.sign(owner, log=LOG), owner.card)
    listing = catalog.get("bank_a", "credit")
    assert listing.card == again and listing.versions == (card.version, second.version)


def test_replayed_publication_does_not_undo_a_withdrawal_or_a_newer_version(card, owner):
    catalog = Catalog()
    first, newer = card.sign(owner, log=LOG), dataclasses.replace(card, published=200, epsilon=1).sign(owner, log=LOG)
    gone = withdraw(owner, "credit", time=300, log=LOG)
    for statement in (first, newer):
        catalog.add(statement, owner.card)
    with pytest.raises(BadMessage, match=r"time 100, replayed or out of order; allowed: after 200"):
        catalog.add(first, owner.card)
    catalog.add(gone, owner.card)
    for old in (first, newer, gone):
        with pytest.raises(BadMessage, match="replayed"):
            catalog.add(old, owner.card)
    assert catalog.get("bank_a", "credit").withdrawn
    assert catalog.listings() == () and len(catalog.listings(withdrawn=True)) == 1
    catalog.add(dataclasses.replace(card, published=301).sign(owner, log=LOG), owner.card)
    assert [held.card.name for held in catalog.listings()] == ["credit"]


def test_budget_stays_at_the_delta_of_the_name(card, owner):
    catalog = Catalog()
    catalog.add(card.sign(owner, log=LOG), owner.card)
    with pytest.raises(BadMessage, match=r"delta 0\.1; allowed: 0\.00001, as before"):
        catalog.add(dataclasses.replace(card, published=200, delta="0.1").sign(owner, log=LOG), owner.card)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"act": "publish"}, {"act": "erase"}, {"act": "withdraw", "name": "credit"},
        {"act": "withdraw", "name": "credit", "time": "1"}, {"act": "withdraw", "name": ["credit"], "time": 1},
        {"act": "withdraw", "name": "credit", "time": 900, "why": "x"}, {"act": "publish", "card": []},
        {"act": ["publish"]},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_statements_are_refused_and_change_nothing(card, owner, body):
    catalog = Catalog()
    catalog.add(card.sign(owner, log=LOG), owner.card)
    with pytest.raises(BadMessage):
        catalog.add(Statement.make(owner, log=LOG, kind="dataset", run="", body=body), owner.card)
    assert catalog.listings()[0].card == card


def test_bad_statements_on_the_ledger_hide_no_good_one(card, parties, owner):
    stranger = parties["bank_b"]
    own = dataclasses.replace(card, owner="bank_b", published=5)
    statements = [
        Statement.make(owner, log=LOG, kind="update", run="r", body={}),
        card.sign(stranger, log=LOG),
        card.sign(owner, log=LOG),
        own.sign(stranger, log=LOG),
        card.sign(owner, log=LOG),
        own.sign(parties["bank_c"], log=LOG),
    ]
    cards = {name: identity.card for name, identity in parties.items() if name != "bank_c"}
    catalog, refused = Catalog.fold(statements, cards.get)
    assert [held.card.owner for held in catalog.listings()] == ["bank_a", "bank_b"]
    assert len(refused) == 3 and "published by bank_b" in refused[0] and "replayed" in refused[1]
    assert "shows no card" in refused[2]


def test_fold_against_a_slow_reference(card, parties):
    """A few hundred statements of two owners, replayed and misdirected, against a list that is searched each time."""
    chance = random.Random(11)
    owners = [parties["bank_a"], parties["bank_b"]]
    made, accepted = [], []
    for _ in range(400):
        owner, name = chance.choice(owners), chance.choice(["credit", "people"])
        time = chance.randrange(300)
        if chance.random() < 0.2 and made:
            made.append(chance.choice(made))
        elif chance.random() < 0.3:
            made.append(("withdraw", owner, owner.name, name, time, withdraw(owner, name, time=time, log=LOG)))
        else:
            claimed = chance.choice(owners).name
            version = dataclasses.replace(card, owner=claimed, name=name, published=time)
            made.append(("publish", owner, claimed, name, time, version.sign(owner, log=LOG)))
    for act, owner, claimed, name, time, _ in made:
        before = [t for a, o, n, t in accepted if (o, n) == (claimed, name)]
        if owner.name == claimed and (before or act == "publish") and all(t < time for t in before):
            accepted.append((act, claimed, name, time))
    catalog, refused = Catalog.fold([m[-1] for m in made], {o.name: o.card for o in owners}.get)
    assert len(refused) == len(made) - len(accepted) and len(accepted) > 10
    for owner in owners:
        for name in ("credit", "people"):
            last = [(a, t) for a, o, n, t in accepted if (o, n) == (owner.name, name)][-1]
            held = catalog.get(owner.name, name)
            assert (held.withdrawn, held.time) == (last[0] == "withdraw", last[1])
