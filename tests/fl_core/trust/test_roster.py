"""The roster: nobody can be added, exchanged or left out without a party noticing."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from clients.group_key import GroupKey
from fl_core.config import load_job
from fl_core.errors import BadMessage, BadSignature, FedsealError, WrongKey
from fl_core.messages import sha256
from fl_core.trust import canonical
from fl_core.trust.checkpoint import log_id
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.roster import Roster

NAMES = ("a", "b", "c")
RUN, JOB = "run-1", "5" * 64


class People:
    def __init__(self) -> None:
        self.identity = {n: Identity.create(n) for n in (*NAMES, "ghost")}
        self.private = {n: X25519PrivateKey.generate() for n in self.identity}
        self.log = log_id(Identity.create("coordinator").card)

    def join(self, name: str, **changes):
        ephemeral = self.private[name].public_key().public_bytes_raw().hex()
        body = {"job": JOB, "role": "trainer", "ephemeral": ephemeral, **changes}
        return Statement.make(self.identity[name], log=self.log, kind="join", run=changes.pop("run", RUN), body=body)

    def roster(self, *names: str) -> Roster:
        return Roster.from_joins([(self.identity[n].card, self.join(n)) for n in names or NAMES])

    def sign(self, name: str, digest: str, kind: str = "roster", **body):
        body = {"roster": digest, "blobs": {}, **body}
        return Statement.make(self.identity[name], log=self.log, kind=kind, run=RUN, body=body).to_dict()

    def check(self, roster: Roster, me: str = "b", names=NAMES, pins=None) -> None:
        expected = {n: (pins or {}).get(n) for n in names}
        roster.check(run=RUN, job=JOB, expected=expected, me=self.identity[me].card)


@pytest.fixture()
def people() -> People:
    return People()


def test_the_agreed_roster_passes_and_reads_back(people):
    roster = people.roster()
    people.check(roster)
    again = Roster.parse(roster.text)
    assert (again.digest, again.contributors, again.key_maker) == (roster.digest, list(NAMES), "a")


@pytest.mark.parametrize("names", [("a", "b", "c", "ghost"), ("a", "b"), ("a", "b", "ghost")])
def test_a_ghost_or_a_missing_party_is_refused(people, names):
    with pytest.raises(BadMessage, match="allowed"):
        people.check(people.roster(*names))


def test_my_own_exchanged_card_is_noticed(people):
    other = Identity.create("b")
    join = Statement.make(other, log=people.log, kind="join", run=RUN, body=people.join("b").body)
    cards = [(people.identity[n].card, people.join(n)) for n in "ac"]
    with pytest.raises(WrongKey, match="another card for 'b'"):
        people.check(Roster.from_joins([cards[0], (other.card, join), cards[1]]))


def test_a_card_other_than_the_jobs_pin_is_refused(people):
    people.check(people.roster(), pins={"c": people.identity["c"].card.fingerprint})
    with pytest.raises(WrongKey, match="pins"):
        people.check(people.roster(), pins={"c": "0" * 64})


def test_an_exchanged_ephemeral_key_breaks_the_join_signature(people):
    table = canonical.decode(people.roster().text)
    table[2]["join"]["body"]["ephemeral"] = people.private["ghost"].public_key().public_bytes_raw().hex()
    with pytest.raises(BadSignature):
        Roster.parse(canonical.encode(table))


@pytest.mark.parametrize("change", [{"job": "6" * 64}, {"run": "run-2"}])
def test_a_join_of_another_job_or_run_is_refused(people, change):
    joins = [(people.identity[n].card, people.join(n)) for n in "ab"]
    joins.append((people.identity["c"].card, people.join("c", **change)))
    with pytest.raises(BadMessage, match="another run or job"):
        people.check(Roster.from_joins(joins))


def test_the_same_party_twice_is_refused(people):
    with pytest.raises(BadMessage):
        people.roster("a", "b", "b")


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'[{"card":1}]', b"\x80\x04."])
def test_junk_is_no_roster(text):
    with pytest.raises(FedsealError):
        Roster.parse(text)


# ---- the ceremony


@pytest.fixture()
def ceremony(people):
    job = load_job({"kind": "horizontal", "dataset": {"name": "digits"}, "party": [{"name": n} for n in NAMES]})
    roster = people.roster()
    group = GroupKey.make(job, roster, scale=1024)
    sealed = group.sealed_to_others(roster, run=RUN)
    blobs = {name: sha256(blob) for name, blob in sealed.items()}
    maker = people.sign("a", roster.digest, "key", blobs=blobs, key=group.cipher.key_id)
    statements = [maker, people.sign("b", roster.digest), people.sign("c", roster.digest)]
    return job, roster, group, sealed, statements


def unseal(people, ceremony, *, me="b", sealed=None, private=None, statements=None):
    job, roster, _, blobs, said = ceremony
    sealed = blobs[f"key.{me}"] if sealed is None else sealed
    maker = roster.check_ceremony(said if statements is None else statements, run=RUN, sealed=sha256(sealed), me=me)
    private = private or people.private[me]
    return GroupKey.unseal(sealed, private, roster, run=RUN, me=me, maker=maker, job=job)


def test_each_trainer_opens_the_makers_key(people, ceremony):
    _, _, group, sealed, _ = ceremony
    assert set(sealed) == {"key.b", "key.c"}
    for me in ("b", "c"):
        opened = unseal(people, ceremony, me=me)
        assert (opened.cipher.key_id, opened.scale) == (group.cipher.key_id, 1024)


def test_anothers_blob_or_private_key_opens_nothing(people, ceremony):
    with pytest.raises(WrongKey, match="signed"):
        unseal(people, ceremony, sealed=ceremony[3]["key.c"])
    with pytest.raises(BadMessage):
        unseal(people, ceremony, private=people.private["c"])


def test_an_unsigned_roster_gives_no_key(people, ceremony):
    *_, said = ceremony
    with pytest.raises(BadMessage, match="not signed by c"):
        unseal(people, ceremony, statements=said[:2])


def test_a_signature_over_another_roster_does_not_count(people, ceremony):
    *_, said = ceremony
    with pytest.raises(BadMessage, match="not signed by c"):
        unseal(people, ceremony, statements=[*said[:2], people.sign("c", "0" * 64)])


def test_a_key_made_by_somebody_else_is_refused(people, ceremony):
    """The coordinator lets another party play the maker: its statement is not the maker's."""
    _, roster, group, sealed, said = ceremony
    blobs = {name: sha256(blob) for name, blob in sealed.items()}
    fake = people.sign("c", roster.digest, "key", blobs=blobs, key=group.cipher.key_id)
    with pytest.raises((WrongKey, BadMessage)):
        unseal(people, ceremony, statements=[people.sign("a", roster.digest), said[1], fake])


def test_a_key_for_another_profile_is_refused(people, ceremony):
    job, roster, _, _, _ = ceremony
    weak = load_job(
        {"kind": "horizontal", "dataset": {"name": "digits"}, "party": [{"name": n} for n in NAMES]},
        {"encryption.profile": "TEST_ONLY"},
    )
    group = GroupKey.make(weak, roster, scale=1024)
    sealed = group.sealed_to_others(roster, run=RUN)
    blobs = {name: sha256(blob) for name, blob in sealed.items()}
    maker = people.sign("a", roster.digest, "key", blobs=blobs, key=group.cipher.key_id)
    said = [maker, people.sign("b", roster.digest), people.sign("c", roster.digest)]
    with pytest.raises(WrongKey, match="TEST_ONLY"):
        unseal(people, (job, roster, group, sealed, said), statements=said)


def test_a_group_key_shows_nothing_of_itself(ceremony):
    _, _, group, _, _ = ceremony
    shown = repr(group) + str(group)
    assert group.to_bytes().hex()[:64] not in shown
    assert "1024" not in shown
