"""The board over real TLS: who may post what, limits, whose card is taken, what a lying coordinator cannot make of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest

import server.coordinator.board as module
from clients.board import DoorBoard, introduce, read_catalog, revoked_keys
from clients.door import DoorClient
from fl_core.errors import (
    BadMessage,
    BadSignature,
    FedsealError,
    IntegrityError,
    JobFailed,
    RefusedError,
    UsageError,
    WrongKey,
)
from fl_core.processes import free_port
from fl_core.trust import canonical, catalog
from fl_core.trust.board import LedgerBoard
from fl_core.trust.catalog import DatasetCard, schema_digest
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import Approval, Denial, GrantRequest, Revocation, Used
from fl_core.trust.grants import Grant, Signer, Terms
from fl_core.trust.identity import CardBook, Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.members import MEMBER_KINDS, Members
from fl_core.trust.profile import Profile
from fl_core.trust.roles import Role
from fl_core.trust.rotation import Revoked, rotate
from fl_core.trust.verify import verify_ledger
from fl_core.wire.door_pb2 import BoardReply
from server.coordinator.door import Door, open_door


class Scene:
    """A coordinator's door with a board, and people who come to it."""

    def __init__(self, folder, runs, admit, tmp_path) -> None:
        self.folder, self.admit, self.path = folder, admit, tmp_path
        self.coordinator = folder.identity()
        self.log = log_id(self.coordinator.card)
        self.server = open_door(Door(folder, runs, lambda act: act(), self.note), folder, self.note)
        self.open: list[DoorClient] = []

    def note(self, kind, run, body):
        with Ledger.open(self.folder.home.ledger, self.coordinator) as ledger:
            ledger.append([Statement.make(self.coordinator, log=ledger.log, kind=kind, run=run, body=body)])

    def person(self, name, *roles, key=None):
        """A pass, a key, and the way in."""
        held = self.admit(name, *roles)
        client = DoorClient(held)
        self.open.append(client)
        book = CardBook(self.path / f"{name}.json")
        return Person(key or Identity.create(name), client, DoorBoard(client, held.federation.coordinator, book), book)

    def entries(self, **which):
        with Ledger.open(self.folder.home.ledger) as ledger:
            return list(ledger.entries(**which))

    def close(self):
        for client in self.open:
            client.__exit__()
        self.server.stop(0).wait(10)


@dataclasses.dataclass
class Person:
    key: Identity
    door: DoorClient
    board: DoorBoard
    book: CardBook

    def post(self, *statements):
        return self.board.post([introduce(self.key, log=self.board.log), *statements])

    def profile(self, *roles, time=1, certificate="", contact=""):
        said = Profile(self.key.card.fingerprint, tuple(sorted(roles)), contact, certificate, time)
        return said.sign(self.key, log=self.board.log)


@pytest.fixture
def scene(folder, runs, admit, settings, tmp_path) -> Iterator[Scene]:
    settings(door_port=free_port())
    made = Scene(folder, runs, admit, tmp_path)
    yield made
    made.close()


COLUMNS = (("age", "number"), ("income", "number"))


def dataset(owner, name="credit", published=1, **changes):
    card = DatasetCard(
        owner=owner, name=name, schema=schema_digest(COLUMNS), columns=(), rows=1200, purposes=("credit scoring",),
        kinds=("horizontal",), epsilon=5_000_000, delta="0.00001", min_cohort=1, version="ab" * 32, published=published,
    )  # fmt: skip
    return dataclasses.replace(card, **changes)


def terms(owner, grantee, **changes):
    held = Terms(
        owner=owner, dataset="credit", version="", grantee=Signer.of(grantee.card), kinds=("horizontal",),
        algorithms=("*",), model="", job="", private_only=True, uses=2, epsilon=3_000_000, receivers=(grantee.name,),
        not_before=1, not_after=canonical.MAX_INT, purpose="credit scoring",
    )  # fmt: skip
    return dataclasses.replace(held, **changes)


def grant_of(asked: Terms, owner: Identity, **more) -> Grant:
    return Grant(asked, (Signer.of(owner.card),), **more)


