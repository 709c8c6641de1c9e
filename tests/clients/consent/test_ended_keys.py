"""A node hears of ended keys with each job: nothing is opened under one, and a coordinator's own words end nothing else."""

from __future__ import annotations

import time

import pytest

from clients.consent.folder import ConsentFolder
from fl_core import messages
from fl_core.errors import BadMessage, BadSignature, DataError, IntegrityError, WrongKey
from fl_core.job import public_digest
from fl_core.messages import Packet, digests
from fl_core.trust import canonical
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.roster import Roster
from fl_core.trust.rotation import MAX_SHOWN, Revoked, rotate
from fl_core.trust.rotation_shown import MAX_SHOWN_BYTES
from tests.clients.consent.test_decision import refused
from tests.clients.owners import COORDINATOR, EVE, LAB, LOG, job_of, ordered
from tests.clients.test_hostile_coordinator import OTHER, OWN, RUN, Node, of

BUREAU, CLINIC = Identity.create("bureau"), Identity.create("clinic")
STEPS = [messages.JOIN, messages.CHECK]


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


@pytest.fixture
def entered(monkeypatch):
    """How often somebody opened the data, which are none."""
    count = []
    for role in ("clients.training.Training", "clients.session.Attendance"):
        monkeypatch.setattr(f"{role}.enter", lambda self: count.append("bank") or "ab" * 32)
        monkeypatch.setattr(f"{role}.previewed", lambda self: count.append("bank") or {"schema": "", "classes": ""})
    return count


def shown(by, statement):
    return {"card": by.card.to_dict(), "statement": statement.to_dict()}


def revoked(of, by=None, log=LOG, name=None):
    by = by or of
    return shown(by, Revoked(name or of.name, of.card.fingerprint, "stolen").sign(by, log=log))


def turned(old, new=None):
    return shown(old, rotate(old, new or Identity.create(old.name), log=LOG))


def distrusted(node):
    return ConsentFolder(node.owner.path / "consent").read().revoked_keys


def join(node, job, *ended, by=LAB, run=RUN, step=messages.JOIN, blobs=None):
    blobs = blobs or ordered(job, by, time=int(time.time() * 1000), look=step == messages.CHECK)
    own = {"job": canonical.encode(job.public()), "own": canonical.encode(OWN[job.kind]), **blobs}
    return node.ask(step, own, run, {"ended": list(ended)} if ended else None, job=public_digest(job.public()))


def sign(node, job, *others, extra=None):
    """Ask the bank to sign a roster of itself and of others, whose keys the coordinator may have stolen."""
    body = {"job": public_digest(job.public()), "ephemeral": "00" * 32, "role": "party"}
    mine = Statement.from_dict(node.party().state.facts["join"])
    joins = [(other.card, Statement.make(other, log=LOG, kind="join", run=RUN, body=body)) for other in others]
    roster = Roster.from_joins([(node.owner.identity.card, mine), *joins])
    return node.ask(messages.ROSTER, {"roster": roster.text}, RUN, extra, roster=roster.digest)


# ---- orders


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["horizontal", "psi", "vertical"])
@pytest.mark.parametrize("by", [LAB, COORDINATOR], ids=["itself", "the coordinator"])
def test_a_grantee_whose_key_was_revoked_after_the_approval_opens_nothing(node, entered, kind, step, by):
    job = of(kind)
    node.grant(job)
    with refused("keys"):
        join(node, job, revoked(LAB, by), step=step)
    assert entered == [] and node.owner.consent.uses() == ()
    assert distrusted(node) == {LAB.card.fingerprint}
    with refused("keys"):  # and a coordinator that hides it afterwards changes nothing
        join(node, job, step=step)
    assert entered == []


@pytest.mark.parametrize("step", STEPS)
def test_a_rotation_that_is_shown_ends_the_old_keys_orders(node, entered, step):
    job = of("psi")
    node.grant(job)
    with refused("keys"):
        join(node, job, turned(LAB), step=step)
    assert entered == []


