"""Keys that a coordinator shows as ended: what it shows of its log, and what of a hostile one's counts."""

from __future__ import annotations

import itertools

import pytest

from fl_core.errors import BadMessage, BadSignature, IntegrityError, WrongKey
from fl_core.messages import MAX_HEAD, Packet
from fl_core.trust import canonical, rotation_shown
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Statement
from fl_core.trust.fields import MAX_TEXT
from fl_core.trust.identity import Identity
from fl_core.trust.rotation import MAX_SHOWN, Revoked, rotate
from fl_core.trust.rotation_shown import MAX_SHOWN_BYTES, ended_shown, ends_of

COORDINATOR, ANN, BOB, NEW = (Identity.create(name) for name in ("coordinator", "ann", "bob", "ann"))
LOG = log_id(COORDINATOR.card)
OTHER_LOG = "fedseal/" + "0" * 16


def revoked(by, name, card, log=LOG):
    return Revoked(name, card.fingerprint, "stolen").sign(by, log=log)


def item(statement, card):
    return {"card": card.to_dict(), "statement": statement.to_dict()}


def ended(*items):
    return ended_shown(list(items), log=LOG, coordinator=COORDINATOR.card)


def test_a_ledger_shows_its_revocations_and_rotations_in_order_and_all_count(scenario):
    ledger, parties = scenario.ledger, scenario.parties
    assert ends_of(ledger) == []
    new = Identity.create("bank_a")
    ledger.commit([rotate(parties["bank_a"], new, log=ledger.log)])
    ledger.commit([revoked(parties["bank_b"], "bank_b", parties["bank_b"].card, ledger.log)])
    ledger.commit([revoked(scenario.coordinator, "bank_a", new.card, ledger.log)])
    shown = ends_of(ledger)
    assert [one["statement"]["kind"] for one in shown] == ["rotate", "revoke", "revoke"]
    found = ended_shown(shown, log=ledger.log, coordinator=scenario.coordinator.card)
    assert found == {card.fingerprint for card in (parties["bank_a"].card, parties["bank_b"].card, new.card)}
    assert parties["bank_c"].card.fingerprint not in found


def test_only_the_newest_are_shown(scenario, monkeypatch):
    monkeypatch.setattr(rotation_shown, "MAX_SHOWN", 2)
    keys = [scenario.parties["bank_a"], *(Identity.create("bank_a") for _ in range(3))]
    turns = [rotate(old, new, log=scenario.ledger.log) for old, new in itertools.pairwise(keys)]
    scenario.ledger.commit(turns)
    assert [one["statement"] for one in ends_of(scenario.ledger)] == [turn.to_dict() for turn in turns[1:]]


def test_the_most_of_the_longest_fit_a_message():
    """So that an honest coordinator's list is never refused for its size."""
    name = "n" * 64
    one, two = Identity.create(name), Identity.create(name)
    longest = [
        item(Revoked(name, one.card.fingerprint, "\U0001f511" * MAX_TEXT, name).sign(one, log=LOG), one.card),
        item(Revoked(name, one.card.fingerprint, '"' * MAX_TEXT, name).sign(one, log=LOG), one.card),
        item(rotate(one, two, log=LOG), one.card),
    ]
    most = max(len(canonical.encode(held)) for held in longest) + 1
    assert most * MAX_SHOWN < MAX_SHOWN_BYTES < MAX_HEAD - (1 << 20)


def test_nothing_shown_ends_nothing():
    assert ended() == frozenset()