def told(kind: type[FedsealError], act) -> str:
    with pytest.raises(FedsealError) as caught:
        act()
    assert type(caught.value) is kind, repr(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ---- a whole exchange


def test_publish_ask_approve_and_revoke_are_read_by_everybody_and_verify(scene):
    bank, ann = scene.person("bank", "data-owner"), scene.person("ann", "engineer")
    log = scene.log
    assert bank.post(dataset("bank").sign(bank.key, log=log))[1] == 2
    found, refused = read_catalog(ann.board)
    assert ([held.card.name for held in found.listings()], refused) == (["credit"], ())
    asked = GrantRequest(terms("bank", ann.key)).sign(ann.key, log=log)
    ann.post(asked)
    (seen,) = bank.board.read(["grant-request"])
    assert (seen.statement, seen.card) == (asked, ann.key.card)
    grant = grant_of(terms("bank", ann.key), bank.key, request=asked.digest)
    bank.post(Approval(grant).sign(bank.key, log=log))
    bank.post(
        Revocation(grant.id, "over").sign(bank.key, log=log),
        Used("release", grant.id, "cd" * 32, 0).sign(bank.key, log=log, run="r"),
    )
    auditor = scene.person("otto", "auditor")
    everything = auditor.board.read(["dataset", "grant-request", "grant", "grant-end"])
    assert [posted.entry.kind for posted in everything] == ["dataset", "grant-request", "grant", "grant-end"]
    assert auditor.board.read(["grant"], since=everything[-1].entry.seq) == []
    assert auditor.book.get("bank") == bank.key.card
    assert verify_ledger(scene.folder.home.ledger).reason == "valid"


def test_what_is_posted_twice_is_there_once(scene):
    """A lost answer is asked for again."""
    bank = scene.person("bank", "data-owner")
    statement = dataset("bank").sign(bank.key, log=scene.log)
    size, added = bank.post(statement)
    assert (added, bank.post(statement)) == (2, (size + 1, 0))  # one more: the coordinator's note of the card
    used = Used("release", "ab" * 32, "cd" * 32, 0).sign(bank.key, log=scene.log, run="run-1")
    assert [bank.post(used)[1], bank.post(used)[1]] == [1, 0]


def test_a_board_longer_than_a_page_is_read_whole(scene, monkeypatch):
    from fl_core.trust import board as core

    monkeypatch.setattr(core, "PAGE_ENTRIES", 3)
    bank = scene.person("bank", "data-owner")
    for start in range(0, 8, 4):
        bank.post(*(dataset("bank", f"data-{n}").sign(bank.key, log=scene.log) for n in range(start, start + 4)))
    found = bank.board.read(["dataset"])
    assert [posted.statement.body["card"]["name"] for posted in found] == [f"data-{n}" for n in range(8)]
    assert bank.board.read(["dataset"], since=found[5].entry.seq) == found[5:]


# ---- roles


def say_all(me: Identity, log: str) -> dict[str, Statement]:
    """One statement of each kind, of one's own."""
    asked = terms(me.name, me)
    return {
        "dataset": dataset(me.name).sign(me, log=log),
        "grant-request": GrantRequest(asked).sign(me, log=log),
        "grant": Approval(grant_of(asked, me)).sign(me, log=log),
        "grant-end": Denial("ab" * 32, "no").sign(me, log=log),
        "use": Used("release", "ab" * 32, "cd" * 32, 0).sign(me, log=log, run="r"),
    }


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("data-owner", {"dataset", "grant", "grant-end", "use"}),
        ("model-owner", {"grant-request"}),
        ("engineer", {"grant-request"}),
        ("receiver", set()),
        ("auditor", set()),
        ("operator", set()),
    ],
)
def test_each_role_posts_what_is_its_own_and_a_refusal_names_the_role_and_is_noted(scene, role, may):
    bob = scene.person("bob", role)
    bob.post()
    for kind, statement in say_all(bob.key, scene.log).items():
        before = len(scene.entries())
        if kind in may:
            assert bob.post(statement)[1] == 1
            continue
        text = told(RefusedError, lambda statement=statement: bob.post(statement))
        wanted = "model-owner" if kind == "grant-request" else "data-owner"
        held = "model-owner" if role == "engineer" else role
        assert text.startswith(f"bob ({held}) may not ") and text.endswith(f"; allowed: {wanted}")
        (noted,) = scene.entries()[before:]
        assert (noted.kind, noted.by, noted.body["method"]) == ("refusal", "coordinator", "Post")
    assert bob.board.read(["dataset"]) == bob.board.read(["dataset"])


def test_a_person_without_a_pass_now_posts_nothing_whatever_the_key_said_before(scene):
    bank = scene.person("bank", "data-owner")
    bank.post()
    scene.folder.people.revoke("bank")
    assert "revoked" in told(RefusedError, lambda: bank.post(dataset("bank").sign(bank.key, log=scene.log)))