@pytest.mark.parametrize("step", STEPS)
def test_with_nothing_shown_a_job_goes_on_as_before(node, entered, step):
    """An older coordinator, or one whose log has none; and ends of others' keys hinder nobody."""
    job = of("psi")
    node.grant(job)
    join(node, job, step=step)
    node.forget()
    join(node, job, revoked(EVE), turned(CLINIC), run=OTHER, step=step)
    assert entered == ["bank", "bank"]


def test_a_run_under_way_does_not_come_back_under_a_key_that_ended_since(node, entered):
    job = of("psi")
    node.grant(job)
    blobs = ordered(job, time=int(time.time() * 1000))
    join(node, job, blobs=blobs)
    node.forget()
    with refused("keys"):
        join(node, job, revoked(LAB), blobs=blobs)
    assert entered == ["bank"]


def test_an_approver_whose_key_ended_ends_the_grant(node, entered):
    """The owner's own, when its operator revokes it before the owner hears of the theft."""
    job = of("psi")
    node.grant(job)
    with refused("keys"):
        join(node, job, revoked(node.owner.identity, COORDINATOR))
    assert entered == []


def test_a_standing_node_refuses_orders_of_a_key_that_it_meets_as_ended(tmp_path, entered):
    node, job = Node(tmp_path, consent="standing"), of("psi")
    with refused("keys"):
        join(node, job, revoked(EVE), by=EVE)
    assert entered == []
    join(node, job, by=LAB)
    assert entered == ["bank"]


# ---- what a coordinator makes up


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("forged", "error"),
    [
        (revoked(LAB, EVE), WrongKey),
        (revoked(LAB, Identity.create("lab")), WrongKey),
        (revoked(LAB, Identity.create("coordinator")), WrongKey),
        (revoked(LAB, log="fedseal/" + "0" * 16), BadMessage),
        (revoked(LAB, name="bureau"), WrongKey),
        ({**revoked(LAB, EVE), "card": LAB.card.to_dict()}, BadSignature),
        ({**revoked(LAB, EVE), "card": COORDINATOR.card.to_dict()}, BadSignature),
        ({**turned(LAB), "card": EVE.card.to_dict()}, BadSignature),
        (shown(EVE, Statement.make(EVE, log=LOG, kind="rotate", run="", body=rotate(LAB, Identity.create("lab"), log=LOG).body)), WrongKey),
    ],
    ids=["a stranger's", "of the same name", "another coordinator's", "of another log", "card and name", "beside the "
         "card", "beside the coordinator's", "a rotation beside another card", "a rotation by another"],
)  # fmt: skip
def test_a_forged_end_refuses_the_message_and_ends_nothing(node, entered, forged, error, step):
    """Not even what came with it and verifies."""
    job = of("psi")
    node.grant(job)
    for ended in ([forged], [revoked(LAB), forged]):
        with pytest.raises(error):
            join(node, job, *ended, step=step)
        assert distrusted(node) == set() and entered == []
    join(node, job, step=step)
    assert entered == ["bank"]


@pytest.mark.parametrize("ended", [7, "x", {}, [0], [revoked(LAB)] * (MAX_SHOWN + 1), ["x" * MAX_SHOWN_BYTES]],
                         ids=["number", "text", "table", "numbers", "many", "huge"])  # fmt: skip
def test_a_list_that_is_none_or_too_long_is_refused(node, entered, ended):
    job = of("psi")
    node.grant(job)
    blobs = {"job": canonical.encode(job.public()), "own": canonical.encode(OWN["psi"]), **ordered(job)}
    with pytest.raises(BadMessage):
        node.ask(messages.JOIN, blobs, RUN, {"ended": ended}, job=public_digest(job.public()))
    assert distrusted(node) == set() and entered == []