FORGED = {
    "by a stranger under the name": (item(revoked(NEW, "ann", ANN.card), NEW.card), WrongKey),
    "by another party": (item(revoked(BOB, "ann", ANN.card), BOB.card), WrongKey),
    "beside a card that did not sign it": (item(revoked(BOB, "ann", ANN.card), ANN.card), BadSignature),
    "beside the coordinator's card": (item(revoked(BOB, "ann", ANN.card), COORDINATOR.card), BadSignature),
    "beside a card of the same name": (item(revoked(NEW, "ann", ANN.card), ANN.card), BadSignature),
    "by another coordinator": (
        item(revoked(other := Identity.create("coordinator"), "ann", ANN.card), other.card), WrongKey),
    "of another log": (item(revoked(ANN, "ann", ANN.card, OTHER_LOG), ANN.card), BadMessage),
    "of the card under another name": (item(revoked(ANN, "bob", ANN.card), ANN.card), WrongKey),
    "of another card of the name": (item(revoked(ANN, "ann", NEW.card), ANN.card), WrongKey),
    "of the coordinator's name": (item(revoked(COORDINATOR, "coordinator", ANN.card), COORDINATOR.card), WrongKey),
    "of the coordinator's card": (item(revoked(COORDINATOR, "ann", COORDINATOR.card), COORDINATOR.card), WrongKey),
    "a rotation by the new key only": (
        item(Statement.make(NEW, log=LOG, kind="rotate", run="", body=rotate(ANN, NEW, log=LOG).body), NEW.card),
        WrongKey),
    "a rotation that another signs": (item(rotate(ANN, NEW, log=LOG), BOB.card), BadSignature),
    "a rotation of another log": (item(rotate(ANN, NEW, log=OTHER_LOG), ANN.card), BadMessage),
    "a rotation of the coordinator": (
        item(rotate(COORDINATOR, Identity.create("coordinator"), log=LOG), COORDINATOR.card), WrongKey),
    "another kind": (item(Statement.make(ANN, log=LOG, kind="card", run="", body={}), ANN.card), BadMessage),
    "of a run": (
        item(Statement.make(ANN, log=LOG, kind="revoke", run="r", body=revoked(ANN, "ann", ANN.card).body), ANN.card),
        BadMessage),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_end_is_refused_with_all_that_came_with_it(name):
    good, (forged, error) = item(revoked(BOB, "bob", BOB.card), BOB.card), FORGED[name]
    assert ended(good) == {BOB.card.fingerprint}
    for shown in ([forged], [good, forged], [forged, good]):
        with pytest.raises(error):
            ended(*shown)


def test_half_a_rotation_ends_nothing():
    """The new key's signature of another rotation."""
    body = {**rotate(ANN, NEW, log=LOG).body, "sig": rotate(ANN, Identity.create("ann"), log=LOG).body["sig"]}
    with pytest.raises(BadSignature):
        ended(item(Statement.make(ANN, log=LOG, kind="rotate", run="", body=body), ANN.card))


@pytest.mark.parametrize(
    "shown",
    ["x", {}, 7, [1], [[]], [{}], [{"card": {}, "statement": {}}], [{"card": ANN.card.to_dict()}],
     [{**item(revoked(ANN, "ann", ANN.card), ANN.card), "more": 1}]],
    ids=["text", "object", "number", "numbers", "lists", "nothing", "empty", "card alone", "more"],
)  # fmt: skip
def test_what_is_malformed_is_refused(shown):
    with pytest.raises(BadMessage):
        ended_shown(shown, log=LOG, coordinator=COORDINATOR.card)


def test_too_many_and_too_large_are_refused_before_anything_is_verified(monkeypatch):
    monkeypatch.setattr(rotation_shown, "_end", lambda *_: pytest.fail("read"))
    good = item(revoked(ANN, "ann", ANN.card), ANN.card)
    with pytest.raises(BadMessage, match=f"at most {MAX_SHOWN}"):
        ended(*[good] * (MAX_SHOWN + 1))
    with pytest.raises(BadMessage, match="bytes"):
        ended({"card": "x" * MAX_SHOWN_BYTES, "statement": {}})


def test_any_byte_that_changes_is_noticed():
    """Every leaf of what is shown is under a signature."""
    shown = item(rotate(ANN, NEW, log=LOG), ANN.card)

    def leaves(value, path=()):
        if isinstance(value, dict):
            for key, held in value.items():
                yield from leaves(held, (*path, key))
        else:
            yield path, value

    for path, value in list(leaves(shown)):
        for bad in (value + 1,) if isinstance(value, int) else (value[:-1] + ("0" if value[-1:] != "0" else "1"),):
            changed = canonical.decode(canonical.encode(shown))
            at = changed
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = bad
            with pytest.raises(IntegrityError):
                ended(changed)


def test_what_all_parties_are_shown_is_verified_once_in_a_process_and_a_forgery_after_it_is_refused(monkeypatch):
    good, checked = item(revoked(ANN, "ann", ANN.card), ANN.card), []
    real = Statement.verify
    monkeypatch.setattr(Statement, "verify", lambda self, card: checked.append(self.by) or real(self, card))
    rotation_shown._ended.cache_clear()
    for _ in range(3):
        packet = Packet(revoked(COORDINATOR, "x", ANN.card), {}, {"ended": [good]})
        assert ended(*Packet.from_arrays(packet.to_arrays()).extra["ended"]) == {ANN.card.fingerprint}
    assert checked == ["ann"]
    forged = {**good, "statement": {**good["statement"], "sig": revoked(BOB, "bob", BOB.card).sig}}
    for _ in range(2):
        with pytest.raises(BadSignature):
            ended(forged)
    with pytest.raises(BadMessage):  # and neither is what is right for one log taken for another
        ended_shown([good], log=OTHER_LOG, coordinator=COORDINATOR.card)