def test_whoever_hands_in_needs_the_role_as_well_as_who_signed(scene, make_card):
    """A model owner cannot carry an owner's approval that the owner did not want to give yet."""
    key = Identity.create("hospital")
    node = make_card("x")
    scene.folder.nodes.register(type(node).make(key, node.key))
    ann, dora = scene.person("ann", "model-owner"), scene.person("dora", "data-owner")
    words = [introduce(key, log=scene.log), dataset("hospital").sign(key, log=scene.log)]
    assert "ann (model-owner)" in told(RefusedError, lambda: ann.board.post(words))
    assert dora.board.post(words)[1] == 2
    eve = scene.person("eve", "data-owner")
    eve.post()
    stranger = dataset("eve", "other").sign(eve.key, log=scene.log)
    assert "your own, or of a registered node" in told(RefusedError, lambda: dora.board.post([stranger]))


def test_a_disabled_node_has_no_say(scene, make_card):
    key, other = Identity.create("hospital"), make_card("x")
    scene.folder.nodes.register(type(other).make(key, other.key))
    dora = scene.person("dora", "data-owner")
    dora.board.post([introduce(key, log=scene.log)])
    scene.folder.nodes.set_state("hospital", "disabled")
    said = [dataset("hospital").sign(key, log=scene.log)]
    assert "registered node" in told(RefusedError, lambda: dora.board.post(said))


# ---- cards


def test_nobody_brings_the_card_of_another_or_a_second_one(scene, make_card):
    ann = scene.person("ann", "engineer")
    bob = Identity.create("bob")
    assert "your own" in told(RefusedError, lambda: ann.board.post([introduce(bob, log=scene.log)]))
    forged = Statement(**{**introduce(bob, log=scene.log).to_dict(), "by": "ann"})
    told(JobFailed, lambda: ann.board.post([forged]))
    ann.post()
    second = Identity.create("ann")
    assert "fedseal identity rotate" in told(JobFailed, lambda: ann.board.post([introduce(second, log=scene.log)]))
    assert CardBook(scene.folder.path / "cards.json").get("ann") == ann.key.card
    (note,) = [entry for entry in scene.entries(kind="person") if entry.body["state"] == "introduced"]
    assert note.body["card"] == ann.key.card.fingerprint


def test_a_persons_pass_does_not_take_over_a_nodes_name(scene, make_card):
    node = make_card("bank")
    scene.folder.nodes.register(node)
    bank = scene.person("bank", "data-owner")
    assert "registered with" in told(JobFailed, bank.post)


def test_one_key_under_two_names_is_refused_and_pins_nothing(scene):
    ann = scene.person("ann", "engineer")
    ann.post()
    twin = Identity("bob", signing_key=ann.key._signing_key, sealing_key=ann.key.sealing_key)
    bob = scene.person("bob", "engineer", key=twin)
    assert "shows the key of ann" in told(JobFailed, bob.post)
    assert CardBook(scene.folder.path / "cards.json").get("bob") is None


def test_the_coordinators_name_is_nobodys(scene):
    eve = scene.person("coordinator", "operator", "data-owner", key=scene.coordinator)
    assert "its own machine" in told(RefusedError, eve.post)


def test_a_word_without_a_card_before_it_is_refused(scene):
    bank = scene.person("bank", "data-owner")
    text = told(JobFailed, lambda: bank.board.post([dataset("bank").sign(bank.key, log=scene.log)]))
    assert "has no card" in text


# ---- profiles


def test_nobody_claims_a_role_that_no_register_gives(scene):
    ann = scene.person("ann", "engineer", "auditor")
    ann.post()
    before = len(scene.entries())
    text = told(RefusedError, lambda: ann.post(ann.profile("auditor", "data-owner", "operator")))
    assert text == "profile of ann: roles data-owner, operator are not its own; allowed: auditor, model-owner"
    (noted,) = scene.entries()[before:]
    assert (noted.kind, noted.body["code"]) == ("refusal", "role")
    assert ann.post(ann.profile("auditor", "model-owner"))[1] == 1
    assert ann.post(ann.profile("auditor", "model-owner"))[1] == 0  # a lost answer


