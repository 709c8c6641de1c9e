"""Ended keys in whole runs: the coordinator shows those of its log to every party that it asks to join, or to look."""

from __future__ import annotations

import pytest

from clients.board import introduce
from clients.consent.folder import ConsentFolder
from fl_core import messages
from fl_core.errors import JobFailed, RefusedError
from fl_core.messages import Packet
from fl_core.trust.identity import Identity
from fl_core.trust.rotation import Revoked, rotate
from fl_core.trust.verify import verify_ledger
from strategies.coordination import Stopped
from tests.support import Federation, digits


@pytest.fixture
def fed(tmp_path):
    return Federation(tmp_path)


@pytest.fixture
def psi(tmp_path):
    (tmp_path / "ids.csv").open("w").writelines(["id\n", "1\n", "2\n"])
    parties = [{"name": name, "data": str(tmp_path / "ids.csv"), "id": ["id"]} for name in "ab"]
    return {"kind": "psi", "name": "t", "party": parties, "psi": {}, "session": {"timeout": 10}}


def end(fed, identity, by=None):
    with fed.ledger() as ledger:
        said = Revoked(identity.name, identity.card.fingerprint, "stolen").sign(by or identity, log=ledger.log)
        ledger.commit([introduce(identity, log=ledger.log), said])


def extras(fed, job, step=messages.JOIN, **options):
    """What came with each request of a step, as the parties see it."""
    found = {}

    def note(party, asked, arrays):
        if asked == step:
            found[party] = Packet.from_arrays(arrays).extra.get("ended")
        return arrays

    try:
        fed.run(job, request=note, **options)
    except RefusedError:
        found["refused"] = True
    return found


def test_where_nothing_has_ended_nothing_is_shown(fed):
    assert extras(fed, digits(train__rounds=1)) == dict.fromkeys(["party_1", "party_2", "party_3"])


@pytest.mark.parametrize("kind", ["horizontal", "psi"])
@pytest.mark.parametrize("by", ["itself", "the coordinator"])
def test_orders_of_a_revoked_key_are_refused_by_every_party(fed, psi, kind, by):
    """Even where the coordinator itself would still run them."""
    job = psi if kind == "psi" else digits(train__rounds=1)
    names = [party["name"] for party in psi["party"]] if kind == "psi" else ["party_1", "party_2", "party_3"]
    end(fed, fed.engineer, None if by == "itself" else fed.identity)
    found = extras(fed, job)
    assert set(found) == {*names, "refused"}
    for name in names:
        (item,) = found[name]
        assert (item["statement"]["kind"], item["card"]["name"]) == (
            "revoke", "engineer" if by == "itself" else "coordinator",
        )  # fmt: skip
        held = ConsentFolder(fed.home.party(name) / "consent").read()
        assert held.revoked_keys == {fed.engineer.card.fingerprint}
    assert {tuple(entry.body["topics"]) for entry in fed.entries("refusal")} == {("keys",)}
    assert fed.entries("join") == [] and verify_ledger(fed.home.ledger).status == 0


def test_ends_of_others_and_rotations_stop_nobody(fed):
    eve, ann, new = (Identity.create(name) for name in ("eve", "ann", "ann"))
    end(fed, eve)
    with fed.ledger() as ledger:
        ledger.commit([introduce(ann, log=ledger.log), rotate(ann, new, log=ledger.log)])
    found = extras(fed, digits(train__rounds=1))
    assert all([item["statement"]["kind"] for item in shown] == ["revoke", "rotate"] for shown in found.values())
    assert len(fed.entries("join")) == 3


def test_a_run_does_not_go_on_with_a_party_whose_key_was_revoked_meanwhile(fed):
    """It stops at the others, who have pinned its card, whatever the coordinator makes of its own list."""
    job = digits(train__rounds=3)
    with pytest.raises(Stopped):
        fed.run(job, stopped=lambda: any(event.kind == "round" for event in fed.events))
    stolen = Identity.load_or_create(fed.home.party("party_3"), "party_3")
    with fed.ledger() as ledger:
        ledger.commit([Revoked("party_3", stolen.card.fingerprint, "stolen").sign(fed.identity, log=ledger.log)])
    fed.events.clear()
    with pytest.raises(JobFailed, match="party_1, joining"):
        fed.run(job)
    for name in ("party_1", "party_2"):
        assert ConsentFolder(fed.home.party(name) / "consent").read().revoked_keys == {stolen.card.fingerprint}
