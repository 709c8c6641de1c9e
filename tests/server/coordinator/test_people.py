"""Who is let in at the door: only whoever holds a certificate that was issued here and not taken back."""

from __future__ import annotations

import threading
import time

import pytest

from fl_core.errors import RefusedError, UsageError
from fl_core.trust import certificates
from fl_core.trust.certificates import Pair, issue_client, issue_server, make_authority
from server.coordinator.people import People

AUTHORITY, OTHER = make_authority("ours"), make_authority("ours")


@pytest.fixture
def people(tmp_path):
    return People(tmp_path / "people.json")


def issue(people: People, name: str, *roles: str) -> Pair:
    pair = issue_client(AUTHORITY, name=name, roles=roles or ["engineer"])
    people.add(certificates.check(pair.certificate, authority=AUTHORITY.certificate, purpose="client"))
    return pair


def enter(people: People, pair: Pair):
    return people.admit(pair.certificate, authority=AUTHORITY.certificate)


def kept_out(people: People, pair: Pair) -> str:
    with pytest.raises(RefusedError) as refused:
        enter(people, pair)
    assert len(str(refused.value).splitlines()) == 1 and "BEGIN" not in str(refused.value)
    return str(refused.value)


def test_a_person_comes_in_under_the_name_and_roles_that_the_operator_gave(people):
    ann, eve = issue(people, "ann", "engineer", "auditor"), issue(people, "eve", "operator")
    assert (enter(people, ann).name, enter(people, ann).roles) == ("ann", ("engineer", "auditor"))
    assert (enter(people, eve).name, enter(people, eve).roles) == ("eve", ("operator",))


def test_a_certificate_that_the_operator_never_issued_is_refused_though_the_authority_signed_it(people):
    """Somebody got hold of the authority's key: what it signs beside the register opens nothing."""
    issue(people, "ann")
    forged = issue_client(AUTHORITY, name="ann", roles=["operator"])
    assert "ann is not in this coordinator's register" in kept_out(people, forged)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (issue_client(OTHER, name="ann", roles=["engineer"]), "another authority"),
        (issue_client(AUTHORITY, name="ann", roles=["engineer"], days=0), "expired on"),
        (issue_server(AUTHORITY, ["ann"]), "not a client's certificate"),
        (AUTHORITY, "not a client's certificate"),
        (Pair(b"", b""), "not a PEM certificate"),
        (Pair(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b""), "not a PEM certificate"),
    ],
    ids=["another authority", "expired", "a server's", "the authority's own", "none", "garbage"],
)
def test_what_is_no_persons_certificate_is_refused(people, pair, says):
    issue(people, "ann")
    assert says in kept_out(people, pair)


def test_an_expired_certificate_is_refused_though_it_is_in_the_register(people):
    pair = issue_client(AUTHORITY, name="ann", roles=["engineer"], days=0)
    before = certificates.check(issue(people, "bob").certificate, authority=AUTHORITY.certificate, purpose="client")
    print_of = certificates.fingerprint(pair.certificate)
    people.add(certificates.Checked("ann", ("engineer",), (), before.not_after, 300, print_of))
    assert "expired on" in kept_out(people, pair)


def test_a_revoked_person_is_refused_at_once_and_stays_listed(people):
    ann, bob = issue(people, "ann"), issue(people, "bob")
    began = time.time()
    people.revoke("ann")
    assert "the certificate of ann was revoked" in kept_out(people, ann)
    assert enter(people, bob).name == "bob"
    (listed,) = [p for p in people.all() if p.name == "ann"]
    assert listed.revoked is not None and began <= listed.revoked <= time.time()


def test_a_new_pass_takes_the_old_one_back(people):
    lost, new = issue(people, "ann", "operator"), issue(people, "ann", "engineer")
    assert "revoked" in kept_out(people, lost)
    assert enter(people, new).roles == ("engineer",)


def test_revoking_takes_back_nothing_that_is_issued_afterwards(people):
    old = issue(people, "ann")
    people.revoke("ann")
    new = issue(people, "ann")
    assert enter(people, new).name == "ann"
    assert "revoked" in kept_out(people, old)


def test_revoking_who_holds_nothing_names_who_does(people):
    with pytest.raises(UsageError, match="person ann: holds no certificate; allowed: nobody"):
        people.revoke("ann")
    issue(people, "ann")
    issue(people, "bob")
    people.revoke("ann")
    for name in ("ann", "Bob"):
        with pytest.raises(UsageError, match=f"person {name}: holds no certificate; allowed: bob$"):
            people.revoke(name)


def test_the_moment_of_a_revocation_does_not_move_when_it_is_done_again(people):
    issue(people, "ann")
    people.revoke("ann")
    first = [p.revoked for p in people.all()]
    issue(people, "ann")
    people.revoke("ann")
    assert [p.revoked for p in people.all()][:1] == first


def test_without_the_register_nobody_comes_in(people):
    ann = issue(people, "ann")
    people.path.unlink()
    assert people.all() == []
    kept_out(people, ann)


def test_no_certificate_is_forgotten_when_several_are_issued_at_once(people):
    start, pairs = threading.Barrier(6), {}

    def work(name: str) -> None:
        mine = People(people.path)
        start.wait()
        pairs[name] = issue(mine, name)

    threads = [threading.Thread(target=work, args=(f"p{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {enter(people, pair).name for pair in pairs.values()} == {f"p{n}" for n in range(6)}