def test_nobody_but_the_coordinator_shows_a_node_anything(node):
    """What is shown is read when the request itself has been authenticated."""
    job = of("psi")
    node.grant(job)
    blobs = {"job": canonical.encode(job.public()), "own": canonical.encode(OWN["psi"]), **ordered(job)}
    body = {"job": public_digest(job.public()), "step": messages.JOIN, "to": "bank", "blobs": digests(blobs)}
    statement = Statement.make(EVE, log=LOG, kind="request", run=RUN, body=body)
    with pytest.raises(IntegrityError):
        extra = {"coordinator": COORDINATOR.card.to_dict(), "ended": [revoked(LAB)]}
        node.party().answer(messages.JOIN, Packet(statement, blobs, extra))
    assert distrusted(node) == set()


def test_keys_made_to_be_revoked_fill_no_file(node, entered):
    job = of("psi")
    node.grant(job)
    join(node, job, *(revoked(Identity.create(name)) for name in ["x", "lab"] * 50))
    assert distrusted(node) == set() and entered == ["bank"]


def test_pins_stay_where_the_coordinator_revokes_by_its_own_word(node, entered):
    """Or it would bring a card of its own in next."""
    job = of("psi")
    node.grant(job)
    node.party().store.cards.pin(BUREAU.card)
    join(node, job, revoked(BUREAU, COORDINATOR))
    assert distrusted(node) == {BUREAU.card.fingerprint}
    with pytest.raises(WrongKey, match="pinned is"):
        sign(node, job, Identity.create("bureau"))
    assert node.party().store.cards.get("bureau") == BUREAU.card


# ---- rosters


@pytest.mark.parametrize("ended", [revoked(BUREAU), revoked(BUREAU, COORDINATOR), turned(BUREAU)],
                         ids=["by itself", "by the coordinator", "rotated"])  # fmt: skip
def test_a_roster_with_an_ended_card_is_not_signed(node, entered, ended):
    job = of("psi")
    node.grant(job)
    node.party().store.cards.pin(BUREAU.card)
    join(node, job, ended)
    with pytest.raises(WrongKey, match="card of bureau that was rotated or revoked"):
        sign(node, job, BUREAU)
    assert "roster" not in node.party().state.facts


def test_an_ended_card_that_the_job_pins_is_not_taken_at_first_sight(node, entered):
    job = job_of("psi", **{"party.1.key": BUREAU.card.fingerprint})
    node.grant(job)
    join(node, job, revoked(BUREAU))
    with pytest.raises(WrongKey, match="card of bureau"):
        sign(node, job, BUREAU)
    assert node.party().store.cards.get("bureau") is None


def test_a_roster_with_the_card_that_followed_is_signed(node, entered):
    job, new = of("psi"), Identity.create("bureau")
    node.grant(job)
    node.party().store.cards.pin(BUREAU.card)
    turn = rotate(BUREAU, new, log=LOG)
    join(node, job, shown(BUREAU, turn))
    packet = sign(node, job, new, extra={"rotations": [turn.to_dict()]})
    assert packet.statement.kind == "roster"
    assert node.party().store.cards.get("bureau") == new.card


def test_a_run_does_not_come_back_with_a_party_whose_key_ended_since(node, entered):
    """Its roster is fixed, and not shown again."""
    job = of("psi")
    node.grant(job)
    blobs = ordered(job, time=int(time.time() * 1000))
    join(node, job, blobs=blobs)
    sign(node, job, BUREAU)
    node.forget()
    with pytest.raises(WrongKey, match="card of bureau"):
        join(node, job, revoked(BUREAU), blobs=blobs)
    assert entered == ["bank"]


def test_the_data_were_really_to_be_opened(node):
    """That the others are refused for the reason they name: with real data this job comes as far as the file."""
    job = of("psi")
    node.grant(job)
    with pytest.raises(DataError, match="no-such"):
        join(node, job, revoked(EVE))
