"""Grants that several sign in turn, by commands: nobody out of turn, nobody left out, no stranger, nothing unseen."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from clients.board import LocalBoard, introduce
from clients.consent.decision import Consent
from clients.consent.order import NotGranted
from clients.consent.terms import Wanted
from clients.statement_file import write_statements
from fl_core.errors import FedsealError
from fl_core.home import Home
from fl_core.trust.grant_statements import Approval, GrantRequest
from fl_core.trust.grants import Grant, Signer
from fl_core.trust.identity import Identity
from fl_core.trust.verify import verify_ledger
from server import orders
from tests.clients.owners import job_of
from tests.server.cli.shell import publish

RECEIVERS = ("--receivers", "bureau", "--receivers", "clinic")


def identity(shell, name, home=None):
    place = Home.open(home or shell.home)
    return Identity.load_or_create(place.party(name), name)


def board(shell):
    return LocalBoard(Home.open(shell.home))


def statement_of(shell, request):
    return next(one.statement for one in board(shell).read(["grant-request"]) if one.statement.digest == request)


def weigh(shell, run, *, home=None, by="engineer"):
    """Ask the bank's node, as a job that the engineer ordered does; returns the grant."""
    place, job = Home.open(home or shell.home), job_of()
    log, wanted = board(shell).log, Wanted.of(job, owner="bank", dataset="credit")
    blobs = orders.make(identity(shell, by), job, log=log)
    consent = Consent(place.party("bank"), identity(shell, "bank", place.path))
    leave = consent.weigh(wanted, view=job.public(), log=log, run=run, blobs=blobs, strict=True)
    consent.release(run)
    return leave.grant.id


def refuses(shell, topic, **options):
    with pytest.raises(NotGranted) as caught:
        weigh(shell, f"run-{time.monotonic_ns()}", **options)
    assert topic in caught.value.topics, caught.value


def ask(shell, *more):
    words = ("grant", "request", "bank/credit", "--kind", "horizontal", "--uses", 3)
    return str(shell.json(*words, "--until", "2099-12-31", *RECEIVERS, *more)["request"])


@pytest.fixture
def request_(shell):
    """A request for the bank's data; `dpo` and `legal` have keys in the same home, and have said nothing yet."""
    publish(shell)
    for name in ("dpo", "legal"):
        identity(shell, name)
    return ask(shell)


def begin(shell, request, *more, by="dpo"):
    return shell.json("grant", "approve", request[:10], *more, "--as", by)


# ---- the whole chain


def test_a_chain_of_three_by_commands(shell, request_):
    begun = begin(shell, request_, "--uses", 2, "--then", "legal", "--then", "bank")
    grant = begun["grant"]
    assert (begun["approvals"], begun["terms"]["uses"]) == (["dpo", "legal", "bank"], 2)
    refuses(shell, "none")  # the bank's node has not heard of it yet
    for signed, turn in ((["dpo"], "legal"), (["dpo", "legal"], "bank")):
        for who in ("dpo", "legal", "bank"):
            (held,) = shell.json("grant", "list", "--as", who)["granted"]
            assert (held["grant"], held["signed"], held["turn"]) == (grant, signed, turn)
            assert held["state"] == "not yet signed by all"
        refuses(shell, "approvals")
        (asked,) = shell.json("grant", "list")["asked"]
        assert (asked["state"], asked["turn"]) == ("not yet signed by all", turn)
        for wrong in {"dpo", "legal", "bank"} - {turn}:
            assert f"waits for {turn}" in shell.fails(2, "grant", "approve", grant[:10], "--as", wrong)
        shell.json("grant", "approve", grant[:10], "--as", turn)
    for who in ("dpo", "legal", "bank"):
        held = shell.json("grant", "list", "--as", who)
        assert held["waiting"] == []
        (one,) = held["granted"]
        assert (one["state"], one["signed"], one["turn"]) == ("active", ["dpo", "legal", "bank"], "")
        assert one["missing"] == []
    (asked,) = shell.json("grant", "list")["asked"]
    assert (asked["state"], asked["grant"]) == ("active", grant)
    assert weigh(shell, "run-1") == grant
    assert "waits for nobody" in shell.fails(2, "grant", "approve", grant[:10], "--as", "legal")
    assert verify_ledger(shell.home / "ledger.db").reason == "valid"


def test_the_owner_is_last_whether_it_is_named_or_not(shell, request_):
    assert begin(shell, request_, "--then", "legal")["approvals"] == ["dpo", "legal", "bank"]