def test_a_profile_takes_rights_away_until_a_later_one_gives_them_back(scene):
    bank = scene.person("bank", "data-owner", "model-owner")
    log, asked = scene.log, GrantRequest(terms("bank", bank.key)).sign(bank.key, log=scene.log)
    bank.post(bank.profile("data-owner"), dataset("bank").sign(bank.key, log=log))
    text = told(RefusedError, lambda: bank.post(asked))
    assert text == "bank (data-owner) may not ask for a grant; allowed: model-owner"
    assert scene.entries()[-1].kind == "refusal"
    both = bank.profile("data-owner", "model-owner", time=2)
    assert bank.post(both, asked, bank.profile("model-owner", time=3))[1] == 3
    later = dataset("bank", published=2).sign(bank.key, log=log)
    assert "bank (model-owner)" in told(RefusedError, lambda: bank.post(later))
    before = len(scene.entries())
    told(RefusedError, lambda: bank.post(both, later))  # the older one is there already, and says nothing any more
    assert [entry.kind for entry in scene.entries()[before:]] == ["refusal"]
    told(JobFailed, lambda: bank.post(bank.profile("data-owner", time=2), later))  # nor one that is only older
    assert len(bank.board.read(["dataset"])) == 1
    assert verify_ledger(scene.folder.home.ledger).reason == "valid"


def test_a_profile_within_a_post_counts_for_what_follows_it_and_is_not_kept_alone(scene):
    bank = scene.person("bank", "data-owner", "auditor")
    bank.post()
    before = scene.entries()
    told(RefusedError, lambda: bank.post(bank.profile("auditor"), dataset("bank").sign(bank.key, log=scene.log)))
    assert [entry.kind for entry in scene.entries()[len(before) :]] == ["refusal"]
    new = Identity.create("bank")
    words = [bank.profile("auditor"), rotate(bank.key, new, log=scene.log), dataset("bank").sign(new, log=scene.log)]
    assert bank.board.post(words)[1] == 3  # the profile went with its key


def test_what_the_register_takes_back_no_profile_keeps(scene):
    bank = scene.person("bank", "data-owner", "auditor")
    bank.post(bank.profile("auditor", "data-owner"))
    less = scene.person("bank", "auditor", key=bank.key)
    text = told(RefusedError, lambda: less.post(dataset("bank").sign(bank.key, log=scene.log)))
    assert "bank (auditor) may not" in text
    text = told(RefusedError, lambda: less.post(less.profile("auditor", "data-owner", time=2)))
    assert text.endswith("; allowed: auditor")
    other = scene.person("bank", "auditor", "data-owner", key=bank.key)
    other.post(other.profile("auditor", time=3))
    without = scene.person("bank", "data-owner", "operator", key=bank.key)
    text = told(RefusedError, lambda: without.post(dataset("bank").sign(bank.key, log=scene.log)))
    assert "bank (no role) may not" in text  # that both give


def test_a_node_that_is_registered_for_less_keeps_no_right_by_its_profile(scene, make_card):
    key, other = Identity.create("hospital"), make_card("x")
    card = type(other).make(key, other.key)
    scene.folder.nodes.register(card, ["data-owner", "model-owner"])
    ann = scene.person("ann", "model-owner")
    node = Person(key, ann.door, ann.board, ann.book)
    ask = [GrantRequest(terms("bank", key)).sign(key, log=scene.log) for _ in range(2)]
    assert node.post(node.profile("data-owner", "model-owner"), ask[0])[1] == 3
    scene.folder.nodes.register(card, ["receiver"])
    assert told(RefusedError, lambda: node.post(ask[1])).startswith("hospital (no role) may not ask for a grant")


def test_a_nodes_profile_claims_what_it_was_registered_as(scene, make_card):
    key, other = Identity.create("hospital"), make_card("x")
    card = type(other).make(key, other.key)
    scene.folder.nodes.register(card, ["receiver"])
    dora = scene.person("dora", "data-owner")
    node = Person(key, dora.door, dora.board, dora.book)
    text = told(RefusedError, lambda: node.post(node.profile("data-owner", "model-owner", "receiver")))
    assert text == "profile of hospital: roles data-owner, model-owner are not its own; allowed: receiver"
    ann = scene.person("ann", "engineer")
    theirs = scene.folder.people.holder("ann").fingerprint
    for wrong in (theirs, key.card.fingerprint, "ab" * 32):
        said = node.profile("receiver", certificate=wrong)
        assert f"allowed: {card.fingerprint[:16]}… or none" in told(JobFailed, lambda said=said: node.post(said))
    assert node.post(node.profile("receiver", certificate=card.fingerprint))[1] == 2
    assert ann.board.read(["profile"])[0].card == key.card
    scene.folder.nodes.set_state("hospital", "disabled")
    again = node.profile("receiver", time=2)
    assert "registered node" in told(RefusedError, lambda: dora.board.post([again]))


