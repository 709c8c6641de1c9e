"""Profiles: what nobody may say for another, what an older, foreign or ended one is worth, and what they come to."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import BadMessage, BadSignature, IntegrityError, RefusedError, WrongKey
from fl_core.trust import canonical
from fl_core.trust.board import LedgerBoard
from fl_core.trust.entry import NO_PREVIOUS, Entry, Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.members import Member, Members, members_of
from fl_core.trust.pack import write_pack
from fl_core.trust.profile import IN_RUNS, Profile
from fl_core.trust.roles import Role, may
from fl_core.trust.rotation import Revoked, rotate
from fl_core.trust.verify import verify_ledger, verify_pack
from tests.fl_core.trust.consent import dataset_card

LOG = "fedseal/0123456789abcdef"
OWNER, ASKER, AUDITOR = ("data-owner",), ("model-owner",), ("auditor",)
COORDINATOR = Identity.create("coordinator")
KEYS = {name: [Identity.create(name) for _ in range(3)] for name in ("ann", "bob")}
ANN, BOB = KEYS["ann"][0], KEYS["bob"][0]
HTML = "<script>alert('x')</script> & <b>bold</b>"


def profile(who: Identity, roles=OWNER, time=1, **changes) -> Profile:
    return dataclasses.replace(Profile(who.card.fingerprint, roles, "", "", time), **changes)


def introduce(who: Identity, log=LOG, run="") -> Statement:
    return Statement.make(who, log=log, kind="card", run=run, body={"card": who.card.to_dict()})


def raw(who: Identity, body, *, log=LOG, run="", kind="profile") -> Statement:
    """What a signer that checks nothing signs."""
    return Statement.make(who, log=log, kind=kind, run=run, body=body)


# ---- one profile


BODY = {
    "card": ANN.card.fingerprint, "roles": ["auditor", "receiver"], "contact": "ann@example.org, +49 30 1",
    "certificate": "ab" * 32, "time": 7,
}  # fmt: skip


def test_a_profile_survives_its_bytes():
    said = Profile.read(Statement.decode(raw(ANN, BODY).encode()), ANN.card)
    assert said == Profile(ANN.card.fingerprint, ("auditor", "receiver"), BODY["contact"], "ab" * 32, 7)
    assert said.held == {Role.AUDITOR, Role.RECEIVER}
    assert said.sign(ANN, log=LOG) == raw(ANN, BODY)
    members = (Role.AUDITOR, Role.RECEIVER)  # as callers have them
    assert dataclasses.replace(said, roles=members).sign(ANN, log=LOG) == raw(ANN, BODY)


@pytest.mark.parametrize(
    "changes",
    [
        {"contact": "x" * 201}, {"contact": "x\ny"}, {"contact": "\x1b[2J"}, {"contact": "\u202egro"}, {"contact": " x"},
        {"contact": "x "}, {"contact": "\u00a0"}, {"contact": 7}, {"contact": ["x"]}, {"contact": "\u2028"},
        {"roles": []}, {"roles": ["receiver", "auditor"]}, {"roles": ["auditor", "auditor"]}, {"roles": ["engineer"]},
        {"roles": ["king"]}, {"roles": "auditor"}, {"roles": [7]}, {"roles": [["auditor"]]}, {"roles": {"auditor": 1}},
        {"roles": ["auditor "]}, {"certificate": "AB" * 32}, {"certificate": "ab"}, {"certificate": 0},
        {"certificate": "ab" * 32 + "\n"}, {"card": ""}, {"card": "ab"}, {"card": {}}, {"time": -1}, {"time": True},
        {"time": "7"}, {"time": []}, {"more": 1},
    ],
    ids=lambda changes: str(changes)[:40].encode("ascii", "backslashreplace").decode(),
)  # fmt: skip
def test_oversized_unprintable_and_unknown_fields_are_refused_in_one_line(changes):
    with pytest.raises(BadMessage) as caught:
        Profile.read(raw(ANN, {**BODY, **changes}), ANN.card)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250


@pytest.mark.parametrize("name", sorted(BODY))
def test_a_missing_field_is_refused(name):
    body = {key: value for key, value in BODY.items() if key != name}
    with pytest.raises(BadMessage, match="expected exactly card, certificate, contact, roles, time"):
        Profile.read(raw(ANN, body), ANN.card)


def test_a_record_that_never_was_json_is_as_strict():
    for changes in ({"roles": ["auditor"]}, {"time": 1.0}, {"time": 2**53}, {"contact": None}, {"certificate": None}):
        with pytest.raises(BadMessage):
            profile(ANN, **changes)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=210))
@settings(max_examples=200, deadline=None)
def test_a_contact_is_one_printable_line_and_is_kept_letter_for_letter(contact):
    fits = len(contact) <= 200 and contact.isprintable() and contact == contact.strip()
    try:
        said = profile(ANN, contact=contact)
    except BadMessage:
        assert not fits
        return
    assert fits and Profile.read(said.sign(ANN, log=LOG), ANN.card).contact == contact


def test_markup_in_a_contact_is_text():
    statement = profile(ANN, contact=HTML).sign(ANN, log=LOG)
    assert Profile.read(Statement.decode(statement.encode()), ANN.card).contact == HTML


def test_nobody_speaks_for_anothers_card():
    for statement, card in (
        (raw(BOB, BODY), BOB.card),  # his signature, her card
        (raw(BOB, BODY), ANN.card),
        (raw(ANN, BODY), KEYS["ann"][1].card),  # her other key
        (raw(ANN, BODY), BOB.card),
    ):
        with pytest.raises(WrongKey):
            Profile.read(statement, card)
    with pytest.raises(WrongKey):
        profile(ANN).sign(BOB, log=LOG)


def test_a_profile_of_a_run_or_of_another_kind_is_none():
    for statement in (raw(ANN, BODY, run="run-1"), raw(ANN, BODY, kind="card"), introduce(ANN)):
        with pytest.raises(BadMessage):
            Profile.read(statement, ANN.card)


# ---- what they come to


def entry_of(statement: Statement, seq: int) -> Entry:
    return Entry(statement, seq=seq, prev=NO_PREVIOUS, t=1000 + seq)


@functools.cache
def statement_of(act) -> tuple[Statement, Identity]:
    """A statement, and who signed it."""
    kind, name, which, more = act
    who = KEYS[name][which]
    if kind == "card":
        return introduce(who), who
    if kind == "profile":
        return profile(who, (ASKER, OWNER)[more % 2], time=more).sign(who, log=LOG), who
    if kind == "broken":
        return raw(who, {"card": who.card.fingerprint}), who
    if kind == "foreign":
        return raw(who, jsonable(profile(KEYS[name][(which + 1) % 3]))), who
    if kind == "rotate":
        return rotate(who, KEYS[name][(which + 1 + more % 2) % 3], log=LOG), who
    if kind == "say":
        return raw(who, {"n": more}, kind="metrics"), who
    by = {"revoke": who, "expel": COORDINATOR, "attack": KEYS["bob" if name == "ann" else "ann"][0]}[kind]
    return Revoked(name, who.card.fingerprint, "stolen").sign(by, log=LOG), by


def jsonable(said: Profile) -> dict:
    return {**dataclasses.asdict(said), "roles": list(said.roles)}


def reference(acts) -> tuple[list[Member], int]:
    """The members, and how many entries were left out: who holds what is looked up in the whole history each time."""
    taken: list[tuple[int, tuple]] = []
    left_out = 0

    def turned(which, more):
        return (which + 1 + more % 2) % 3

    def ended(name):
        return {which for _, (kind, n, which, _) in taken if n == name and kind in ("rotate", "revoke", "expel")}

    def card(name):
        """The newest key that was shown, by whatever; none where it has ended since."""
        shown = [(turned(w, m) if k == "rotate" else w) for _, (k, n, w, m) in taken if n == name]
        return shown[-1] if shown and shown[-1] not in ended(name) else None

    def profiles(name, which):
        return [more for _, (kind, n, w, more) in taken if (kind, n, w) == ("profile", name, which)]

    for seq, (kind, name, which, more) in enumerate(acts):
        if kind == "say":
            continue
        fits = card(name) in (None, which) and which not in ended(name) and kind not in ("attack", "broken", "foreign")
        if kind == "rotate":
            fits = fits and turned(which, more) not in ended(name)
        if kind == "profile":
            fits = fits and all(more > before for before in profiles(name, which))
        if fits:
            taken.append((seq, (kind, name, which, more)))
        left_out += not fits
    found = []
    for name in ("ann", "bob"):
        own = [(seq, act) for seq, act in taken if act[1] == name]
        if not own:
            continue
        holds = card(name)
        said = profiles(name, holds)
        brought = [(turned(which, more) if kind == "rotate" else which) for _, (kind, _, which, more) in own]
        again = [act[0] == "card" and act[2] in brought[:i] for i, (_, act) in enumerate(own)]
        changed = [seq for (seq, _), same in zip(own, again, strict=True) if not same][-1]
        key = None if holds is None else KEYS[name][holds]
        told = profile(key, (ASKER, OWNER)[said[-1] % 2], time=said[-1]) if key and said else None
        found.append(Member(name, key and key.card, told, own[0][0], 1000 + changed, "" if key else "stolen"))
    return found, left_out


KINDS = ["card", "profile", "profile", "rotate", "revoke", "expel", "attack", "broken", "foreign", "say"]
ACTS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(["ann", "bob"]), st.integers(0, 2), st.integers(0, 4)),
    max_size=30,
)


@given(ACTS)
@settings(max_examples=400, deadline=None)
def test_members_are_what_a_slow_reading_of_the_whole_history_says(acts):
    members = Members()
    for seq, act in enumerate(acts):
        statement, by = statement_of(act)
        members.add(entry_of(statement, seq), by.card)
    expected, left_out = reference(acts)
    assert members.all() == expected
    assert len(members.refused) == left_out and all(line.startswith("entry ") for line in members.refused)
    for member in expected:
        assert members.get(member.name) == member
        assert members.roles_of(member.name) == member.roles == (member.profile and member.profile.held)
    assert members.get("nobody") is members.roles_of("nobody") is None


def test_members_of_a_real_ledger_hold_the_ledgers_cards_and_the_verifier_takes_it(tmp_path):
    """Random acts, of which the ledger refuses some; malformed profiles it takes, and readers leave out."""
    random_, path, said = random.Random(3), tmp_path / "ledger.db", {}
    with Ledger.open(path, COORDINATOR) as ledger:
        for _ in range(150):
            name, which, more = random_.choice(["ann", "bob"]), random_.randrange(3), random_.randrange(1000)
            who, kind = KEYS[name][which], random_.choice(["card", "profile", "profile", "profile", "broken", "rotate"])
            if kind == "card":
                statement = introduce(who, ledger.log)
            elif kind == "profile":
                statement = profile(who, ASKER, time=more).sign(who, log=ledger.log)
            elif kind == "rotate" and random_.random() < 0.2:
                statement = rotate(who, KEYS[name][(which + 1) % 3], log=ledger.log)
            else:
                statement = raw(who, {"card": who.card.fingerprint}, log=ledger.log)
            try:
                ledger.commit([statement])
            except IntegrityError:
                continue
            if kind == "profile":
                said[name, which] = max(more, said.get((name, which), 0))
        members = members_of(ledger)
        assert {member.name for member in members.all()} == {"ann", "bob"} and members.refused
        for member in members.all():
            assert member.card == ledger.card(member.name)
            held = [k.card for k in KEYS[member.name]].index(member.card)
            assert (member.profile and member.profile.time) == said.get((member.name, held))
    assert verify_ledger(path).reason == "valid"


def test_a_card_that_was_first_shown_in_a_run_is_a_member_once_it_says_something(scenario):
    """Boards are read outside runs; so is a card that came after a revocation."""
    who, log = Identity.create("late"), scenario.ledger.log
    scenario.ledger.commit([introduce(who, log, run="run-1")])
    assert members_of(scenario.ledger).get("late") is None
    scenario.ledger.commit([profile(who).sign(who, log=log)])
    scenario.ledger.commit([Revoked("late", who.card.fingerprint, "lost").sign(who, log=log)])
    member = members_of(scenario.ledger).get("late")
    assert (member.card, member.profile, member.roles, member.ended) == (None, None, None, "lost")
    new = Identity.create("late")
    scenario.ledger.commit([introduce(new, log, run="run-2"), profile(new, AUDITOR).sign(new, log=log)])
    member = members_of(scenario.ledger).get("late")
    assert (member.card, member.roles, member.since, member.ended) == (new.card, {Role.AUDITOR}, 5, "")


def test_a_ledger_with_profiles_and_a_pack_of_it_are_valid(scenario, tmp_path):
    log, parties = scenario.ledger.log, scenario.parties
    said = [profile(party, contact=HTML).sign(party, log=log) for party in parties.values()]
    scenario.ledger.commit(said)
    scenario.run()
    late = parties["bank_a"]
    scenario.ledger.commit([profile(late, AUDITOR, time=2).sign(late, log=log)])
    scenario.ledger.commit([raw(late, jsonable(profile(late, time=3)), log=log, run="run-2")])  # of another run
    assert verify_ledger(scenario.path).status == 0
    for whole in (False, True):
        out = write_pack(scenario.ledger, "run-1", tmp_path / f"pack-{whole}", whole=whole).path
        report = verify_pack(out, coordinator_key_hex=scenario.coordinator.card.ed25519)
        assert (report.status, report.reason) == (0, "valid")
        assert (out / "entries.jsonl").read_bytes().count(b'"kind":"profile"') == 5


# ---- on the board of a ledger


class Desk:
    """A board, and who says something on it; `ann` and `bob` have shown their cards."""

    def __init__(self, path) -> None:
        self.path = path
        self.board = LedgerBoard(path, COORDINATOR)
        with Ledger.open(path, COORDINATOR) as ledger:
            self.log = ledger.log
        self.post(*(introduce(who, self.log) for who in (ANN, BOB)))

    def post(self, *statements) -> int:
        return self.board.post(statements)[1]

    def profile(self, who, roles=OWNER, time=1, **changes) -> Statement:
        return profile(who, roles, time, **changes).sign(who, log=self.log)

    def dataset(self, who, published=1) -> Statement:
        return dataset_card(who.name, published=published).sign(who, log=self.log)

    def read(self, kind="profile"):
        return [posted.statement for posted in self.board.read([kind])[0]]


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path / "ledger.db")


def test_the_same_profile_twice_is_there_once_also_in_one_post(desk):
    said = desk.profile(ANN)
    assert desk.post(said, said) == 1
    assert desk.post(said) == 0
    desk.post(desk.profile(ANN, AUDITOR, time=2))
    assert desk.post(said) == 0 and desk.board.profile("ann").held == {Role.AUDITOR}
    assert len(desk.read()) == 2 and [s.by for s in desk.read("card")] == ["ann", "bob"]


@pytest.mark.parametrize("time", [0, 4, 5])
def test_an_older_profile_is_not_played_again(desk, time):
    desk.post(desk.profile(ANN, AUDITOR, time=5))
    with pytest.raises(BadMessage, match="replayed or out of order; allowed: after 5"):
        desk.post(desk.profile(ANN, ASKER, time=time))
    with pytest.raises(BadMessage, match="allowed: after 7"):
        desk.post(desk.profile(ANN, time=7), desk.profile(ANN, ASKER, time=6))
    assert desk.board.profile("ann").held == {Role.AUDITOR}
    desk.post(desk.profile(BOB, time=1))  # each name has a clock of its own


def test_nobody_says_a_profile_under_anothers_card_or_in_a_run(desk):
    body = jsonable(profile(ANN))
    forged = Statement(**{**desk.profile(ANN).to_dict(), "sig": "00" * 64})
    other = profile(ANN).sign(ANN, log="fedseal/" + "0" * 16)
    stranger = Identity.create("eve")
    for kind, statement in (
        (WrongKey, raw(BOB, body, log=desk.log)),
        (BadMessage, raw(ANN, body, log=desk.log, run="run-1")),
        (BadSignature, forged),
        (BadMessage, other),
        (WrongKey, desk.profile(stranger)),
        (BadMessage, raw(ANN, {**body, "contact": "\n"}, log=desk.log)),
    ):
        with pytest.raises(kind):
            desk.post(statement)
    assert desk.read() == [] and desk.board.profile("ann") is None and desk.board.profile("eve") is None


def test_a_profile_ends_with_its_key_and_none_comes_under_one_that_ended(desk):
    new = KEYS["ann"][1]
    desk.post(desk.profile(ANN, AUDITOR), rotate(ANN, new, log=desk.log))
    assert desk.board.profile("ann") is None
    with pytest.raises(WrongKey):  # of the key before
        desk.post(desk.profile(ANN, time=2))
    desk.post(desk.dataset(new))  # and it is judged as one without
    desk.post(desk.profile(new, time=1))
    desk.post(Revoked("ann", new.card.fingerprint, "stolen").sign(new, log=desk.log))
    with pytest.raises(WrongKey, match="revoked"):
        desk.post(desk.profile(new, time=2))
    third = KEYS["ann"][2]
    desk.post(introduce(third, desk.log), desk.profile(third, AUDITOR))
    assert desk.board.profile("ann").held == {Role.AUDITOR}


def test_a_role_that_the_profile_does_not_claim_is_missing_on_the_board(desk):
    desk.post(desk.dataset(ANN))  # nothing said: as it always was
    desk.post(desk.profile(ANN, ASKER))
    with pytest.raises(RefusedError, match=r"ann \(model-owner\) may not publish and withdraw data; allowed: data-ow"):
        desk.post(desk.dataset(ANN, 2))
    desk.post(desk.dataset(BOB))
    desk.post(desk.profile(ANN, ("data-owner", "model-owner"), time=2))
    desk.post(desk.dataset(ANN, 2))


def test_statements_of_one_post_count_after_each_other(desk):
    with pytest.raises(RefusedError):
        desk.post(desk.profile(ANN, AUDITOR), desk.dataset(ANN))
    assert desk.board.profile("ann") is None  # none of it is there
    assert desk.post(desk.dataset(ANN), desk.profile(ANN, AUDITOR)) == 2
    assert desk.post(desk.profile(ANN, time=2), desk.dataset(ANN, 2), desk.profile(ANN, AUDITOR, time=3)) == 3
    new = KEYS["ann"][1]
    assert desk.post(rotate(ANN, new, log=desk.log), desk.dataset(new, 3)) == 2
    with pytest.raises(RefusedError):
        desk.post(desk.profile(new, AUDITOR), desk.dataset(new, 4))


def test_a_failed_post_leaves_profiles_as_the_ledger_has_them(desk):
    desk.post(desk.profile(ANN, AUDITOR))
    bad = Statement(**{**desk.profile(BOB, AUDITOR).to_dict(), "sig": "00" * 64})
    with pytest.raises(BadSignature):
        desk.post(desk.profile(ANN, OWNER, time=2), bad)
    with pytest.raises(RefusedError):
        desk.post(desk.dataset(ANN))
    assert desk.board.profile("bob") is None
    desk.post(desk.dataset(BOB))
    assert desk.board._members.refused == []  # read anew, not once more on top


def test_another_process_sees_a_profile_before_its_next_post(desk):
    other = LedgerBoard(desk.path, COORDINATOR)
    other.post([desk.dataset(ANN)])
    desk.post(desk.profile(ANN, AUDITOR))
    with pytest.raises(RefusedError):
        other.post([desk.dataset(ANN, 2)])
    with Ledger.open(desk.path, COORDINATOR) as ledger:  # past every board: what is malformed hides nothing
        ledger.commit([raw(ANN, {"card": "x"}, log=desk.log), desk.profile(ANN, OWNER, time=0)])
    with pytest.raises(RefusedError):
        other.post([desk.dataset(ANN, 2)])
    assert other.profile("ann").time == 1


def test_a_post_reads_only_what_is_new_on_the_ledger(desk, monkeypatch):
    desk.post(*(desk.profile(ANN, time=n) for n in range(1, 17)))
    desk.post(desk.profile(BOB))
    looked, signer = [], Ledger.signer
    monkeypatch.setattr(Ledger, "signer", lambda self, entry: looked.append(entry.seq) or signer(self, entry))
    desk.post(desk.profile(BOB, time=2))
    desk.post(desk.profile(BOB, time=3))
    assert looked == [19, 20]


def test_profiles_on_the_board_are_canonical_small_and_the_ledger_stays_valid(desk):
    whole = {"contact": "\U0001f512" * 200, "certificate": "ab" * 32}
    most = desk.profile(ANN, tuple(sorted(Role)), time=canonical.MAX_INT, **whole)
    assert len(most.encode()) < 2048
    desk.post(most)
    ((posted,), following) = desk.board.read(["profile"])
    assert (posted.statement, posted.card, following) == (most, ANN.card, None)
    assert verify_ledger(desk.path).reason == "valid"


# ---- what is said in runs


def in_run(who: Identity, kind: str, log: str) -> Statement:
    return Statement.make(who, log=log, kind=kind, run="r1", body={"step": "x"})


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("kind", ["join", "key", "session", "update", "use", "receipt", "close", "refusal"])
def test_nobody_says_in_a_run_what_its_roles_do_not_allow(tmp_path, role, kind):
    with Ledger.open(tmp_path / "ledger.db", COORDINATOR) as ledger:
        log = ledger.log
        ledger.append([introduce(ANN, log), profile(ANN, (role.value,)).sign(ANN, log=log)])
        wanted = IN_RUNS.get(kind)
        if wanted is None or any(may({role}, action) for action in wanted):
            assert ledger.append([in_run(ANN, kind, log)])[0].kind == kind
            return
        size = ledger.size
        with pytest.raises(RefusedError, match=rf"^ann \({role}\) may not .*; allowed: "):
            ledger.commit([in_run(ANN, kind, log)])
        assert ledger.size == size


def test_without_a_profile_everybody_takes_part_and_a_later_one_takes_rights_away(tmp_path):
    path = tmp_path / "ledger.db"
    with Ledger.open(path, COORDINATOR) as ledger, Ledger.open(path, COORDINATOR) as other:
        log = ledger.log
        ledger.append([introduce(ANN, log), in_run(ANN, "update", log)])
        other.append([profile(ANN, AUDITOR, 1).sign(ANN, log=log)])
        with pytest.raises(RefusedError, match="take part in a job with data"):
            ledger.append([in_run(ANN, "update", log)])
        other.append([profile(ANN, OWNER, 2).sign(ANN, log=log)])
        ledger.append([in_run(ANN, "update", log)])


def test_a_profile_for_anothers_card_takes_nothing_from_it(tmp_path):
    with Ledger.open(tmp_path / "ledger.db", COORDINATOR) as ledger:
        log = ledger.log
        about_bob = {"card": BOB.card.fingerprint, "roles": list(AUDITOR), "contact": "", "certificate": "", "time": 1}
        ledger.append([introduce(ANN, log), introduce(BOB, log), raw(ANN, about_bob, log=log)])
        assert ledger.append([in_run(BOB, "update", log)])


def test_a_statement_that_was_taken_back_claims_nothing(tmp_path):
    with Ledger.open(tmp_path / "ledger.db", COORDINATOR) as ledger:
        log = ledger.log
        ledger.append([introduce(ANN, log)])
        broken = dataclasses.replace(in_run(ANN, "update", log), sig="00" * 64)
        with pytest.raises(BadSignature):
            ledger.append([profile(ANN, AUDITOR).sign(ANN, log=log), broken])
        assert ledger.append([in_run(ANN, "update", log)])
