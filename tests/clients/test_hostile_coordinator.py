"""A coordinator that does not keep to what was agreed, played against a real party of a node, message by message.

The data of each party lie in a file that does not exist: whoever gets as far as opening it fails as bad data
(`DataError`), not as a refusal.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import clients.guard
import clients.part
from clients.data import PartyData
from clients.part import NodeConfig
from clients.participant import Participant
from clients.policy import ASK, STANDING, Policy
from fl_core import messages
from fl_core.config import job_from_public
from fl_core.errors import BadMessage, BudgetExceeded, DataError, FedsealError, RefusedError
from fl_core.job import public_digest
from fl_core.messages import Packet, digests
from fl_core.trust import canonical, order
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import Approval
from fl_core.trust.grants import Grant, Signer
from tests.clients.consent.test_decision import refused
from tests.clients.owners import COORDINATOR, EVE, LAB, LOG, Owner, job_of, ordered

RUN, OTHER = "00" * 8, "11" * 8
OWN = {"horizontal": {"data": "credit", "label": "y"}, "psi": {"data": "credit", "id": ["id"]},
       "vertical": {"data": "credit", "id": ["id"], "label": "y"}}  # fmt: skip


class Node:
    """The bank's node; its clock and the engineer's are this machine's."""

    def __init__(self, path: Path, **policy: object) -> None:
        self.owner = Owner(path)
        self.sources = {"credit": path / "no-such.csv"}
        self.policy = Policy(**{"sources": self.sources, "consent": ASK} | policy)
        self.parties: dict[str, Participant] = {}

    def party(self, run: str = RUN) -> Participant:
        """As its process has it; `forget` is a process that ended."""
        if run not in self.parties:
            path = self.owner.path
            config = NodeConfig("bank", path, path / "out", path, run, {}, policy=self.policy)
            self.parties[run] = Participant(config)
        return self.parties[run]

    def forget(self) -> None:
        self.parties.clear()

    def grant(self, job=None, /, **changes) -> str:
        """Published and approved: for ever, unless changed."""
        self.owner.job = job or self.owner.job
        if self.owner.consent.listing("credit") is None:
            self.owner.publish(kinds=("horizontal", "psi", "vertical"))
        kinds = (self.owner.job.kind,)
        return self.owner.grant(**{"kinds": kinds, "not_before": 0, "not_after": canonical.MAX_INT} | changes)

    def ask(self, step: str, blobs: dict[str, bytes], run: str = RUN, extra=None, **body) -> Packet:
        """A request that the coordinator signs, as it must be."""
        said = {**body, "step": step, "to": "bank", "blobs": digests(blobs)}
        statement = Statement.make(COORDINATOR, log=LOG, kind="request", run=run, body=said)
        packet = Packet(statement, blobs, {"coordinator": COORDINATOR.card.to_dict(), **(extra or {})})
        return self.party(run).answer(step, Packet.from_arrays(packet.to_arrays()))

    def join(self, job, blobs: dict[str, bytes] | None, run: str = RUN, *, view=None, step=messages.JOIN) -> Packet:
        view = view or job.public()
        own = {"job": canonical.encode(view), "own": canonical.encode(OWN[job.kind])}
        return self.ask(step, {**own, **(blobs or {})}, run, job=public_digest(view))


def now(job, by=LAB, **options):
    import time

    return ordered(job, by, time=int(time.time() * 1000), **options)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.fixture
def opened(monkeypatch):
    """Data in memory, and how often somebody opened them."""
    count = []

    def load(job, party, policy=None):
        count.append(party.name)
        x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
        y = np.arange(40) % 2
        return PartyData(x, y, x, y, ("a", "b"), ("p", "q", "r"), (3,), None, "credit")

    monkeypatch.setattr(clients.guard, "load_party_data", load)
    return count


KINDS = ["horizontal", "psi", "vertical"]