def test_a_certificate_is_ones_own_and_the_present_one(scene):
    ann, bob = scene.person("ann", "engineer"), scene.person("bob", "engineer")
    old, others = (scene.folder.people.holder(name).fingerprint for name in ("ann", "bob"))
    bob.post()
    text = told(JobFailed, lambda: ann.post(ann.profile("model-owner", certificate=others)))
    assert f"certificate {others[:16]}… is not its own; allowed: {old[:16]}… or none" in text
    ann.post(ann.profile("model-owner", certificate=old))
    renewed = scene.person("ann", "engineer", key=ann.key)
    told(JobFailed, lambda: renewed.post(renewed.profile("model-owner", certificate=old, time=2)))
    new = scene.folder.people.holder("ann").fingerprint
    assert renewed.post(renewed.profile("model-owner", certificate=new, time=3))[1] == 1


def test_nobody_brings_the_profile_of_another_or_under_anothers_card(scene):
    ann, eve = scene.person("ann", "engineer"), scene.person("eve", "engineer")
    ann.post()
    assert "your own" in told(RefusedError, lambda: eve.post(ann.profile("model-owner")))
    body = ann.profile("model-owner").body
    for by in (eve.key, Identity.create("ann")):  # her card under his name, and her name under his key
        said = Statement.make(by, log=scene.log, kind="profile", run="", body=body)
        told(JobFailed, lambda said=said, by=by: (eve if by is eve.key else ann).post(said))
    assert eve.board.read(["profile"]) == []


def test_malformed_profiles_are_refused_and_markup_is_text_for_every_reader(scene):
    ann, otto = scene.person("ann", "engineer"), scene.person("otto", "auditor")
    ann.post()
    good = ann.profile("model-owner", contact="<img src=x onerror=alert(1)>").body
    for wrong in ({"contact": "x" * 201}, {"contact": "\x1b[2J"}, {"roles": []}, {"roles": ["engineer"]}, {"x": 1}):
        said = Statement.make(ann.key, log=scene.log, kind="profile", run="", body={**good, **wrong})
        told(JobFailed, lambda said=said: ann.post(said))
    otto.post()
    ann.post(Statement.make(ann.key, log=scene.log, kind="profile", run="", body=good))
    members = Members()
    for posted in otto.board.read(MEMBER_KINDS):
        members.add(posted.entry, posted.card)
    assert [member.name for member in members.all()] == ["ann", "otto"] and members.refused == []
    assert members.get("ann").profile.contact == "<img src=x onerror=alert(1)>"
    assert (members.roles_of("ann"), members.roles_of("otto")) == ({Role.MODEL_OWNER}, None)


# ---- keys that change and end


def test_a_rotated_key_is_followed_by_the_coordinator_and_by_readers(scene):
    bank, ann = scene.person("bank", "data-owner"), scene.person("ann", "engineer")
    log, new = scene.log, Identity.create("bank")
    bank.post(dataset("bank").sign(bank.key, log=log))
    assert len(ann.board.read(["dataset"])) == 1
    bank.post(rotate(bank.key, new, log=log))
    assert CardBook(scene.folder.path / "cards.json").get("bank") == new.card
    told(JobFailed, lambda: bank.board.post([dataset("bank", published=2).sign(bank.key, log=log)]))
    bank.board.post([dataset("bank", published=2).sign(new, log=log)])
    assert [posted.card for posted in ann.board.read(["dataset"])] == [bank.key.card, new.card]
    assert (ann.board.refused, ann.book.get("bank")) == ([], new.card)
    found, refused = read_catalog(ann.board)
    assert (found.get("bank", "credit").time, refused) == (2, ())
    assert revoked_keys(ann.board) == {bank.key.card.fingerprint}


def test_a_revoked_person_posts_and_approves_nothing_until_the_operator_admits_a_new_key(scene):
    bank = scene.person("bank", "data-owner")
    log, asked = scene.log, terms("bank", Identity.create("ann"))
    bank.post(Revoked("bank", bank.key.card.fingerprint, "stolen").sign(bank.key, log=log))
    assert "was revoked" in told(RefusedError, lambda: bank.post())
    assert CardBook(scene.folder.path / "cards.json").get("bank") is None
    thief = scene.person("bank", "data-owner", key=bank.key)  # a new pass, the old key
    for statement in (
        Approval(grant_of(asked, bank.key)).sign(bank.key, log=log),
        dataset("bank").sign(bank.key, log=log),
    ):
        assert "revoked" in told(JobFailed, lambda statement=statement: thief.post(statement))
    fresh = scene.person("bank", "data-owner")
    assert fresh.post(dataset("bank").sign(fresh.key, log=log))[1] == 2
    assert bank.key.card.fingerprint in revoked_keys(fresh.board)
    assert verify_ledger(scene.folder.home.ledger).reason == "valid"


