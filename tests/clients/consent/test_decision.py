"""An owner's consent: what nobody granted opens nothing, and what was granted is used once for each use."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.consent import folder as consent_folder
from clients.consent.data import place_of, version_of
from clients.consent.decision import Consent
from clients.consent.folder import ConsentFolder, Held
from clients.consent.order import NotGranted, OverGranted, topics_of
from clients.consent.terms import Wanted, code_digest, narrowed, word_of
from clients.sql_source import SqlSource
from fl_core.errors import BadMessage, BadSignature, RefusedError, UsageError, WrongKey
from fl_core.trust import canonical, order
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import Approval, GrantRequest, Revocation
from fl_core.trust.grants import Signer
from fl_core.trust.identity import Identity
from fl_core.trust.profile import Profile
from fl_core.trust.roles import Role
from tests.clients.owners import COORDINATOR, END, EVE, LAB, LOG, NOW, VERSION, Owner, altered, job_of, ordered


@pytest.fixture
def owner(tmp_path):
    made = Owner(tmp_path)
    made.publish()
    return made


def refused(*topics):
    """What a refusal for exactly these reasons looks like."""

    class Expected:
        def __enter__(self):
            self.raises = pytest.raises(RefusedError)
            self.info = self.raises.__enter__()
            return self.info

        def __exit__(self, *exc):
            caught = self.raises.__exit__(*exc)
            assert self.info.value.topics == topics, self.info.value
            assert self.info.value.exit_code == 3 and "\n" not in str(self.info.value)
            return caught

    return Expected()


# ---- who may


def test_without_a_grant_nothing_is_opened(owner):
    with refused("none"):
        owner.weigh()
    assert owner.consent.uses() == ()


def test_a_granted_use_is_set_aside_spent_and_then_gone(owner):
    grant = owner.grant(uses=1)
    leave = owner.weigh("run-1")
    assert (leave.grant.id, leave.new, leave.over) == (grant, True, False)
    owner.consent.opened("run-1")
    owner.consent.holds("run-1", now=NOW)
    owner.consent.done("run-1")
    with refused("uses"):
        owner.weigh("run-2")
    with refused("uses"):
        owner.consent.holds("run-1", now=NOW)
    assert [(use.run, use.state) for use in owner.consent.uses()] == [("run-1", "committed")]


def test_a_grant_of_another_party_does_not_serve(owner, tmp_path):
    other = Owner(tmp_path, "bureau")
    other.publish()
    other.grant()
    with refused("none"):
        owner.weigh()


def test_a_grant_to_another_grantee_does_not_serve(owner):
    owner.grant(by=EVE)
    with refused("grantee"):
        owner.weigh()
    with refused("grantee"):  # a name is not a key
        owner.weigh(blobs=ordered(owner.job, Identity.create("eve")))


def test_an_order_in_another_ones_name_is_refused(owner):
    owner.grant()
    mine, theirs = ordered(owner.job, EVE), ordered(owner.job)
    forged = {order.BLOB: mine[order.BLOB], order.CARD_BLOB: theirs[order.CARD_BLOB]}
    with refused("order"):
        owner.weigh(blobs=forged)


def test_a_revoked_key_orders_nothing(owner):
    owner.grant()
    owner.consent.distrust(LAB.card.fingerprint)
    with refused("keys"):
        owner.weigh()
    owner.consent.standing("credit", ["horizontal"], log=LOG)
    with refused("keys"):
        owner.weigh()


@pytest.mark.parametrize(("at", "allowed"), [(NOW - 1, False), (NOW, True), (END - 1, True), (END, False)])
def test_an_expired_grant_is_refused_at_the_edge(owner, at, allowed):
    owner.grant()
    if allowed:
        assert owner.weigh(now=at).new
    else:
        with refused("time"):
            owner.weigh(now=at)


@pytest.mark.parametrize(("at", "allowed"), [(NOW - 1, False), (NOW, True), (END - 1, True), (END, False)])
def test_an_order_from_outside_the_grants_time_is_refused(owner, at, allowed):
    owner.grant()
    blobs = ordered(owner.job, time=at)
    if allowed:
        assert owner.weigh(blobs=blobs).new
    else:
        with refused("time"):
            owner.weigh(blobs=blobs)


def test_a_clock_set_back_makes_no_grant_young_again(owner):
    owner.grant()
    owner.consent.store.latest()
    with refused("time"):
        owner.weigh("run-1", now=END + 5)
    with refused("time"):
        owner.weigh("run-2", now=NOW)


def test_a_revoked_grant_stops_the_next_run_and_the_one_under_way(owner):
    grant = owner.grant()
    owner.weigh("run-1")
    owner.consent.holds("run-1", now=NOW)
    owner.consent.revoke(grant[:12], "changed our mind", log=LOG)
    with refused("revoked"):
        owner.consent.holds("run-1", now=NOW)
    with refused("revoked"):
        owner.weigh("run-2")


def test_a_grant_that_ends_stops_the_run_under_way(owner):
    owner.grant()
    owner.weigh("run-1", now=NOW)
    owner.consent.holds("run-1", now=END - 1)
    with refused("time"):
        owner.consent.holds("run-1", now=END)


def test_another_version_than_granted_is_refused_before_the_data_are_opened(owner):
    owner.grant(version="ee" * 32)
    with refused("version"):
        owner.weigh()
    owner.grant(version=VERSION)
    assert owner.weigh().grant.terms.version == VERSION
    owner.publish(version="dd" * 32, published=200)
    with refused("version"):
        owner.weigh("run-2")


def test_withdrawn_data_serve_no_new_run(owner):
    owner.grant()
    owner.consent.withdraw("credit", log=LOG, now=300)
    with refused("withdrawn"):
        owner.weigh()


@pytest.mark.parametrize(
    ("changes", "topics"),
    [
        ({"train.receivers": ["agency"]}, ("receivers",)), ({"train.publish": True}, ("receivers",)),
        ({"model.name": "logistic"}, ("algorithm",)), ({"model.name": "json:loads"}, ("algorithm", "model")),
        ({"privacy.mechanism": "dp-sgd", "privacy.target_delta": 1e-4}, ("delta",)),
    ],
)  # fmt: skip
def test_a_job_beyond_the_grant_is_refused_for_that_reason(owner, changes, topics):
    owner.grant()
    with refused(*topics):
        owner.weigh(job=job_of(**changes))


def test_epsilon_beyond_the_grant_is_the_budgets_refusal(owner):
    owner.grant(epsilon=3_000_000)
    with pytest.raises(OverGranted):
        owner.weigh(job=job_of(**{"privacy.mechanism": "dp-sgd", "privacy.target_epsilon": 3.5}))
    leave = owner.weigh(job=job_of(**{"privacy.mechanism": "dp-sgd", "privacy.target_epsilon": 3.0}))
    assert leave.epsilon == 3_000_000


def test_a_job_of_another_digest_than_the_granted_one_is_refused(owner):
    owner.grant(job=owner.wanted(owner.job).job)
    with refused("job"):
        owner.weigh(job=job_of(seed=1))
    assert owner.weigh().new


# ---- orders


def test_a_join_without_an_order_is_refused(owner):
    owner.grant()
    whole = ordered(owner.job)
    for missing in ({}, {order.BLOB: whole[order.BLOB]}, {order.CARD_BLOB: whole[order.CARD_BLOB]}):
        with refused("order"):
            owner.weigh(blobs=missing)


def test_an_order_serves_one_run(owner):
    owner.grant()
    blobs = ordered(owner.job)
    owner.weigh("run-1", blobs=blobs)
    with refused("order"):
        owner.weigh("run-2", blobs=blobs)
    assert owner.weigh("run-1", blobs=blobs, began=_began(blobs, owner)).new is False
    assert [use.run for use in owner.consent.uses()] == ["run-1"]


def test_an_order_serves_one_run_also_where_the_first_was_given_back(owner):
    owner.grant()
    blobs = ordered(owner.job)
    owner.weigh("run-1", blobs=blobs)
    assert owner.consent.release("run-1")
    with refused("order"):
        owner.weigh("run-2", blobs=blobs)


def test_a_nonce_signed_again_serves_no_second_run(owner):
    owner.grant()
    blobs = ordered(owner.job)
    owner.weigh("run-1", blobs=blobs)
    with refused("order"):
        owner.weigh("run-2", blobs=altered(blobs, LAB, time=NOW + 1))


def test_anothers_nonce_is_not_burned_by_a_stranger(owner):
    owner.consent.standing("credit", ["horizontal"], log=LOG)
    mine = ordered(owner.job)
    _, said, _ = order.read(mine[order.BLOB], mine[order.CARD_BLOB])
    owner.weigh("run-1", blobs=altered(ordered(owner.job, EVE), EVE, nonce=said.nonce))
    assert owner.weigh("run-2", blobs=mine).new


@pytest.mark.parametrize("which", [order.BLOB, order.CARD_BLOB])
def test_no_altered_byte_of_an_order_is_taken(owner, which):
    owner.grant(uses=1000)
    blobs = ordered(owner.job)
    for at in range(0, len(blobs[which]), 7):
        data = bytearray(blobs[which])
        data[at] ^= 1
        with pytest.raises(NotGranted):
            owner.weigh(blobs={**blobs, which: bytes(data)})
    assert owner.consent.uses() == ()


def test_an_order_of_another_job_log_or_purpose_is_refused(owner):
    owner.grant()
    for blobs in (
        ordered(job_of(seed=1)), ordered(owner.job, log="fedseal/" + "0" * 16), ordered(owner.job, look=True),
        {**ordered(owner.job), order.BLOB: b"[]"}, {**ordered(owner.job), order.CARD_BLOB: b"7"},
        {**ordered(owner.job), order.BLOB: b" " * (order.MAX_BYTES + 1)},
    ):  # fmt: skip
        with refused("order"):
            owner.weigh(blobs=blobs)


def test_a_run_that_comes_back_shows_the_same_order(owner):
    owner.grant()
    blobs = ordered(owner.job)
    owner.weigh("run-1", blobs=blobs)
    with refused("order"):
        owner.weigh("run-1", blobs=ordered(owner.job), began=_began(blobs, owner))


def test_a_prediction_keeps_what_its_submitter_fixed():
    parties = [{"name": name, "data": "credit", "id": ["id"]} for name in ("bank", "bureau")]
    base = {"kind": "predict", "runtime": "deployment", "party": parties, "predict": {"model": "ab" * 8}}
    from fl_core.config import load_job

    job = load_job(base)
    filled = load_job(base, {"predict.active": "bank", "predict.algorithm": "gbdt", "predict.receivers": ["bank"]})
    other = load_job(base, {"predict.model": "cd" * 8})
    statement = order.make(LAB, job, time=NOW, log=LOG)
    _, said, _ = order.read(*order.blobs(statement, LAB.card).values())
    order.check(statement, said, filled.public(), log=LOG)
    with pytest.raises(BadMessage, match="model"):
        order.check(statement, said, other.public(), log=LOG)
    with pytest.raises(BadMessage, match="of job"):
        order.check(statement, said, load_job(base, {"predict.min_trees": 5}).public(), log=LOG)


def _began(blobs, owner):
    statement, _, _ = order.read(blobs[order.BLOB], blobs[order.CARD_BLOB])
    return statement.digest, owner.consent.grants()[0].grant.id


# ---- two phases


def test_two_runs_that_race_for_the_last_use_get_one(owner, tmp_path):
    owner.grant(uses=1)
    won = []

    def race(run):
        consent = Consent(owner.path, owner.identity)
        try:
            consent.weigh(owner.wanted(owner.job), view=owner.job.public(), log=LOG, run=run,
                          blobs=ordered(owner.job), strict=True, now=NOW)  # fmt: skip
            won.append(run)
        except NotGranted as error:
            assert error.topics == ("uses",)

    threads = [threading.Thread(target=race, args=(f"run-{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_a_crash_after_the_reservation_neither_loses_nor_doubles_the_use(owner):
    owner.grant(uses=1)
    blobs = ordered(owner.job)
    owner.weigh("run-1", blobs=blobs)
    back = Consent(owner.path, owner.identity)  # the process is another one
    with pytest.raises(NotGranted):
        back.weigh(owner.wanted(owner.job), view=owner.job.public(), log=LOG, run="run-2", strict=True, now=NOW,
                   blobs=ordered(owner.job))  # fmt: skip
    again = back.weigh(owner.wanted(owner.job), view=owner.job.public(), log=LOG, run="run-1", blobs=blobs,
                       strict=True, now=NOW)  # fmt: skip
    assert not again.new and [use.state for use in back.uses()] == ["reserved"]


def test_a_crash_between_reservation_and_order_lets_the_same_run_go_on(owner, monkeypatch):
    owner.grant(uses=1)
    blobs = ordered(owner.job)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(owner.consent._held), "take", killed)
        with pytest.raises(KeyboardInterrupt):
            owner.weigh("run-1", blobs=blobs)
    assert owner.weigh("run-1", blobs=blobs).new is False
    with refused("order"):
        owner.weigh("run-2", blobs=blobs)


def test_what_may_have_left_is_not_given_back(owner):
    owner.grant(uses=1)
    owner.weigh("run-1")
    owner.consent.opened("run-1")
    assert not owner.consent.release("run-1")
    with refused("uses"):
        owner.weigh("run-2")
    owner.consent.done("run-1")
    owner.consent.done("run-1")
    assert [use.state for use in owner.consent.uses()] == ["committed"]


def test_what_nobody_opened_is_given_back_and_can_come_back(owner):
    owner.grant(uses=1)
    blobs = ordered(owner.job)
    owner.weigh("run-1", blobs=blobs)
    assert owner.consent.release("run-1") and not owner.consent.release("run-1")
    assert owner.weigh("run-1", blobs=blobs, began=_began(blobs, owner)).new
    with refused("uses"):
        owner.weigh("run-2")


def test_a_finished_run_may_tell_its_answers_again_and_open_nothing(owner):
    owner.grant(uses=1)
    blobs = ordered(owner.job)
    owner.weigh("run-1", blobs=blobs)
    owner.consent.done("run-1")
    assert owner.weigh("run-1", blobs=blobs, began=_began(blobs, owner)).over
    other = job_of(seed=1)
    with refused("run"):
        owner.weigh("run-1", job=other, blobs=ordered(other))


# ---- standing and self-issued


def test_a_standing_grant_serves_whoever_comes_until_it_is_ended(owner):
    owner.consent.standing("credit", ["horizontal"], log=LOG)
    assert owner.consent.standing("credit", ["horizontal"], log=LOG) is None
    assert owner.weigh("run-1", blobs=ordered(owner.job, EVE)).grant.terms.standing
    assert owner.weigh("run-2", job=job_of(**{"train.receivers": ["agency"], "model.name": "json:loads"})).new
    with refused("kind"):
        owner.weigh("run-3", job=job_of("psi"))
    owner.consent.end_standing(log=LOG)
    with refused("revoked"):
        owner.weigh("run-4")
    assert owner.consent.standing("credit", ["horizontal"], log=LOG, first=True) is None
    assert owner.consent.standing("credit", ["horizontal"], log=LOG) is not None
    assert owner.weigh("run-5").new


def test_a_standing_grant_for_other_kinds_replaces_the_one_before(owner):
    owner.consent.standing("credit", ["horizontal", "psi"], log=LOG)
    owner.consent.standing("credit", ["psi"], log=LOG)
    with refused("kind"):
        owner.weigh()
    assert sum(not account.revoked for account in owner.consent.grants()) == 1


def test_a_standing_grant_keeps_within_the_datasets_card(owner):
    owner.publish(min_cohort=4, kinds=("psi",), published=200)
    owner.consent.standing("credit", ["horizontal"], log=LOG)
    with refused("catalog", "cohort"):
        owner.weigh()


def test_a_standing_grant_serves_data_that_are_not_published(tmp_path):
    owner = Owner(tmp_path)
    owner.consent.standing("credit", ["horizontal"], log=LOG)
    assert owner.weigh().new


def test_a_grant_of_unpublished_data_is_not_approved(tmp_path):
    owner = Owner(tmp_path)
    with pytest.raises(UsageError, match="not published"):
        owner.consent.approve(owner.ask(), log=LOG)


def test_a_local_job_makes_its_own_grant_for_one_run_of_itself(tmp_path):
    owner = Owner(tmp_path)
    leave = owner.weigh("run-1", strict=False)
    grant = leave.grant
    assert grant.self_issued and grant.terms.uses == 1 and grant.terms.grantee == Signer.of(LAB.card)
    assert grant.terms.job == owner.wanted(owner.job).job and owner.consent.approval(grant.id).run == "run-1"
    second = owner.weigh("run-2", strict=False)
    assert second.grant.id != grant.id


def test_strict_takes_no_self_issued_grant(tmp_path):
    owner = Owner(tmp_path)
    blobs = ordered(owner.job)
    leave = owner.weigh("run-1", blobs=blobs, strict=False)
    with refused("none"):
        owner.weigh("run-2")
    with refused("self-issued"):  # the same run, resumed strictly
        owner.weigh("run-1", blobs=blobs, began=(leave.order, leave.grant.id))


def test_a_real_grant_goes_before_one_that_the_job_would_make(owner):
    grant = owner.grant()
    assert owner.weigh(strict=False).grant.id == grant


def test_a_local_job_makes_no_grant_against_the_datasets_card(owner):
    owner.consent.withdraw("credit", log=LOG, now=300)
    with refused("withdrawn"):
        owner.weigh(strict=False)


def test_a_run_under_a_real_grant_does_not_go_on_under_its_own(owner):
    grant = owner.grant()
    blobs = ordered(owner.job)
    leave = owner.weigh("run-1", blobs=blobs, strict=False)
    owner.consent.release("run-1")
    owner.consent.revoke(grant, "enough", log=LOG)
    with refused("revoked"):
        owner.weigh("run-1", blobs=blobs, strict=False, began=(leave.order, leave.grant.id))


# ---- looking


def test_looking_sets_nothing_aside_and_needs_the_same_grant(owner):
    wanted, view = owner.wanted(owner.job), owner.job.public()
    look = lambda blobs: owner.consent.look(wanted, view=view, log=LOG, blobs=blobs, now=NOW)  # noqa: E731
    with refused("none"):
        look(ordered(owner.job, look=True))
    owner.grant(uses=1)
    look(ordered(owner.job, look=True))
    with refused("order"):  # an order to run is not for looking, nor the other way round
        look(ordered(owner.job))
    with refused("grantee"):
        look({})
    assert owner.consent.uses() == () and owner.weigh().new
    with refused("uses"):
        look(ordered(owner.job, look=True))


# ---- requests and answers


def test_a_request_is_answered_once_by_yes_or_no(owner):
    asked = owner.ask()
    assert [waiting.digest for waiting in owner.consent.waiting()] == [asked]
    owner.consent.approve(asked[:8], log=LOG)
    assert owner.consent.waiting() == ()
    with pytest.raises(UsageError, match="0 such requests"):
        owner.consent.approve(asked, log=LOG)
    second = owner.ask(uses=1)
    owner.consent.deny(second, "not this year", log=LOG)
    assert owner.consent.waiting() == ()


def test_an_approval_may_only_take_away(owner):
    asked = owner.ask()
    for wider in (
        {"uses": 3}, {"epsilon": 10_000_001}, {"until": END + 1}, {"since": NOW - 1}, {"receivers": ("eve",)},
        {"kinds": ("psi",)}, {"algorithms": ("*",)},
    ):  # fmt: skip
        with pytest.raises(UsageError, match="wider"):
            owner.consent.approve(asked, log=LOG, **wider)
    statement = owner.consent.approve(asked, log=LOG, uses=1, epsilon=0, until=END - 1, receivers=("bureau",))
    terms = Approval.from_dict(statement.body).grant.terms
    assert (terms.uses, terms.epsilon, terms.not_after, terms.receivers) == (1, 0, END - 1, ("bureau",))


def test_who_has_no_say_is_not_heard(owner):
    foreign = GrantRequest(owner.terms()).sign(EVE, log=LOG)
    with pytest.raises(BadMessage):
        owner.consent.receive(foreign, EVE.card)
    elsewhere = GrantRequest(dataclasses.replace(owner.terms(), owner="bureau")).sign(LAB, log=LOG)
    with pytest.raises(UsageError, match="does not concern"):
        owner.consent.receive(elsewhere, LAB.card)
    grant = owner.grant()
    with pytest.raises(BadSignature):
        owner.consent.receive(Revocation(grant, "x").sign(EVE, log=LOG), LAB.card)
    owner.consent.receive(Revocation(grant, "x").sign(EVE, log=LOG), EVE.card)  # kept, and counts for nothing
    assert owner.weigh().new


def test_a_chain_signs_in_turn_and_the_owner_last(owner, tmp_path):
    owner.consent.end_standing(log=LOG)
    board = Owner(tmp_path, "board")
    request = GrantRequest(owner.terms()).sign(LAB, log=LOG)
    chain = [Signer.of(board.identity.card), Signer.of(owner.identity.card)]
    for who in (owner, board):
        who.consent.store.keep(request, LAB.card, log=LOG)
    with pytest.raises(UsageError, match="board signs first"):
        owner.consent.approve(request.digest, log=LOG, chain=chain[:1])
    first = board.consent.approve(request.digest, log=LOG, chain=chain)
    owner.consent.receive(first, board.identity.card)
    with refused("approvals"):
        owner.weigh()
    id = Approval.from_dict(first.body).grant.id
    owner.consent.sign(id, log=LOG)
    assert owner.weigh().grant.id == id
    with pytest.raises(UsageError, match="waits for nobody"):
        owner.consent.sign(id, log=LOG)


# ---- roles that others claim


def profile(*roles, by=LAB, time=1, log=LOG):
    return Profile(by.card.fingerprint, tuple(sorted(roles)), "", "", time).sign(by, log=log)


def show(owner, *roles, by=LAB, **changes):
    assert owner.consent.receive(profile(*roles, by=by, **changes), by.card) == by.card.fingerprint


def look(owner, by=LAB):
    blobs = ordered(owner.job, by, look=True)
    owner.consent.look(owner.wanted(owner.job), view=owner.job.public(), log=LOG, blobs=blobs, now=NOW)


def refused_for_role(act):
    with pytest.raises(NotGranted) as caught:
        act()
    text = "role: lab (receiver, auditor) may not submit or check a job; allowed: model-owner"
    assert str(caught.value) == text


def test_an_order_beyond_the_claimed_roles_opens_nothing_whatever_grant_there_is(owner):
    owner.grant()
    owner.consent.standing("credit", ["horizontal"], log=LOG)
    show(owner, "auditor", "receiver")
    for strict in (True, False):
        refused_for_role(lambda strict=strict: owner.weigh(strict=strict))
    refused_for_role(lambda: look(owner))
    assert owner.consent.uses() == ()
    show(owner, "auditor", "model-owner", time=2)
    look(owner)
    assert owner.weigh().new


def test_a_refusal_for_a_role_travels_with_its_topic(owner):
    owner.grant()
    show(owner, "auditor")
    with refused("role"):
        owner.weigh()
    with refused("role"):
        look(owner)


def test_a_local_job_beyond_its_submitters_roles_signs_itself_no_grant(tmp_path):
    owner = Owner(tmp_path)
    show(owner, "auditor", "receiver")
    refused_for_role(lambda: owner.weigh(strict=False))
    assert owner.consent.grants() == ()
    assert owner.weigh(strict=False, blobs=ordered(owner.job, EVE)).new  # of whom nothing is known


def test_a_run_that_had_its_use_is_told_again_and_one_under_way_does_not_come_back(owner):
    owner.grant()
    over, on = ordered(owner.job), ordered(owner.job)
    owner.weigh("run-1", blobs=over)
    owner.consent.done("run-1")
    owner.weigh("run-2", blobs=on)
    show(owner, "auditor", "receiver")
    assert owner.weigh("run-1", blobs=over, began=_began(over, owner)).over
    refused_for_role(lambda: owner.weigh("run-2", blobs=on, began=_began(on, owner)))


def test_an_older_profile_shown_later_gives_no_right_back(owner):
    owner.grant()
    show(owner, "auditor", "receiver", time=5)
    for time in (1, 4, 5):
        show(owner, "model-owner", time=time)
        refused_for_role(owner.weigh)
    again = Owner(owner.path.parent)  # it is kept
    refused_for_role(again.weigh)
    show(again, "model-owner", time=6)
    assert owner.weigh().new


def test_a_profile_that_its_holder_did_not_sign_for_this_card_is_not_believed(owner):
    owner.grant()
    show(owner, "auditor", "receiver")
    stolen = Statement(**{**profile("model-owner", time=9).to_dict(), "sig": "00" * 64})
    body = profile("model-owner", time=9).body
    impostor = Identity.create("lab")
    for kind, statement, card in (
        (BadSignature, stolen, LAB.card),
        (BadSignature, profile("model-owner", time=9), EVE.card),
        (BadSignature, Statement.make(impostor, log=LOG, kind="profile", run="", body=body), LAB.card),
        (WrongKey, Statement.make(impostor, log=LOG, kind="profile", run="", body=body), impostor.card),
        (WrongKey, Statement.make(EVE, log=LOG, kind="profile", run="", body=body), EVE.card),
        (BadMessage, Statement.make(LAB, log=LOG, kind="profile", run="run-1", body=body), LAB.card),
        (BadMessage, Statement.make(LAB, log=LOG, kind="profile", run="", body={**body, "contact": "\n"}), LAB.card),
    ):
        with pytest.raises(kind):
            owner.consent.receive(statement, card)
    refused_for_role(owner.weigh)


def test_a_profile_of_another_log_counts_in_that_log_only(owner):
    owner.grant()
    show(owner, "auditor", log="fedseal/" + "0" * 16)
    assert owner.weigh().new
    show(owner, "auditor", "receiver")
    show(owner, "model-owner", time=9, log="fedseal/" + "0" * 16)
    refused_for_role(lambda: owner.weigh("run-2"))


def test_the_roles_of_a_key_that_ended_are_forgotten_and_not_taken_again(owner):
    show(owner, "auditor")
    show(owner, "model-owner", by=EVE)
    owner.consent.distrust(LAB.card.fingerprint)
    show(owner, "model-owner", time=2)
    held = ConsentFolder(owner.path / "consent").read()
    assert {log: set(known) for log, known in held.claims.items()} == {LOG: {EVE.card.fingerprint}}


def test_a_request_beyond_the_claimed_roles_is_not_kept(owner):
    show(owner, "data-owner")
    with pytest.raises(RefusedError, match=r"lab \(data-owner\) may not ask for a grant; allowed: model-owner"):
        owner.ask()
    assert owner.consent.waiting() == ()
    owner.ask(EVE)
    show(owner, "data-owner", "model-owner", time=2)
    owner.ask()
    assert len(owner.consent.waiting()) == 2


def test_claims_are_bounded_and_the_newest_stay(owner, monkeypatch):
    monkeypatch.setattr(consent_folder, "MAX_CLAIMS", 3)
    people = [Identity.create(f"p{n}") for n in range(6)]
    for number in (3, 1, 5, 2, 4, 0):  # the order in which they are shown
        show(owner, "auditor", by=people[number], time=number)
    for number in range(6):
        show(owner, "auditor", by=people[number], time=number)
    known = ConsentFolder(owner.path / "consent").read().claims[LOG]
    assert set(known) == {person.card.fingerprint for person in people[3:]}


def test_an_owners_file_from_before_profiles_is_read(owner):
    path = owner.path / "consent" / "owner.json"
    owner.grant()
    table = canonical.decode(path.read_bytes())
    del table["claims"]
    path.write_bytes(canonical.encode(table))
    assert owner.weigh().new
    show(owner, "auditor", "receiver")
    refused_for_role(lambda: owner.weigh("run-2"))


CARD = LAB.card.fingerprint


@pytest.mark.parametrize(
    "claims",
    [
        [], "x", 7, {LOG: []}, {LOG: {CARD: []}}, {LOG: {CARD: [1]}}, {LOG: {CARD: [1, "king"]}}, {LOG: {CARD: 1}},
        {LOG: {CARD: ["1", "auditor"]}}, {LOG: {CARD: [True, "auditor"]}}, {LOG: {CARD: [-1, "auditor"]}},
        {LOG: {"ab": [1, "auditor"]}}, {LOG: {CARD: [1, ["auditor"]]}}, {LOG: {CARD: {"1": "auditor"}}},
        {LOG: {CARD: "1a"}},
    ],
    ids=lambda claims: str(claims).replace(LOG, "LOG").replace(CARD, "CARD"),
)  # fmt: skip
def test_damaged_claims_open_nothing_and_are_not_written_over(owner, claims):
    owner.grant()
    path = owner.path / "consent" / "owner.json"
    path.write_bytes(canonical.encode({**canonical.decode(path.read_bytes()), "claims": claims}))
    before = path.read_bytes()
    for act in (owner.weigh, lambda: look(owner), lambda: show(owner, "model-owner", time=9)):
        with pytest.raises(UsageError, match=r"owner\.json: damaged; allowed: the file of a backup"):
            act()
    assert path.read_bytes() == before and owner.consent.uses() == ()


@given(
    st.lists(
        st.tuples(st.sampled_from([LAB, EVE]), st.sets(st.sampled_from(sorted(Role)), min_size=1), st.integers(0, 5)),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_what_is_known_is_the_newest_in_whatever_order_it_was_shown(shown):
    held = Held()
    for who, roles, time in shown:
        said = Profile(who.card.fingerprint, tuple(sorted(roles)), "", "", time)
        if held.news(said, LOG):
            held.take(said, LOG)
    held = Held.decode(held.encode(), Path("owner.json"))
    for who in (LAB, EVE):
        times = [time for one, _, time in shown if one is who]
        claim = held.claims.get(LOG, {}).get(who.card.fingerprint)
        first = next((roles for one, roles, time in shown if one is who and time == max(times)), None)
        assert (claim and claim.held) == first and (claim and claim.time) == max(times, default=None)


# ---- the catalog


def test_a_card_must_be_later_than_the_one_before_and_ones_own(owner):
    with pytest.raises(UsageError, match="out of order"):
        owner.publish()
    with pytest.raises(UsageError, match="its owner"):
        owner.publish(owner="bureau", published=500)
    owner.publish(published=500, version="cd" * 32)
    listing = owner.consent.listing("credit")
    assert listing.card.published == 500 and listing.versions == (VERSION, "cd" * 32)


def test_data_are_known_by_their_place(owner, tmp_path):
    file = tmp_path / "x.csv"
    owner.consent.publish(dataclasses.replace(owner.consent.listing("credit").card, published=900), log=LOG,
                          place=place_of(file))  # fmt: skip
    assert owner.consent.dataset_at(place_of(tmp_path / "." / "x.csv"), "other") == "credit"
    assert owner.consent.dataset_at(place_of(tmp_path / "y.csv"), "other") == "other"


def test_a_place_does_not_hold_a_password():
    one, other = (SqlSource(f"postgresql://ann:{word}@db/x", "SELECT 1") for word in ("secret", "changed"))
    assert place_of(one) == place_of(other) != place_of(SqlSource(one.url, "SELECT 2"))


def test_a_version_is_of_the_content_under_the_owners_key(tmp_path):
    file, key = tmp_path / "x.csv", b"k" * 32
    file.write_bytes(b"a,b\n1,2\n")
    first = version_of(file, key)
    assert first == version_of(file, key) != version_of(file, b"j" * 32)
    file.write_bytes(b"a,b\n1,3\n")
    assert version_of(file, key) != first


# ---- words


def test_receivers_of_each_kind_of_job():
    of = lambda job: Wanted.of(job, owner="bank", dataset="credit").receivers  # noqa: E731
    assert of(job_of()) == ("bureau", "clinic")
    assert of(job_of(**{"train.receivers": ["agency"], "train.publish": True})) == (
        "bureau", "clinic", "agency", COORDINATOR.name,
    )  # fmt: skip
    assert of(job_of("psi")) == ("bureau",) and of(job_of("psi", **{"psi.receivers": ["bank"]})) == ()


def test_code_is_known_by_its_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "c2_model_of_a_test.py"
    file.write_text("x = 1")
    first = code_digest(["c2_model_of_a_test:build"])
    file.write_text("raise SystemExit")  # not even run
    assert code_digest(["c2_model_of_a_test:build"]) != first != code_digest(["c2_model_of_a_test:other"])
    assert len(code_digest(["no.such.module:x"])) == 64


@given(st.text(max_size=80), st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_words_are_names_and_differ_where_texts_do(one, other):
    from fl_core.trust.fields import check_named

    assert check_named(word_of(one), "word")
    assert (word_of(one) == word_of(other)) == (one == other)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "uses": st.integers(1, 4), "epsilon": st.integers(0, 20_000_000), "not_after": st.integers(NOW + 1, END + 5),
            "receivers": st.sampled_from([(), ("bureau",), ("eve",), ("clinic", "bureau")]),
            "private_only": st.booleans(), "version": st.sampled_from(["", VERSION]),
        },
    )
)  # fmt: skip
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_narrowed_terms_never_cover_more(tmp_path, changes):
    asked = Owner(tmp_path).terms()
    try:
        terms = narrowed(asked, **changes)
    except UsageError:
        return
    assert terms.uses <= asked.uses and terms.epsilon <= asked.epsilon and terms.not_after <= asked.not_after
    assert set(terms.receivers) <= set(asked.receivers) and asked.not_before <= terms.not_before


def test_topics_are_known_words_only():
    assert topics_of("uses: 2 used; allowed: 2; time: over; secret: 5; budget") == ("budget", "time", "uses")


def test_the_owners_files_are_canonical_and_private(owner):
    owner.grant()
    path = owner.path / "consent" / "owner.json"
    canonical.decode(path.read_bytes())
    assert path.stat().st_mode & 0o077 == 0 and (owner.path / "grants.db").stat().st_mode & 0o077 == 0


def test_a_new_key_of_the_owner_signs_a_standing_grant_of_its_own(owner):
    owner.consent.standing("credit", ["horizontal"], log=LOG)
    owner.identity = Identity.create("bank")
    owner.consent = Consent(owner.path, owner.identity)
    with refused("owner"):
        owner.weigh()
    owner.consent.standing("credit", ["horizontal"], log=LOG, first=True)
    assert owner.weigh().grant.approvals == (Signer.of(owner.identity.card),)
    owner.consent.end_standing(log=LOG)
    with pytest.raises(NotGranted):
        owner.weigh("run-2")
