"""What a coordinator tells of itself, and passes: read from the network and from files that people hand over."""

from __future__ import annotations

import hashlib
import json
import ssl

import pytest

from fl_core.errors import UsageError
from fl_core.trust import certificates
from fl_core.trust.federation import Federation, Pass

AUTHORITY, OTHER = certificates.make_authority("ours"), certificates.make_authority("theirs")
DER = ssl.PEM_cert_to_DER_cert(AUTHORITY.certificate.decode())
VERSION_9 = ssl.DER_cert_to_PEM_cert(DER.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020108"), 1))
ANN = certificates.issue_client(AUTHORITY, name="ann", roles=["engineer"])
SURPRISES = [b"", b"null", b"[]", b"7", b'"text"', b"{", b"\xff\xfe", b"{}", b'{"version": 1}']


@pytest.fixture
def federation(coordinator):
    return Federation(AUTHORITY.certificate, coordinator.card, "fed.example:9443", "fed.example:9444")


def changed(held: Federation | Pass, **fields) -> bytes:
    return json.dumps(json.loads(held.encode()) | fields).encode()


# ---- the federation


def test_a_federation_survives_its_file_with_the_fingerprint_of_its_authority(federation):
    got = Federation.decode(federation.encode(), "federation.json")
    assert got == federation
    der = ssl.PEM_cert_to_DER_cert(AUTHORITY.certificate.decode())
    assert got.fingerprint == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize(
    "data", [*SURPRISES, json.dumps(["version", "authority", "coordinator", "nodes", "door"]).encode()]
)
def test_what_is_no_federation_is_refused_by_its_place(data):
    with pytest.raises(UsageError, match=r"^fed\.example:9443: not a federation of version 1$"):
        Federation.decode(data, "fed.example:9443")


@pytest.mark.parametrize("field", ["version", "authority", "coordinator", "nodes", "door"])
def test_a_federation_without_one_of_its_fields_is_refused(federation, field):
    table = json.loads(federation.encode())
    del table[field]
    with pytest.raises(UsageError, match="not a federation"):
        Federation.decode(json.dumps(table).encode(), "x")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"version": 2}, id="newer"),
        pytest.param({"version": "1"}, id="version as text"),
        pytest.param({"version": None}, id="no version"),
        pytest.param({"more": 1}, id="unknown field"),
        pytest.param({"coordinator": None}, id="no card"),
        pytest.param({"coordinator": {"name": "coordinator"}}, id="half a card"),
        pytest.param({"authority": "\ud800"}, id="no text"),
        pytest.param({"authority": "nonsense"}, id="no certificate"),
        pytest.param({"authority": None}, id="no authority"),
        pytest.param({"authority": ""}, id="empty authority"),
        pytest.param({"authority": VERSION_9}, id="a certificate of version 9"),
        pytest.param({"authority": AUTHORITY.key.decode()}, id="a key"),
        pytest.param({"authority": (AUTHORITY.certificate + OTHER.certificate).decode()}, id="a second authority"),
        pytest.param({"nodes": ["fed.example:9443"]}, id="a list of addresses"),
        pytest.param({"nodes": "fed.example"}, id="no port"),
        pytest.param({"nodes": "fed example:9443"}, id="a blank"),
        pytest.param({"door": "fed.example:99999"}, id="no such port"),
        pytest.param({"door": "fed.example:9444\n"}, id="a line feed"),
        pytest.param({"door": None}, id="no door"),
    ],
)
def test_a_federation_with_a_wrong_field_is_refused(federation, fields):
    with pytest.raises(UsageError):
        Federation.decode(changed(federation, **fields), "x")


def test_a_coordinator_whose_card_was_altered_is_refused(federation, parties):
    card = federation.coordinator.to_dict() | {"x25519": parties["bank_a"].card.x25519}
    with pytest.raises(UsageError, match="not a federation"):
        Federation.decode(changed(federation, coordinator=card), "x")


def test_a_partys_card_is_not_taken_for_the_coordinators(federation, parties):
    with pytest.raises(UsageError):
        Federation.decode(changed(federation, coordinator=parties["bank_a"].card.to_dict()), "x")


@pytest.mark.parametrize("kind", [Federation, Pass])
def test_a_deeply_nested_answer_is_refused_in_one_line(kind):
    with pytest.raises(UsageError):
        kind.decode(b"[" * 60_000, "fed.example:9443")


# ---- passes


@pytest.fixture
def made(federation):
    return Pass(federation, ANN)


def test_a_pass_survives_its_file(made):
    got = Pass.decode(made.encode(), "ann.pass")
    assert got == made
    assert (
        certificates.check(got.person.certificate, authority=got.federation.authority, purpose="client").name == "ann"
    )


def test_a_pass_in_a_log_does_not_show_its_key(made):
    secret = "".join(ANN.key.decode().splitlines()[1:-1])
    shown = repr(made).replace("\\n", "")
    assert secret[:40] not in shown and "PRIVATE" not in shown


@pytest.mark.parametrize("data", SURPRISES)
def test_what_is_no_pass_is_refused_with_what_is_allowed(data):
    with pytest.raises(UsageError, match=r"^ann\.pass: not a pass; allowed: the file of fedseal coordinator admit$"):
        Pass.decode(data, "ann.pass")


@pytest.mark.parametrize("field", ["federation", "certificate", "key"])
@pytest.mark.parametrize("value", [None, 7, [], {}], ids=str)
def test_a_pass_with_a_wrong_field_is_refused(made, field, value):
    with pytest.raises(UsageError, match=r"^ann\.pass: not a "):
        Pass.decode(changed(made, **{field: value}), "ann.pass")


@pytest.mark.parametrize(
    ("person", "says"),
    [
        (certificates.issue_client(OTHER, name="ann", roles=["engineer"]), "ann.pass: signed by another authority"),
        (certificates.issue_server(AUTHORITY, ["fed.example"]), "ann.pass: not a client's certificate"),
        (certificates.issue_client(AUTHORITY, name="ann", roles=["engineer"], days=0), "ann.pass: expired on .* renew"),
        (certificates.Pair(ANN.certificate, OTHER.key), "do not belong together"),
        (certificates.Pair(ANN.certificate, b"nothing"), "not a PEM private key"),
        (certificates.Pair(b"nothing", ANN.key), "not a PEM certificate"),
        (certificates.Pair(b"", b""), "not a PEM"),
    ],
    ids=["other authority", "a server's", "expired", "another key", "no key", "no certificate", "empty"],
)
def test_a_pass_that_opens_no_door_is_refused_before_it_is_used(federation, person, says):
    with pytest.raises(UsageError, match=says) as refused:
        Pass.decode(Pass(federation, person).encode(), "ann.pass")
    assert "\n" not in str(refused.value)


def test_a_pass_under_a_made_up_authority_is_refused(made):
    theirs = json.loads(made.federation.encode()) | {"authority": OTHER.certificate.decode()}
    with pytest.raises(UsageError, match="signed by another authority"):
        Pass.decode(changed(made, federation=theirs), "ann.pass")