def test_an_operator_has_the_coordinator_revoke_and_nobody_else_has(scene, make_card):
    bank, olga, ann = (
        scene.person(n, r) for n, r in (("bank", "data-owner"), ("olga", "operator"), ("ann", "engineer"))
    )
    bank.post()
    for eve in (ann, olga):
        eve.post()
    ask = Revoked("bank", bank.key.card.fingerprint, "left the federation")
    assert "may not revoke somebody else's key; allowed: operator" in told(
        RefusedError, lambda: ann.board.post([ask.sign(ann.key, log=scene.log)])
    )
    forged = ask.sign(Identity.create("olga"), log=scene.log)
    told(JobFailed, lambda: olga.board.post([forged]))
    other = ask.sign(olga.key, log="fedseal/" + "0" * 16)
    told(JobFailed, lambda: olga.board.post([other]))
    olga.board.post([ask.sign(olga.key, log=scene.log)])
    (entry,) = scene.entries(kind="revoke")
    assert (entry.by, entry.body["asked"], entry.body["name"]) == ("coordinator", "olga", "bank")
    assert "was revoked" in told(RefusedError, bank.post)
    assert verify_ledger(scene.folder.home.ledger).reason == "valid"


def test_a_revoked_nodes_registration_ends(scene, make_card):
    key, other = Identity.create("hospital"), make_card("x")
    scene.folder.nodes.register(type(other).make(key, other.key))
    dora = scene.person("dora", "data-owner")
    dora.board.post(
        [introduce(key, log=scene.log), Revoked("hospital", key.card.fingerprint, "lost").sign(key, log=scene.log)]
    )
    assert "hospital" not in scene.folder.nodes.all()


def test_a_revocation_that_comes_again_does_not_end_a_newer_key(scene):
    bank = scene.person("bank", "data-owner")
    old = Revoked("bank", bank.key.card.fingerprint, "stolen").sign(bank.key, log=scene.log)
    bank.post(old)
    fresh = scene.person("bank", "data-owner")
    fresh.post()
    assert fresh.board.post([old])[1] == 0
    assert scene.folder.people.holder("bank") is not None
    assert CardBook(scene.folder.path / "cards.json").get("bank") == fresh.key.card


# ---- what is no word for the board


def test_other_kinds_and_statements_of_runs_are_refused(scene):
    bank = scene.person("bank", "data-owner", "model-owner")
    bank.post()
    for kind in ("update", "node", "person", "log", "roster", "request", "order"):
        said = Statement.make(bank.key, log=scene.log, kind=kind, run="", body={})
        assert f"a {kind} statement; allowed" in told(UsageError, lambda said=said: bank.board.post([said]))
    of_run = Statement.make(
        bank.key, log=scene.log, kind="dataset", run="run-1", body=dataset("bank").sign(bank.key, log=scene.log).body
    )
    assert "outside any run" in told(JobFailed, lambda: bank.board.post([of_run]))
    elsewhere = dataset("bank").sign(bank.key, log="fedseal/" + "1" * 16)
    assert "a statement for" in told(JobFailed, lambda: bank.board.post([elsewhere]))


def test_words_about_what_is_anothers_are_refused(scene):
    bank, eve = scene.person("bank", "data-owner", "model-owner"), scene.person("eve", "data-owner", "model-owner")
    bank.post(dataset("bank").sign(bank.key, log=scene.log))
    eve.post()
    asked = terms("bank", bank.key)
    wrong = {
        "another's data": dataset("bank").sign(eve.key, log=scene.log),
        "another's name on a request": GrantRequest(asked).sign(eve.key, log=scene.log),
        "no say in a grant": Approval(grant_of(asked, bank.key)).sign(eve.key, log=scene.log),
        "nothing to withdraw": catalog.withdraw(eve.key, "credit", time=5, log=scene.log),
        "a grant that is none": Statement.make(eve.key, log=scene.log, kind="grant", run="", body={"grant": "x"}),
    }
    for statement in wrong.values():
        told(JobFailed, lambda statement=statement: eve.post(statement))
    # replayed or out of order, and another δ
    told(JobFailed, lambda: bank.post(dataset("bank", rows=1300).sign(bank.key, log=scene.log)))
    told(JobFailed, lambda: bank.post(dataset("bank", published=2, delta="0.1").sign(bank.key, log=scene.log)))
    assert len(bank.board.read(["dataset"])) == 1


