"""Grants in whole runs: every join names one that its owner signed, and each use is set aside and spent."""

from __future__ import annotations

import pytest

from clients.consent.decision import Consent
from fl_core import messages
from fl_core.errors import JobFailed, RefusedError
from fl_core.messages import Packet
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import Approval
from fl_core.trust.identity import Identity
from fl_core.trust.verify import verify_ledger
from strategies.coordination import Stopped
from tests.support import Federation, digits

NAMES = ("party_1", "party_2", "party_3")


@pytest.fixture
def fed(tmp_path):
    return Federation(tmp_path)


def uses(fed, name):
    path = fed.home.party(name)
    return [(use.run, use.state) for use in Consent(path, Identity.load_or_create(path, name)).uses()]


def granted(fed):
    """Grants on the ledger: id → (owner, run, self-issued)."""
    found = {}
    for entry in fed.entries("grant"):
        grant = Approval.from_dict(entry.body).grant
        found[grant.id] = (entry.by, entry.run, grant.self_issued)
    return found


def test_every_join_names_a_grant_that_its_owner_signed(fed):
    job = digits(train__rounds=1)
    for run in ("run-1", "run-2"):
        fed.run(job, run=run)
    joins = {(e.by, e.run): e.body for e in fed.entries("join")}
    grants = granted(fed)
    assert len(joins) == len(grants) == 6
    for (name, run), body in joins.items():
        assert grants[body["grant"]] == (name, run, True) and body["self_issued"] is True
    for name in NAMES:
        assert uses(fed, name) == [("run-1", "committed"), ("run-2", "committed")]
    assert verify_ledger(fed.home.ledger).status == 0


def test_a_stopped_run_holds_its_use_and_the_same_one_goes_on(fed):
    job = digits(train__rounds=3)

    def stop() -> bool:
        return len(fed.records) > 0 or any(event.kind == "round" for event in fed.events)

    with pytest.raises(Stopped):
        fed.run(job, stopped=stop)
    assert uses(fed, "party_1") == [("run-1", "reserved")]
    fed.events.clear()
    fed.run(job)
    assert uses(fed, "party_1") == [("run-1", "committed")] and len(granted(fed)) == 3


def test_where_one_party_refuses_the_others_get_their_use_back(fed):
    job = digits(
        train__rounds=1, party=[{"name": "party_1", "max_epsilon": 1.0}, {"name": "party_2"}, {"name": "party_3"}]
    )
    job["privacy"] = {"mechanism": "dp-sgd", "target_epsilon": 3.0}
    with pytest.raises(RefusedError):
        fed.run(job)
    assert [uses(fed, name) for name in NAMES] == [[("run-1", "released")]] * 3


def altered(change):
    """A hook that changes what comes with the join of party_2."""

    def hook(party, step, arrays):
        if (party, step) != ("party_2", messages.JOIN):
            return arrays
        packet = Packet.from_arrays(arrays)
        return Packet(packet.statement, packet.blobs, change(dict(packet.extra))).to_arrays()

    return hook


def without(extra):
    del extra["grant"]
    return extra


def another(extra):
    """Signed by the right owner, and not the one that the join names."""
    grant = Approval.from_dict(extra["grant"]["body"]).grant
    fresh = Approval(type(grant)(grant.terms, grant.approvals, self_issued=True))
    path = another.home.party("party_2")
    identity = Identity.load_or_create(path, "party_2")
    return {**extra, "grant": fresh.sign(identity, log=extra["grant"]["log"], run="run-1").to_dict()}


def forged(extra):
    stranger = Identity.create("party_2")
    body = extra["grant"]["body"]
    return {**extra, "grant": Statement.make(stranger, log=extra["grant"]["log"], kind="grant", run="run-1",
                                             body=body).to_dict()}  # fmt: skip


@pytest.mark.parametrize("change", [without, another, forged], ids=lambda f: f.__name__)
def test_a_join_without_the_grant_that_it_names_is_not_taken(fed, change):
    another.home = fed.home
    with pytest.raises(JobFailed, match="party_2"):
        fed.run(digits(train__rounds=1), reply=altered(change))
    assert granted(fed) == {} and fed.entries("join") == []
    assert [e.body["party"] for e in fed.entries("refusal")] == ["party_2"]


def test_a_party_that_gets_no_order_refuses(fed):
    def unordered(party, step, arrays):
        if step != messages.JOIN:
            return arrays
        packet = Packet.from_arrays(arrays)
        body = dict(packet.statement.body)
        blobs = {name: data for name, data in packet.blobs.items() if not name.startswith("order")}
        body["blobs"] = messages.digests(blobs)
        statement = Statement.make(fed.identity, log=packet.statement.log, kind="request", run="run-1", body=body)
        return Packet(statement, blobs, packet.extra).to_arrays()

    with pytest.raises(RefusedError, match=r"grant \(order\)"):
        fed.run(digits(train__rounds=1), request=unordered)
    assert {tuple(e.body["topics"]) for e in fed.entries("refusal")} == {("order",)}
