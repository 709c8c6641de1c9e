"""Keys that change and end: half-signed, replayed and foreign rotations, old and revoked keys, whose witness counts."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from fl_core.errors import BadMessage, BadSignature, IntegrityError, WrongKey
from fl_core.trust import canonical
from fl_core.trust.board import rotations_of
from fl_core.trust.checkpoint import cosign
from fl_core.trust.entry import Statement
from fl_core.trust.identity import CardBook, Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_copy import as_file
from fl_core.trust.pack import write_pack
from fl_core.trust.proofs import export_lines, inclusion_proof_document
from fl_core.trust.rotation import Followed, Revoked, follow, follow_shown, new_card, rotate, rotated
from fl_core.trust.verify import verify_inclusion_proof, verify_ledger, verify_pack
from tests.postgres import BOTH, place_for


@pytest.fixture(params=BOTH)
def ledger_place(request, tmp_path):
    return place_for(request, tmp_path)


def key(name="bank_a"):
    return Identity.create(name)


def turn(scenario, new, old=None):
    return rotate(old or scenario.parties[new.name], new, log=scenario.ledger.log)


def card_statement(identity, log):
    return Statement.make(identity, log=log, kind="card", run="", body={"card": identity.card.to_dict()})


def end(identity, name, card, log, reason="stolen", asked=""):
    return Revoked(name, card.fingerprint, reason, asked).sign(identity, log=log)


def say(identity, log, kind="join", run="", **body):
    return Statement.make(identity, log=log, kind=kind, run=run, body=body)


def verdict(scenario):
    return scenario.verify()


def force(scenario, *statements, cosigned=None):
    """What a coordinator that checks nothing writes: entries as they come, under a checkpoint that it signs."""
    ledger = scenario.ledger
    signer = {s.by: s for s in statements}
    assert signer
    ledger._admit = lambda entry, origin, cards: ledger.coordinator
    ledger._check_signature = lambda statement, card: None
    note = ledger.commit(statements)[1]
    del ledger._admit, ledger._check_signature
    if cosigned is not None:
        size = int(note.split("\n")[1])
        with ledger._writing():
            ledger._store.insert("cosignatures", [(size, cosigned.name, cosign(cosigned, note))])
    return verdict(scenario)


# ---- a rotation, and what holds after it


def test_after_a_rotation_the_name_signs_under_the_new_key_only(scenario):
    new, old, ledger = key(), scenario.parties["bank_a"], scenario.ledger
    ledger.commit([say(old, ledger.log, round=0)])
    (entry,), _ = ledger.commit([turn(scenario, new)])
    assert ledger.card("bank_a") == new.card
    with pytest.raises(BadSignature):
        ledger.append([say(old, ledger.log, round=1)])
    ledger.commit([say(new, ledger.log, round=1)])
    assert ledger.card("bank_a", entry.seq) == old.card
    assert ledger.card("bank_a", entry.seq + 1) == new.card
    assert [ledger.signer(e) == old.card for e in ledger.entries() if e.by == "bank_a"] == [True, True, True, False]
    assert verdict(scenario).reason == "valid"


def test_rotation_and_the_first_word_of_the_new_key_fit_in_one_transaction(scenario):
    new, ledger = key(), scenario.ledger
    third = key()
    ledger.commit(
        [turn(scenario, new), say(new, ledger.log), rotate(new, third, log=ledger.log), say(third, ledger.log)]
    )
    assert verdict(scenario).status == 0
    with pytest.raises(BadSignature):
        ledger.append([say(new, ledger.log)])


def test_a_refused_group_with_a_rotation_changes_no_key(scenario):
    ledger, old = scenario.ledger, scenario.parties["bank_a"]
    with pytest.raises(BadSignature):
        ledger.append([turn(scenario, key()), say(old, ledger.log)])
    assert ledger.card("bank_a") == old.card
    ledger.append([say(old, ledger.log)])


def test_another_process_that_had_read_the_old_card_admits_the_new_key(scenario, coordinator):
    new = key()
    with Ledger.open(scenario.path, coordinator) as other:
        assert other.card("bank_a") == scenario.parties["bank_a"].card
        scenario.ledger.commit([turn(scenario, new)])
        assert other.card("bank_a") == new.card
        with pytest.raises(BadSignature):
            other.append([say(scenario.parties["bank_a"], other.log)])
        other.append([say(new, other.log)])


def test_rotation_signed_by_the_old_key_only_is_refused(scenario):
    new, old = key(), scenario.parties["bank_a"]
    full = turn(scenario, new)
    halves = {
        "another key's": {**full.body, "sig": turn(scenario, key()).body["sig"]},
        "the old key's": {**full.body, "sig": rotate(Identity.create("bank_a"), old, log=full.log).body["sig"]},
        "none": {**full.body, "sig": "00" * 64},
    }
    for body in halves.values():
        half = Statement.make(old, log=full.log, kind="rotate", run="", body=body)
        with pytest.raises(BadSignature):
            scenario.ledger.append([half])
        with pytest.raises(BadSignature):
            rotated(half, old.card, log=full.log)
    assert force(scenario, half).status == 1


def test_rotation_signed_by_the_new_key_only_is_refused(scenario):
    """Whoever stands at the door with a fresh key takes no name over."""
    new, old = key(), scenario.parties["bank_a"]
    full = turn(scenario, new)
    taken = Statement.make(new, log=full.log, kind="rotate", run="", body=full.body)
    with pytest.raises(BadSignature):
        scenario.ledger.append([taken])
    with pytest.raises(BadSignature):
        rotated(taken, old.card, log=full.log)
    assert force(scenario, taken).status == 1


def test_rotation_by_nobody_known_is_refused(scenario):
    stranger = Identity.create("mallory")
    with pytest.raises(WrongKey, match="shows no card"):
        scenario.ledger.append([rotate(stranger, Identity.create("mallory"), log=scenario.ledger.log)])


def test_rotation_replayed_on_another_log_is_refused(scenario, make_scenario, tmp_path):
    other = Identity.create("coordinator")
    new, old = key(), scenario.parties["bank_a"]
    statement = turn(scenario, new)
    with Ledger.open(tmp_path / "other.db", other) as ledger:
        ledger.append([card_statement(old, ledger.log)])
        with pytest.raises(BadMessage, match="a statement for"):
            ledger.append([statement])
        # and the new key's signature is of no use under a statement made for the other log
        moved = Statement.make(old, log=ledger.log, kind="rotate", run="", body=statement.body)
        with pytest.raises(BadSignature):
            ledger.append([moved])
        with pytest.raises(BadMessage, match="a rotation for"):
            rotated(statement, old.card, log=ledger.log)


def test_rotation_that_is_played_again_is_refused(scenario):
    first, second = key(), key()
    again = turn(scenario, first)
    scenario.ledger.commit([again, rotate(first, second, log=again.log)])
    with pytest.raises(WrongKey):
        scenario.ledger.append([again])
    assert scenario.ledger.card("bank_a") == second.card
    assert force(scenario, again).status == 1


def test_rotation_to_the_key_of_another_name_is_refused(scenario):
    ledger, old, other = scenario.ledger, scenario.parties["bank_a"], scenario.parties["bank_b"]
    twin = Identity("bank_a", signing_key=other._signing_key, sealing_key=other.sealing_key)
    with pytest.raises(WrongKey, match="shows the key of bank_b"):
        ledger.append([rotate(old, twin, log=ledger.log)])
    with pytest.raises(BadMessage, match="the same name"):
        rotate(old, other, log=ledger.log)
    body = {**rotate(old, twin, log=ledger.log).body, "card": other.card.to_dict()}
    with pytest.raises(BadMessage, match="the same name"):
        ledger.append([Statement.make(old, log=ledger.log, kind="rotate", run="", body=body)])
    assert force(scenario, rotate(old, twin, log=ledger.log)).status == 1


def test_rotation_back_to_a_key_of_before_is_refused_whoever_had_it(scenario):
    ledger, old, new = scenario.ledger, scenario.parties["bank_a"], key()
    ledger.commit([rotate(old, new, log=ledger.log)])
    with pytest.raises(WrongKey, match="rotated or revoked"):
        ledger.append([rotate(new, old, log=ledger.log)])
    as_b = Identity("bank_b", signing_key=old._signing_key, sealing_key=old.sealing_key)
    with pytest.raises(WrongKey, match="rotated or revoked"):
        ledger.append([rotate(scenario.parties["bank_b"], as_b, log=ledger.log)])
    as_new = Identity("bank_z", signing_key=old._signing_key, sealing_key=old.sealing_key)
    with pytest.raises(WrongKey, match="rotated or revoked"):
        ledger.append([card_statement(as_new, ledger.log)])
    with pytest.raises(WrongKey, match="the key that it has"):
        rotate(new, new, log=ledger.log)
    assert force(scenario, rotate(new, old, log=ledger.log)).status == 1


def test_the_coordinators_key_is_the_logs_identity_and_stays(scenario, coordinator):
    ledger = scenario.ledger
    for statement in (
        rotate(coordinator, Identity.create("coordinator"), log=ledger.log),
        end(coordinator, "coordinator", coordinator.card, ledger.log),
    ):
        with pytest.raises(WrongKey, match="the log's identity"):
            ledger.append([statement])
    assert force(scenario, rotate(coordinator, Identity.create("coordinator"), log=ledger.log)).status == 1


@pytest.mark.parametrize("where", ["card", "old", "sig", "run", "extra"])
def test_every_part_of_a_rotation_is_bound(scenario, where):
    full, old = turn(scenario, key()), scenario.parties["bank_a"]
    fresh = turn(scenario, key()).body
    body, run = dict(full.body), ""
    if where == "extra":
        body["more"] = "1"
    elif where == "run":
        run = "run-1"
    else:
        body[where] = fresh[where] if where != "old" else scenario.parties["bank_b"].card.fingerprint
    statement = Statement.make(old, log=full.log, kind="rotate", run=run, body=body)
    with pytest.raises(IntegrityError):
        new_card(statement, old.card)
    with pytest.raises(IntegrityError):
        scenario.ledger.append([statement])
    assert force(scenario, statement).status == 1


def test_ledger_and_verifier_agree_on_random_histories_of_keys(ledger_place, coordinator):
    """The same acts in random order: the ledger takes exactly what a slow model says, and the verifier takes it all."""
    random_ = random.Random(7)
    with Ledger.open(ledger_place, coordinator) as ledger:
        held: dict[str, Identity] = {}
        spent: set[str] = set()
        pool = [Identity.create(name) for name in ("ann", "bob") for _ in range(15)]
        for _ in range(200):
            one, other = random_.choice(pool), random_.choice(pool)
            one = held.get(one.name, one) if random_.random() < 0.6 else one
            act = random_.choice(["card", "say", "rotate", "revoke", "expel"])
            if act == "card":
                statement = card_statement(one, ledger.log)
                fits = held.get(one.name) is one or (one.name not in held and one.card.ed25519 not in spent)
            elif act == "say":
                statement, fits = say(one, ledger.log, round=random_.randrange(9)), held.get(one.name) is one
            elif act == "rotate":
                if one.name != other.name or one is other:
                    continue
                statement = rotate(one, other, log=ledger.log)
                fits = held.get(one.name) is one and other.card.ed25519 not in spent
            else:
                by = one if act == "revoke" else coordinator
                statement = end(by, one.name, one.card, ledger.log)
                fits = held.get(one.name) is one
            try:
                ledger.commit([statement])
                taken = True
            except IntegrityError:
                taken = False
            assert taken is fits, (act, one, other)
            if not taken:
                continue
            if act in ("card", "rotate"):
                held[one.name] = other if act == "rotate" else one
                spent.add(held[one.name].card.ed25519)
            elif act in ("revoke", "expel"):
                del held[one.name]
        assert ledger.size > 40 and len(spent) > 10
        for name in ("ann", "bob"):
            assert ledger.card(name) == (held[name].card if name in held else None)
    with as_file(ledger_place) as path:
        assert verify_ledger(path).reason == "valid"


# ---- witnesses


def test_witnesses_of_before_and_after_a_rotation_count_each_under_its_key(scenario, tmp_path):
    ledger, old, new = scenario.ledger, scenario.parties["bank_a"], key()
    scenario.run("before")
    before = ledger.size
    ledger.commit([turn(scenario, new)])
    scenario.parties = {**scenario.parties, "bank_a": new}
    scenario.run("after")
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b"".join(export_lines(ledger)))
    for report in (verdict(scenario), verify_ledger(lines)):
        assert (report.reason, report.runs["before"].state, report.runs["after"].state) == (
            "valid", "witnessed", "witnessed",
        )  # fmt: skip
    # late, but of a checkpoint that the old key saw
    note = ledger.checkpoint_at(before)
    with pytest.raises(IntegrityError):
        ledger.add_cosignatures(before, {"bank_a": cosign(new, note)})
    ledger.add_cosignatures(before, {"bank_a": cosign(old, note)})


def test_cosignature_by_the_old_key_after_the_rotation_is_refused(scenario):
    ledger, old, new = scenario.ledger, scenario.parties["bank_a"], key()
    note = ledger.commit([turn(scenario, new)])[1]
    with pytest.raises(BadSignature):
        ledger.add_cosignatures(ledger.size, {"bank_a": cosign(old, note)})
    report = force(scenario, say(scenario.coordinator, ledger.log, kind="stop"), cosigned=old)
    assert (report.status, "bank_a" in report.reason) == (1, True)


def test_a_revoked_party_co_signs_nothing_not_even_the_past(scenario):
    ledger, gone = scenario.ledger, scenario.parties["bank_a"]
    note, size = ledger.checkpoint(), ledger.size
    ledger.add_cosignatures(size, {"bank_b": cosign(scenario.parties["bank_b"], note)})
    after = ledger.commit([end(gone, "bank_a", gone.card, ledger.log)])[1]
    for at, text in ((size, note), (ledger.size, after)):
        with pytest.raises(WrongKey):
            ledger.add_cosignatures(at, {"bank_a": cosign(gone, text)})
    report = force(scenario, say(scenario.coordinator, ledger.log, kind="stop"), cosigned=gone)
    assert (report.status, "revoked" in report.reason) == (1, True)


# ---- revocation


@pytest.mark.parametrize("by", ["itself", "the operator"])
def test_nothing_by_a_revoked_name_is_admitted_until_it_shows_a_new_card(scenario, by):
    ledger, gone = scenario.ledger, scenario.parties["bank_a"]
    signer = gone if by == "itself" else scenario.coordinator
    ledger.commit([end(signer, "bank_a", gone.card, ledger.log)])
    assert ledger.card("bank_a") is None
    for statement in (
        say(gone, ledger.log),
        rotate(gone, key(), log=ledger.log),
        end(gone, "bank_a", gone.card, ledger.log),
        card_statement(gone, ledger.log),
    ):
        with pytest.raises(WrongKey):
            ledger.append([statement])
    fresh = key()
    with pytest.raises(WrongKey, match="the operator registers a new one"):
        ledger.append([say(fresh, ledger.log)])
    ledger.commit([card_statement(fresh, ledger.log), say(fresh, ledger.log)])
    assert ledger.card("bank_a") == fresh.card
    assert verdict(scenario).reason == "valid"
    assert force(scenario, say(gone, ledger.log, round=5)).status == 1


def test_nobody_revokes_the_key_of_another_but_the_coordinator(scenario):
    ledger = scenario.ledger
    other = end(scenario.parties["bank_b"], "bank_a", scenario.parties["bank_a"].card, ledger.log)
    with pytest.raises(WrongKey, match="allowed: bank_a or coordinator"):
        ledger.append([other])
    assert force(scenario, other).status == 1


def test_a_revocation_names_the_card_so_that_a_late_one_ends_no_newer_key(scenario):
    ledger, old, new = scenario.ledger, scenario.parties["bank_a"], key()
    late = end(scenario.coordinator, "bank_a", old.card, ledger.log)
    ledger.commit([turn(scenario, new)])
    with pytest.raises(WrongKey, match="revokes card"):
        ledger.append([late])
    assert ledger.card("bank_a") == new.card
    with pytest.raises(WrongKey, match="shows no card"):
        ledger.append([end(scenario.coordinator, "nobody", old.card, ledger.log)])
    assert force(scenario, late).status == 1


@pytest.mark.parametrize(
    "changes",
    [{"reason": ""}, {"reason": "a\nb"}, {"reason": "\x1b[2J"}, {"name": "Bank"}, {"card": "00"}, {"asked": "X"}],
)
def test_malformed_revocations_are_refused(scenario, changes):
    card = scenario.parties["bank_a"].card
    good = Revoked("bank_a", card.fingerprint, "stolen")
    with pytest.raises(BadMessage):
        dataclasses.replace(good, **changes)
    body = {**dataclasses.asdict(good), **changes}
    with pytest.raises(IntegrityError):
        scenario.ledger.append([say(scenario.coordinator, scenario.ledger.log, kind="revoke", run="", **body)])


# ---- proofs and packs


def test_a_proof_of_an_entry_names_the_key_of_its_time(scenario):
    ledger, new = scenario.ledger, key()
    ledger.commit([scenario.say("bank_a", "update", {"round": 0})])
    (turned,), _ = ledger.commit([turn(scenario, new)])
    ledger.commit([say(new, ledger.log)])
    gone = scenario.parties["bank_b"]
    ledger.commit([end(gone, "bank_b", gone.card, ledger.log)])
    for entry in list(ledger.entries()):
        assert verify_inclusion_proof(inclusion_proof_document(ledger, entry.seq)).reason == "valid"
    assert inclusion_proof_document(ledger, turned.seq)["signer"] == scenario.parties["bank_a"].card.to_dict()


@pytest.mark.parametrize("whole", [False, True])
def test_a_pack_of_a_run_before_a_rotation_verifies(scenario, tmp_path, whole):
    scenario.run("run-1")
    gone = scenario.parties["bank_c"]
    scenario.ledger.commit([turn(scenario, key()), end(gone, "bank_c", gone.card, scenario.ledger.log)])
    write_pack(scenario.ledger, "run-1", tmp_path / "pack", whole=whole)
    report = verify_pack(tmp_path / "pack")
    assert (report.reason, report.runs["run-1"].state) == ("valid", "witnessed")


# ---- those who have pinned a card


@pytest.fixture
def chain():
    """Three keys of one name with the rotations from each to the next."""
    keys = [key("ann") for _ in range(3)]
    log = "fedseal/" + "0" * 16
    return keys, [rotate(a, b, log=log) for a, b in itertools.pairwise(keys)], log


def test_pinned_cards_follow_a_rotation_only_when_shown_both_signatures(chain, tmp_path):
    (first, second, third), (one, two), log = chain
    book = CardBook(tmp_path / "cards.json")
    book.pin(first.card)
    with pytest.raises(WrongKey):
        book.pin(second.card)
    stolen = Statement.make(second, log=log, kind="rotate", run="", body=one.body)
    halves = [stolen, Statement.make(first, log=log, kind="rotate", run="", body={**one.body, "sig": two.body["sig"]})]
    for half in halves:
        with pytest.raises(BadSignature):
            follow(book, [half], log=log)
        assert book.get("ann") == first.card
    assert follow(book, [two], log=log) == ()  # not from the pinned card
    assert follow(book, [one, two, one], log=log) == ("ann",)
    assert book.get("ann") == third.card
    with pytest.raises(WrongKey):
        book.pin(first.card)
    assert follow(book, [rotate(key("eve"), key("eve"), log=log)], log=log) == ()
    assert book.get("eve") is None


def test_parties_follow_what_a_coordinator_shows_with_a_roster_and_nothing_that_it_makes(scenario, tmp_path):
    ledger, old, new = scenario.ledger, scenario.parties["bank_a"], key()
    ledger.commit([turn(scenario, new), turn(scenario, key("bank_b"))])
    book = CardBook(tmp_path / "cards.json")
    book.pin(old.card)
    shown = rotations_of(ledger, ["bank_a", "bank_c"])
    assert [fields["by"] for fields in shown] == ["bank_a"]
    lie = {**shown[0], "body": {**shown[0]["body"], "card": key().card.to_dict()}}
    for bad in ("x", {}, [1], [{}], [lie], shown * 1025):
        with pytest.raises(IntegrityError):
            follow_shown(book, bad, log=ledger.log)
        assert book.get("bank_a") == old.card
    assert follow_shown(book, shown, log=ledger.log) == ("bank_a",)
    assert (book.get("bank_a"), follow_shown(book, [], log=ledger.log)) == (new.card, ())


def test_rotations_of_another_log_are_not_followed(chain, tmp_path):
    (first, *_), (one, _), _ = chain
    book = CardBook(tmp_path / "cards.json")
    book.pin(first.card)
    with pytest.raises(BadMessage, match="a rotation for"):
        follow(book, [one], log="fedseal/" + "1" * 16)
    assert book.get("ann") == first.card


def test_a_line_of_cards_is_one_signer_and_a_swapped_card_is_not(chain, tmp_path):
    keys, turns, log = chain
    shown = [(statement, old.card) for statement, old in zip(turns, keys, strict=False)]
    for pinned in keys:
        book = CardBook(tmp_path / f"{pinned.card.fingerprint}.json")
        book.pin(pinned.card)
        followed = Followed(book, shown, log=log)
        for one in keys:
            followed.accept(one.card)
        assert book.get("ann") == keys[-1].card
        with pytest.raises(WrongKey):
            followed.accept(key("ann").card)
    unpinned = Followed(None, shown, log=log)
    unpinned.accept(keys[0].card)
    unpinned.accept(keys[2].card)
    with pytest.raises(WrongKey):
        unpinned.accept(key("ann").card)


def test_rotations_that_do_not_verify_lead_nowhere(chain, tmp_path):
    keys, (one, _), log = chain
    thief = key("ann")
    forged = Statement.make(thief, log=log, kind="rotate", run="", body={**one.body, "card": thief.card.to_dict()})
    book = CardBook(tmp_path / "cards.json")
    book.pin(keys[0].card)
    followed = Followed(book, [(forged, keys[0].card), (forged, thief.card)], log=log)
    with pytest.raises(WrongKey):
        followed.accept(thief.card)
    assert book.get("ann") == keys[0].card


def test_a_circle_of_rotations_ends(tmp_path):
    a, b, log = key("ann"), key("ann"), "fedseal/" + "0" * 16
    turns = [(rotate(a, b, log=log), a.card), (rotate(b, a, log=log), b.card)]
    Followed(CardBook(tmp_path / "cards.json"), turns, log=log).accept(a.card)


def test_replacing_a_pin_needs_the_one_that_is_there(chain, tmp_path):
    (first, second, third), _, _ = chain
    book = CardBook(tmp_path / "cards.json")
    book.pin(first.card)
    for act in (lambda: book.replace(third.card, before=second.card), lambda: book.forget(second.card)):
        with pytest.raises(WrongKey):
            act()
    book.pin(key("bob").card)
    book.forget(first.card)
    assert list(book.all()) == ["bob"]


def test_statements_of_keys_are_canonical_and_small(scenario):
    statement = turn(scenario, key())
    assert canonical.decode(statement.encode()) == statement.to_dict()
    assert len(statement.encode()) < 2048