def of(kind):
    if kind != "vertical":
        return job_of(kind)
    return job_of("vertical", **{"party.0.label": "y"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_without_a_grant_is_refused(node, kind):
    job = of(kind)
    with refused("none"):
        node.join(job, now(job))


@pytest.mark.parametrize("kind", KINDS)
def test_a_granted_job_comes_as_far_as_the_data(node, kind):
    """That the others are refused for the reason they name, and not for another."""
    job = of(kind)
    node.grant(job)
    with pytest.raises(DataError, match="no-such"):
        node.join(job, now(job))
    assert [use.state for use in node.owner.consent.uses()] == ["released"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_join_that_skips_the_order_is_refused(node, kind):
    job = of(kind)
    node.grant(job)
    with refused("order"):
        node.join(job, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_without_a_grant_opens_nothing_either(node, kind):
    job = of(kind)
    with refused("none"):
        node.join(job, now(job, look=True), step=messages.CHECK)
    node.grant(job)
    with refused("order"):
        node.join(job, now(job), step=messages.CHECK)
    with pytest.raises(DataError):
        node.join(job, now(job, look=True), step=messages.CHECK)
    assert node.owner.consent.uses() == ()


def test_a_grant_of_another_party_is_refused(node, tmp_path):
    """Signed by `bureau` for its own data of the same name, in the same store, even."""
    bureau = Owner(tmp_path / "elsewhere", "bureau")
    bureau.publish()
    node.owner.publish()
    terms = dataclasses.replace(bureau.terms(), not_before=0, not_after=canonical.MAX_INT)
    grant = Grant(terms, (Signer.of(bureau.identity.card),))
    statement = Approval(grant).sign(bureau.identity, log=LOG)
    node.owner.consent.store.keep(statement, bureau.identity.card, log=LOG)
    with node.owner.consent._held.change() as held:
        held.grants[grant.id] = "credit"
    job = job_of()
    with pytest.raises(RefusedError) as caught:
        node.join(job, now(job))
    assert {"dataset", "owner"} <= set(caught.value.topics)


def test_a_grant_that_the_coordinator_made_itself_is_refused(node):
    node.owner.publish()
    terms = dataclasses.replace(node.owner.terms(), not_before=0, not_after=canonical.MAX_INT)
    forged = Grant(terms, (Signer("bank", EVE.card.fingerprint),))
    with pytest.raises(FedsealError):
        node.owner.consent.receive(Approval(forged).sign(EVE, log=LOG), EVE.card)
    job = job_of()
    with refused("none"):
        node.join(job, now(job))


def test_an_order_of_another_person_is_refused(node):
    job = job_of()
    node.grant(job)
    with refused("grantee"):
        node.join(job, now(job, EVE))
    with refused("grantee"):  # the coordinator's own
        node.join(job, now(job, COORDINATOR))


def test_an_altered_order_is_refused(node):
    job = job_of()
    node.grant(job)
    blobs = now(job)
    held = canonical.decode(blobs[order.BLOB])
    for change in ({"time": 1}, {"nonce": "00" * 16}, {"job": "ab" * 32}):
        body = {**held, "body": {**held["body"], **change}}
        with refused("order"):
            node.join(job, {**blobs, order.BLOB: canonical.encode(body)})
    with refused("order"):
        node.join(job, {**blobs, order.BLOB: canonical.encode({**held, "log": "fedseal/" + "0" * 16})})


@pytest.mark.parametrize(
    "changes",
    [{"train.rounds": 50}, {"seed": 7}, {"encryption.scheme": "none"}, {"train.receivers": ["agency"]},
     {"train.publish": True}, {"privacy.mechanism": "none", "train.local_epochs": 9}],
    ids=str,
)  # fmt: skip
def test_another_job_than_the_ordered_one_is_refused(node, changes):
    """The engineer ordered one; the coordinator asks for another."""
    job = job_of()
    node.grant(job, receivers=("bureau", "clinic", "agency", "coordinator"))
    other = job_of(**changes)
    with refused("order"):
        node.join(other, now(job))


def test_another_job_than_the_approved_one_is_refused(node):
    """Engineer and coordinator agree, and the owner approved something else."""
    job = job_of()
    node.grant(job, job=node.owner.wanted(job).job)
    other = job_of(**{"train.rounds": 50})
    with refused("job"):
        node.join(other, now(other))


def test_a_view_that_is_not_the_named_one_is_refused(node):
    job = job_of()
    node.grant(job)
    with pytest.raises(BadMessage, match="not the one the request names"):
        blobs = {"job": canonical.encode(job.public()), "own": canonical.encode(OWN["horizontal"]), **now(job)}
        node.ask(messages.JOIN, blobs, job="ab" * 32)


def test_a_replayed_order_in_another_run_is_refused(node, opened):
    job = job_of()
    node.grant(job)
    blobs = now(job)
    node.join(job, blobs)
    assert opened == ["bank"]
    for _ in range(2):
        with refused("order"):
            node.join(job, blobs, OTHER)
        node.forget()
    assert opened == ["bank"] and [use.run for use in node.owner.consent.uses()] == [RUN]


def test_a_resume_with_another_order_is_refused(node, opened):
    job = job_of()
    node.grant(job)
    blobs = now(job)
    first = node.join(job, blobs)
    node.forget()
    with refused("order"):
        node.join(job, now(job))
    with refused("order"):
        node.join(job, None)
    assert opened == ["bank"]
    assert node.join(job, blobs).statement == first.statement  # and with the same one it goes on
    assert len(node.owner.consent.uses()) == 1


def test_a_join_says_which_grant_and_shows_it(node, opened):
    job = job_of()
    grant = node.grant(job)
    packet = node.join(job, now(job))
    assert packet.statement.body["grant"] == grant and packet.statement.body["reserved"] == 0
    assert "self_issued" not in packet.statement.body and "standing" not in packet.statement.body
    approval = Statement.from_dict(packet.extra["grant"])
    approval.verify(node.owner.identity.card)
    assert Approval.from_dict(approval.body).grant.id == grant


def test_spent_uses_open_nothing_more(node, opened):
    job = job_of()
    node.grant(job, uses=1)
    node.join(job, now(job))
    node.owner.consent.done(RUN)
    with refused("uses"):
        node.join(job, now(job), OTHER)
    node.forget()
    for step in (messages.ROUND, messages.CLOSE):
        with pytest.raises(FedsealError):
            node.ask(step, {}, round=1, act="train")
    assert opened == ["bank"]


def test_a_finished_run_joins_again_without_opening_anything(node, opened):
    job = job_of()
    node.grant(job, uses=1)
    blobs = now(job)
    first = node.join(job, blobs)
    node.owner.consent.done(RUN)
    node.forget()
    assert node.join(job, blobs).statement == first.statement
    assert opened == ["bank"]


def test_a_finished_run_whose_answers_are_lost_opens_nothing(node, opened):
    job = job_of()
    node.grant(job)
    blobs = now(job)
    node.join(job, blobs)
    node.owner.consent.done(RUN)
    (node.owner.path / "runs" / RUN / "state.npz").unlink()
    node.forget()
    with refused("run"):
        node.join(job, blobs)
    assert opened == ["bank"]


@pytest.mark.parametrize("step", [messages.ROSTER, messages.ROUND, messages.CLOSE])
def test_a_revoked_grant_stops_a_run_under_way(node, opened, monkeypatch, step):
    job = job_of()
    grant = node.grant(job)
    node.join(job, now(job))
    node.owner.consent.revoke(grant, "enough", log=LOG)
    monkeypatch.setattr(Participant, "observe", lambda self, packet, card: "")
    with refused("revoked"):
        node.ask(step, {}, round=1, act="train", sums=[])


def test_a_session_after_the_use_is_refused(node, monkeypatch):
    """A coordinator that asks for a second session in a run that has had its one."""
    job = job_of("psi")
    node.grant(job)
    monkeypatch.setattr("clients.session.Attendance.enter", lambda self: "ab" * 32)
    node.join(job, now(job))
    node.owner.consent.done(RUN)
    monkeypatch.setattr(Participant, "observe", lambda self, packet, card: "")
    with refused("uses"):
        node.ask(messages.SESSION, {}, round=2)


def test_an_abandoned_run_gives_the_use_back_only_where_nothing_left(node, opened):
    job = job_of()
    node.grant(job, uses=1)
    blobs = now(job)
    node.join(job, blobs)
    node.ask(messages.ABANDON, {})
    assert [use.state for use in node.owner.consent.uses()] == ["released"]
    node.join(job, blobs)
    node.owner.consent.opened(RUN)  # a round was computed
    node.ask(messages.ABANDON, {})
    assert [use.state for use in node.owner.consent.uses()] == ["reserved"]


def test_data_of_another_version_are_not_used(node, opened):
    """Opened, seen to be another version, and shut again before anything leaves."""
    job = job_of()
    file = node.owner.path / "credit.csv"
    file.write_text("y,a\n1,2\n")
    node.sources["credit"] = file
    node.grant(job, version="ab" * 32)  # the version that the card names
    with refused("version"):
        node.join(job, now(job))
    assert [use.state for use in node.owner.consent.uses()] == ["released"]


def test_the_owners_policy_speaks_before_its_grants(node):
    job = job_of()
    node.grant(job)
    node.policy = dataclasses.replace(node.policy, kinds=("psi",))
    with pytest.raises(RefusedError, match="the owner allows: psi"):
        node.join(job, now(job))
    assert node.owner.consent.uses() == ()


def test_the_grant_speaks_before_the_budget_and_the_budget_before_the_data(node):
    job = job_of(**{"privacy.mechanism": "dp-sgd", "privacy.target_epsilon": 3.0})
    node.policy = dataclasses.replace(node.policy, limits={"*": 1.0})
    with refused("none"):
        node.join(job, now(job))
    node.grant(job)
    with pytest.raises(BudgetExceeded, match="the owner allows 1"):
        node.join(job, now(job))
    assert [use.state for use in node.owner.consent.uses()] == ["released"]


def test_a_refusal_tells_topics_and_nothing_else(node):
    job = job_of()
    node.grant(job, uses=1, receivers=("bureau",))
    try:
        node.join(job, now(job))
    except RefusedError as error:
        packet = node.party().failure(messages.JOIN, kind="refusal", error=error)
    body = packet.statement.body
    assert body == {"step": messages.JOIN, "round": 0, "code": "grant", "blobs": {}, "topics": ["receivers"]}


# ---- standing


def test_a_standing_node_takes_whoever_the_coordinator_sends_with_an_order(tmp_path, opened):
    node = Node(tmp_path, consent=STANDING)
    job = job_of()
    packet = node.join(job, now(job, EVE))
    assert packet.statement.body["standing"] is True and opened == ["bank"]
    with refused("order"):
        node.join(job, None, OTHER)


def test_a_standing_grant_that_the_owner_took_back_is_not_made_again(tmp_path, opened):
    node = Node(tmp_path, consent=STANDING)
    job = job_of()
    id = node.join(job, now(job)).statement.body["grant"]
    node.owner.consent.revoke(id, "no more", log=LOG)
    with refused("revoked"):
        node.join(job, now(job), OTHER)


def test_a_standing_node_opens_no_other_data_than_are_bound(tmp_path):
    node = Node(tmp_path, consent=STANDING)
    node.sources.clear()
    job = job_of()
    with pytest.raises(DataError, match="nothing is bound"):
        node.join(job, now(job))
    assert node.owner.consent.grants() == ()


# ---- a second dataset in a job


def test_ids_to_hold_out_need_a_grant_too(tmp_path):
    """Bound to a name of their own: a grant of the table does not open them."""
    node = Node(tmp_path)
    node.sources["held-out"] = tmp_path / "no-such-ids.csv"
    job = of("vertical")
    node.grant(job)
    view = {**job.public(), "evaluate": {**job.public()["evaluate"], "test_ids": "given"}}
    own = canonical.encode({**OWN["vertical"], "test_ids": "held-out"})

    def join():
        given = job_from_public(view)
        blobs = {"job": canonical.encode(view), "own": own, **now(given)}
        return node.ask(messages.JOIN, blobs, job=public_digest(view))

    with refused("none"):
        join()
    assert node.owner.consent.uses() == ()
    card = dataclasses.replace(node.owner.consent.listing("credit").card, name="held-out", published=700)
    node.owner.consent.publish(card, log=LOG)
    node.grant(job, dataset="held-out")
    with pytest.raises(DataError, match="no-such"):
        join()


# ---- on one machine


def test_a_strict_local_job_asks_as_a_node_does(node, opened):
    job = job_of(runtime="local", **{f"party.{i}.data": __file__ for i in range(3)})
    path, own = node.owner.path, {"data": "no-such.csv", "label": "y"}
    config = NodeConfig("bank", path, path / "out", path, RUN, own, strict=True)
    node.parties[RUN] = Participant(config)
    with refused("none"):
        node.join(job, now(job))
    assert opened == []
    node.parties[RUN] = Participant(dataclasses.replace(config, strict=False))
    packet = node.join(job, now(job))
    assert packet.statement.body["self_issued"] is True and opened == ["bank"]