def test_what_people_see_of_a_chain(shell, request_):
    text = shell("grant", "approve", request_, "--then", "legal", "--as", "dpo").out
    shown = [line.split() for line in text.splitlines()[1:]]
    assert shown == [[word, name, identity(shell, name).card.fingerprint] for word, name in
                     (("signed", "dpo"), ("then", "legal"), ("then", "bank"))]  # fmt: skip
    (grant,) = [held["grant"] for held in shell.json("grant", "list", "--as", "dpo")["granted"]]
    text = shell("grant", "list", "--as", "legal").out
    assert text.startswith("waiting for legal:\n")
    assert f"signed by dpo; next legal, then bank: fedseal grant approve {grant[:16]}" in text
    text = shell("grant", "list", "--as", "dpo").out
    assert text.startswith("waiting for others, with dpo among those who sign:\n")
    assert "signed by dpo; next legal, then bank\n" in text and "granted by" not in text
    text = shell("grant", "list", "--as", "bank").out
    assert request_[:16] in text.partition("waiting for others")[0]
    assert f"grant {grant[:16]}, signed by dpo; next legal, then bank" in shell("grant", "list").out


# ---- who may not


def test_who_may_not_begin_is_told_who_may(shell, request_):
    approve = ("grant", "approve", request_)
    assert f"fedseal grant approve {request_[:16]} --then bank --as dpo" in shell.fails(
        2, *approve, "--then", "dpo", "--as", "bank"
    )
    assert "for data of bank; allowed: --then bank" in shell.fails(2, *approve, "--as", "dpo")
    assert "nobody=FINGERPRINT" in shell.fails(2, *approve, "--then", "nobody", "--as", "dpo")
    assert "twice" in shell.fails(2, *approve, "--then", "bank", "--then", "legal", "--as", "dpo")
    assert "twice" in shell.fails(2, *approve, "--then", "dpo", "--as", "dpo")
    assert "wider than what was asked for" in shell.fails(2, *approve, "--uses", 9, "--then", "bank", "--as", "dpo")
    known = identity(shell, "legal").card.fingerprint
    assert f"its card is {known[:16]}" in shell.fails(2, *approve, "--then", f"legal={'ab' * 32}", "--as", "dpo")
    assert "hex" in shell.fails(2, *approve, "--then", "nobody=ab", "--as", "dpo")
    assert board(shell).read(["grant"]) == []
    begin(shell, request_, "--then", f"legal={known}")


def test_a_chain_that_was_begun_is_not_passed_over_by_habit(shell, request_):
    grant = begin(shell, request_, "--then", "bank")["grant"]
    for who, more in (("bank", ()), ("dpo", ("--then", "bank"))):
        told = shell.fails(2, "grant", "approve", request_, *more, "--as", who)
        assert f"dpo has begun grant {grant[:16]}" in told
    assert "its owner denies it" in shell.fails(2, "grant", "deny", request_, "--reason", "no", "--as", "dpo")
    shell("grant", "revoke", grant[:10], "--reason", "we decide alone", "--as", "bank")
    assert shell.json("grant", "list")["asked"][0]["state"] == "waiting"
    alone = shell.json("grant", "approve", request_, "--as", "bank")
    assert alone["approvals"] == ["bank"] and weigh(shell, "run-1") == alone["grant"]


def test_one_of_several_who_says_no_ends_it(shell, request_):
    grant = begin(shell, request_, "--then", "legal")["grant"]
    shell("grant", "revoke", grant[:10], "--reason", "no basis", "--as", "legal")
    (held,) = shell.json("grant", "list", "--as", "bank")["granted"]
    assert (held["state"], held["turn"]) == ("revoked", "")
    shell("grant", "deny", request_, "--reason", "legal says no", "--as", "bank")
    assert shell.json("grant", "list")["asked"][0]["state"] == "denied"


def test_a_key_of_the_chain_that_ends_ends_the_grant(shell, request_):
    grant = begin(shell, request_, "--then", "bank")["grant"]
    shell("grant", "approve", grant[:10], "--as", "bank")
    assert weigh(shell, "run-1") == grant
    shell("identity", "revoke", "dpo", "--reason", "stolen", "--as", "coordinator")
    assert "changed or revoked" in shell.json("grant", "list", "--as", "bank")["granted"][0]["state"]
    refuses(shell, "keys")


def test_nobody_begins_a_grant_of_what_the_owner_denied(shell, request_):
    shell("grant", "deny", request_, "--reason", "no", "--as", "bank")
    assert "no request that waits" in shell.fails(2, "grant", "approve", request_, "--then", "bank", "--as", "dpo")
    assert board(shell).read(["grant"]) == []


# ---- strangers


def chain_by(shell, request, first, *others, **changes):
    """An approval of a chain that `first` makes as it likes, beside its card."""
    terms = dataclasses.replace(GrantRequest.from_dict(statement_of(shell, request).body).terms, **changes)
    signers = tuple(Signer.of(one.card) for one in (first, *others))
    return Approval(Grant(terms, signers, request)).sign(first, log=board(shell).log)