def test_one_bad_statement_keeps_the_whole_group_out_and_spoils_nothing(scene):
    bank = scene.person("bank", "data-owner")
    good = dataset("bank").sign(bank.key, log=scene.log)
    bad = Statement(**{**dataset("bank", "loans").sign(bank.key, log=scene.log).to_dict(), "sig": "00" * 64})
    told(JobFailed, lambda: bank.post(good, bad))
    assert bank.board.read(["dataset"]) == []
    assert bank.post(good)[1] == 2


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"v":1}', b"\xff" * 40, b'{"a":' * 5000])
def test_what_is_no_statement_is_refused(scene, data):
    bank = scene.person("bank", "data-owner")
    told(JobFailed, lambda: bank.door.post([data]))


def test_too_many_too_large_and_none_are_refused(scene):
    bank = scene.person("bank", "data-owner")
    for data in ([], [b"{}"] * 17, [b"x" * (129 << 10)]):
        assert "allowed: " in told(UsageError, lambda data=data: bank.door.post(data))
    for kinds in ([], ["update"], ["dataset", "use"], ["\x1b[2J"]):
        told(UsageError, lambda kinds=kinds: bank.board.read(kinds))
        assert "allowed: card, dataset" in told(UsageError, lambda kinds=kinds: bank.door.board(kinds, 0))
    bank.post(dataset("bank").sign(bank.key, log=scene.log))
    assert bank.board.read(["dataset"], since=2**64 - 1) == []


def test_who_posts_faster_than_a_person_waits_and_others_do_not(scene, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    bank, ann = scene.person("bank", "data-owner"), scene.person("ann", "engineer")
    for _ in range(module.A_MINUTE):
        bank.post()
    before = len(scene.entries())
    assert "a minute; again in" in told(JobFailed, bank.post)
    assert len(scene.entries()) == before  # nor does it fill the ledger with refusals
    ann.post()
    clock[0] += 61
    bank.post()


# ---- a coordinator that lies to its readers


class Liar:
    """A door that answers with what a test makes; `changes`: to who asks for changes of keys."""

    address = "liar:1"

    def __init__(self, *pages: BoardReply, changes: BoardReply | None = None) -> None:
        self.pages, self.changes = pages, changes or BoardReply()

    def board(self, kinds, since):
        if list(kinds) == ["revoke", "rotate"]:
            return self.changes
        return self.pages[min(since, len(self.pages) - 1)]


def page(*items, following=None) -> BoardReply:
    return BoardReply(
        entries=[entry.encode() for entry, _ in items],
        cards=[canonical.encode(card.to_dict()) for _, card in items],
        next=following,
    )


@pytest.fixture
def posted(tmp_path):
    """Two datasets of one owner on a ledger: (coordinator, owner, what was posted)."""
    coordinator, bank = Identity.create("coordinator"), Identity.create("bank")
    board = LedgerBoard(tmp_path / "ledger.db", coordinator)
    log = log_id(coordinator.card)
    board.post([introduce(bank, log=log), *(dataset("bank", f"d-{n}").sign(bank, log=log) for n in range(2))])
    return coordinator, bank, board.read(["dataset"])[0]


def test_readers_take_nothing_that_its_signer_did_not_say(posted, tmp_path):
    coordinator, bank, (one, two) = posted
    book = CardBook(tmp_path / "cards.json")

    def read(*pages):
        return DoorBoard(Liar(*pages), coordinator.card, book).read(["dataset"])

    assert len(read(page((one.entry, one.card), (two.entry, two.card)))) == 2
    assert book.get("bank") == bank.card
    impostor = Identity.create("bank")
    fake = dataset("bank", "d-0", published=9).sign(impostor, log=one.entry.log)
    swapped = dataclasses.replace(one.entry, statement=fake)
    altered = dataclasses.replace(
        one.entry, statement=dataclasses.replace(one.statement, body={**one.statement.body, "act": "withdraw"})
    )
    lies = {
        "the impostor's under the owner's card": page((swapped, bank.card)),
        "altered": page((altered, bank.card)),
        "no card": BoardReply(entries=[one.entry.encode()]),
        "out of order": page((two.entry, bank.card), (one.entry, bank.card)),
        "a page that goes back": page((one.entry, bank.card), following=0),
        "no end": page(following=0),
    }
    for lie in lies.values():
        with pytest.raises(IntegrityError):
            read(lie)


def test_a_swapped_card_is_left_out_and_named(posted, tmp_path):
    coordinator, bank, (one, _) = posted
    book = CardBook(tmp_path / "cards.json")
    book.pin(bank.card)
    impostor = Identity.create("bank")
    fake = dataclasses.replace(one.entry, statement=dataset("bank", "x").sign(impostor, log=one.entry.log))
    board = DoorBoard(Liar(page((fake, impostor.card))), coordinator.card, book)
    assert board.read(["dataset"]) == []
    assert "bank: shows card" in board.refused[0]
    second = Identity.create("coordinator")
    lied = dataclasses.replace(one.entry, statement=dataset("coordinator", "x").sign(second, log=one.entry.log))
    board = DoorBoard(Liar(page((lied, second.card))), coordinator.card, book)
    assert (board.read(["dataset"]), book.get("coordinator")) == ([], None)


def test_kinds_that_were_not_asked_for_and_other_logs_are_refused(posted):
    coordinator, bank, (one, _) = posted
    asked = GrantRequest(terms("bank", bank)).sign(bank, log=one.entry.log)
    for statement in (asked, dataset("bank", "d-0").sign(bank, log="fedseal/" + "0" * 16)):
        lie = page((dataclasses.replace(one.entry, statement=statement), bank.card))
        with pytest.raises(WrongKey):
            DoorBoard(Liar(lie), coordinator.card, None).read(["dataset"])


def test_a_strangers_revocation_ends_nobodys_key(posted):
    coordinator, bank, (one, _) = posted
    eve = Identity.create("eve")
    lie = Revoked("bank", bank.card.fingerprint, "no").sign(eve, log=one.entry.log)
    said: list[str] = []
    told = page((dataclasses.replace(one.entry, statement=lie), eve.card))
    board = DoorBoard(Liar(changes=told), coordinator.card, None)
    assert (revoked_keys(board, tell=said.append), len(said)) == (frozenset(), 1)


# ---- the ledger's side, without a network


def test_a_board_says_the_same_after_others_have_written_to_its_ledger(tmp_path):
    coordinator, bank = Identity.create("coordinator"), Identity.create("bank")
    one, two = (LedgerBoard(tmp_path / "ledger.db", coordinator) for _ in range(2))
    log = log_id(coordinator.card)
    first = dataset("bank").sign(bank, log=log)
    one.post([introduce(bank, log=log), first])
    assert two.post([first]) == (3, 0)
    two.post([dataset("bank", published=2).sign(bank, log=log)])
    with pytest.raises(BadMessage, match="replayed or out of order"):
        one.post([dataset("bank", published=2, rows=1300).sign(bank, log=log)])
    assert one.card("bank") == bank.card


def test_a_failed_post_leaves_the_board_as_the_ledger_is(tmp_path):
    coordinator, bank = Identity.create("coordinator"), Identity.create("bank")
    board, log = LedgerBoard(tmp_path / "ledger.db", coordinator), log_id(coordinator.card)
    good = dataset("bank", published=5).sign(bank, log=log)
    stolen = Statement(**{**introduce(bank, log=log).to_dict(), "sig": "00" * 64})
    with pytest.raises(BadSignature):
        board.post([stolen, good])
    assert board.card("bank") is None
    board.post([introduce(bank, log=log), dataset("bank", published=4).sign(bank, log=log)])


def test_posting_and_reading_are_quick_with_a_thousand_statements(tmp_path):
    coordinator, bank = Identity.create("coordinator"), Identity.create("bank")
    board, log = LedgerBoard(tmp_path / "ledger.db", coordinator), log_id(coordinator.card)
    with Ledger.open(tmp_path / "ledger.db", coordinator) as ledger:
        cards = (dataset("bank", f"d-{n}").sign(bank, log=log) for n in range(1000))
        ledger.commit([introduce(bank, log=log), *cards])
    board.post([dataset("bank", "x").sign(bank, log=log)])
    begun = time.process_time()
    board.post([dataset("bank", "y").sign(bank, log=log)])
    found, following = board.read(["dataset"])
    assert time.process_time() - begun < 1.0
    assert (len(found), following is not None) == (500, True)