def test_a_strangers_signature_in_a_chain_counts_for_nobody(shell, request_, tmp_path):
    """Under the name of legal, with a key of its own: neither the board nor the owner takes it."""
    grant = begin(shell, request_, "--then", "legal")["grant"]
    (first,) = [one.statement for one in board(shell).read(["grant"])]
    eve, log = Identity.create("legal"), board(shell).log
    forged = Approval(Approval.from_dict(first.body).grant, first.digest).sign(eve, log=log)
    write_statements(tmp_path / "forged.json", [(introduce(eve, log=log), eve.card), (forged, eve.card)])
    shell.fails(1, "grant", "approve", "forged.json", "--as", "bank")
    shell("grant", "list", "--as", "legal")
    shell("identity", "describe", "--as", "legal")
    shell.fails(1, "grant", "post", "forged.json")
    assert "waits for legal" in shell.fails(2, "grant", "approve", grant[:10], "--as", "bank")
    refuses(shell, "approvals")


def test_a_chain_that_gives_more_than_was_asked_for_is_neither_signed_nor_in_the_way(shell, request_):
    """Whoever begins one may write into it what it likes."""
    eve, bank = identity(shell, "eve"), identity(shell, "bank")
    wide = chain_by(shell, request_, eve, bank, uses=99)
    other = chain_by(shell, request_, eve, bank, grantee=Signer.of(eve.card))
    board(shell).post([introduce(eve, log=board(shell).log), wide, other])
    for statement, what in ((wide, "uses"), (other, "grantee")):
        id = Approval.from_dict(statement.body).grant.id
        assert f"{what}: wider than what was asked for" in shell.fails(2, "grant", "approve", id, "--as", "bank")
    assert shell.json("grant", "approve", request_, "--as", "bank")["approvals"] == ["bank"]
    weigh(shell, "run-1")


def test_a_chain_that_skips_one_is_not_the_grant_that_was_begun(shell, request_):
    """The bank's own signature under another chain makes another grant; the begun one stays unsigned."""
    grant = begin(shell, request_, "--then", "legal")["grant"]
    (first,) = [one.statement for one in board(shell).read(["grant"])]
    bank, log = identity(shell, "bank"), board(shell).log
    shell("grant", "list", "--as", "bank")
    consent = Consent(Home.open(shell.home).party("bank"), bank)
    skipped = Approval(Approval.from_dict(first.body).grant, first.digest).sign(bank, log=log)
    consent.store.keep(skipped, bank.card, log=log)
    refuses(shell, "approvals")
    assert consent.grants()[0].grant.id == grant and len(consent.grants()[0].approvals) == 1


# ---- other homes


def test_a_chain_through_the_door(shell, deployment):
    _, enter = deployment
    bank, dpo = enter("bank", "data-owner"), enter("dpo", "data-owner")
    ann, olga = enter("ann", "model-owner"), enter("olga", "model-owner")
    words = ("data", "publish", "credit.csv", "--name", "credit", "--purpose", "credit scoring")
    shell.json(*words, home=bank)
    request = shell.json("grant", "request", "bank/credit", "--kind", "psi", home=ann)["request"]
    assert "no card of that name" in shell.fails(2, "grant", "approve", request, "--then", "clerk", home=dpo)
    begun = shell.json("grant", "approve", request, "--then", "bank", home=dpo)
    assert shell.json("grant", "list", home=ann)["asked"][0]["turn"] == "bank"
    (held,) = shell.json("grant", "list", home=bank)["granted"]
    assert (held["grant"], held["turn"]) == (begun["grant"], "bank")
    shell("grant", "approve", begun["grant"][:10], home=bank)
    assert shell.json("grant", "list", home=ann)["asked"][0]["state"] == "active"
    other = shell.json("grant", "request", "bank/credit", "--kind", "psi", home=ann)["request"]
    assert "may not approve" in shell.fails(3, "grant", "approve", other, "--then", "bank", home=olga)


def test_a_chain_in_files_at_a_node_without_a_pass(shell, node, tmp_path):
    words = ("data", "publish", "--name", "credit", "--purpose", "credit scoring", "--out", "card.json")
    shell(*words, home=node)
    shell("grant", "post", "card.json")
    bank = identity(shell, "bank", node).card.fingerprint
    request = ask(shell, "--out", "request.json")
    identity(shell, "dpo"), identity(shell, "legal")
    approve = ("grant", "approve", "request.json")
    shell(*approve, "--then", "legal", "--then", f"bank={bank}", "--out", "dpo.json", "--as", "dpo")
    shell("grant", "approve", "request.json", "dpo.json", "--out", "legal.json", "--as", "legal")
    assert "approval of legal follows another" in shell.fails(
        2, "grant", "approve", "legal.json", "--out", "bank.json", home=node
    )
    assert not Path("bank.json").exists()
    told = shell.json("grant", "approve", "legal.json", "request.json", "dpo.json", "--out", "bank.json", home=node)
    assert told["approvals"] == ["dpo", "legal", "bank"]
    weigh_at_node = weigh(shell, "run-1", home=node)
    assert weigh_at_node == told["grant"]
    for name in ("request", "dpo", "legal", "bank"):
        shell.json("grant", "post", f"{name}.json")
    (asked,) = shell.json("grant", "list")["asked"]
    assert (asked["request"], asked["state"], asked["signed"]) == (request, "active", ["dpo", "legal", "bank"])
    with pytest.raises(FedsealError):
        weigh(shell, "run-2", home=node, by="eve")
