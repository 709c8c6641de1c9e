"""The coordinator's folder: who may read it, what a second `init` or a renewal leaves as it was, what is wrong in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fl_core.errors import UsageError
from fl_core.home import Home
from fl_core.trust import certificates
from fl_core.trust.federation import Federation, Pass
from server.coordinator.folder import Addresses, CoordinatorFolder

HOSTS = ("fed.example.org", "10.0.0.7")
PUBLIC = {"authority.pem", "server.pem", "federation.json"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text and len(text.splitlines()) == 1 and "PRIVATE" not in text
    return text


# ---- made


def test_private_files_are_made_for_their_owner_alone_whatever_the_umask(home):
    before = os.umask(0)
    try:
        folder = CoordinatorFolder.create(home, Addresses(HOSTS))
    finally:
        os.umask(before)
    assert mode(folder.path) == 0o700
    files = [p for p in folder.path.rglob("*") if p.is_file()]
    assert {p.name for p in files if mode(p) & 0o077} == PUBLIC
    assert {"authority.key", "server.key", "superexec.secret", "coordinator.json"} < {p.name for p in files}


def test_nothing_private_is_in_what_is_handed_to_owners_of_nodes(folder):
    text = folder.public.read_bytes()
    told = Federation.decode(text, "federation.json")
    assert (told.nodes, told.door) == ("localhost:0", "localhost:0")
    assert told.fingerprint == certificates.fingerprint(folder.authority_pem)
    assert told.coordinator == folder.identity().card
    for secret in (folder.secret.read_bytes().hex().encode(), folder.server().key, folder.authority().key):
        assert secret not in text
    assert b"PRIVATE" not in text


def test_a_second_init_leaves_the_authority_that_nodes_have_pinned(folder):
    before = {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()}
    with pytest.raises(UsageError, match="made already; allowed: fedseal coordinator renew") as refused:
        CoordinatorFolder.create(folder.home, Addresses(("other.example.org",)))
    one_line(refused.value)
    assert {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()} == before


def test_a_home_without_a_coordinator_says_what_to_do_first(home):
    with pytest.raises(UsageError, match="no coordinator here; allowed: fedseal coordinator init first") as refused:
        CoordinatorFolder.open(home)
    assert str(home.path) in one_line(refused.value)


def test_two_coordinators_share_neither_secret_nor_authority(tmp_path):
    one, other = (
        CoordinatorFolder.create(Home.open(tmp_path / name), Addresses(("localhost",))) for name in ("one", "other")
    )
    assert one.secret.read_bytes() != other.secret.read_bytes()
    assert len(one.secret.read_bytes()) >= 32
    assert one.federation().fingerprint != other.federation().fingerprint
    with pytest.raises(UsageError, match="another authority"):
        certificates.check(other.server().certificate, authority=one.authority_pem, purpose="server")


def test_the_first_host_is_told_and_the_certificate_holds_for_all_and_for_the_coordinator_itself(home):
    folder = CoordinatorFolder.create(home, Addresses(HOSTS, "0.0.0.0", 1443, 2443))
    assert (folder.federation().nodes, folder.federation().door) == ("fed.example.org:1443", "fed.example.org:2443")
    for host in (*HOSTS, "localhost", "127.0.0.1"):
        certificates.check(folder.server().certificate, authority=folder.authority_pem, purpose="server", host=host)
    with pytest.raises(UsageError, match=r"not for host 'example\.org'"):
        certificates.check(
            folder.server().certificate, authority=folder.authority_pem, purpose="server", host="example.org"
        )


@pytest.mark.parametrize(
    "host",
    ["bücher.example.org", "", " ", "fed example", "fed.example.org:9443", "[2001:db8::7]", "fe80::1%eth0", "a..b", "-a",
     ".", "a.", "*.example.org", "https://fed", "fed\n", "a" * 64, "a." * 130 + "a", "1.2.3.4/8"],
)  # fmt: skip
def test_a_host_that_no_certificate_can_name_is_refused_in_one_line(home, host):
    with pytest.raises(UsageError) as refused:
        CoordinatorFolder.create(home, Addresses((host,)))
    assert repr(host[:80]) in one_line(refused.value) and "allowed: an IP address, or a name" in str(refused.value)
    CoordinatorFolder.create(home, Addresses(("xn--bcher-kva.example.org",)))  # nothing of it stands in the way


@pytest.mark.parametrize("host", ["localhost", "a", "my_service", "FED-1.example.org", "10.0.0.7", "::1", "a" * 63])
def test_a_host_that_a_certificate_can_name_is_taken(home, host):
    folder = CoordinatorFolder.create(home, Addresses((host,)))
    certificates.check(folder.server().certificate, authority=folder.authority_pem, purpose="server", host=host)
    Federation.decode(folder.public.read_bytes(), "federation.json")


def test_an_ipv6_address_is_told_so_that_it_can_be_dialled(home):
    told = CoordinatorFolder.create(home, Addresses(("2001:db8::7",))).federation()
    assert (told.nodes, told.door) == ("[2001:db8::7]:9443", "[2001:db8::7]:9444")


# ---- renewed


def test_renewal_for_other_hosts_leaves_every_pass_and_pinned_authority_good(folder, admit):
    ann, before = admit("ann"), folder.server()
    checked = folder.renew(["new.example.org"])
    assert checked.hosts == ("new.example.org", "localhost", "127.0.0.1")
    assert folder.server().key != before.key
    assert folder.federation().fingerprint == ann.federation.fingerprint
    assert Federation.decode(folder.public.read_bytes(), "there").door == "new.example.org:0"
    Pass.decode(ann.encode(), "ann.pass")
    folder.people.admit(ann.person.certificate, authority=folder.authority_pem)


def test_renewal_without_hosts_keeps_hosts_and_ports(home):
    folder = CoordinatorFolder.create(home, Addresses(HOSTS, "10.0.0.7", 1, 2, 3))
    folder.renew()
    assert CoordinatorFolder.open(home).addresses() == Addresses(HOSTS, "10.0.0.7", 1, 2, 3)


def test_an_authority_key_that_is_kept_elsewhere_is_asked_for_and_the_server_goes_on(folder):
    key = folder.path / "authority.key"
    key.unlink()
    before = folder.server()
    with pytest.raises(UsageError, match="bring the authority's key back") as refused:
        folder.renew(["new.example.org"])
    assert str(key) in one_line(refused.value)
    assert folder.server() == before
    assert folder.addresses().hosts == ("localhost",)
    assert folder.check().days_left > 300


# ---- wrong


def test_an_expired_server_certificate_is_named_before_anybody_connects(folder, serve_with):
    serve_with(certificates.issue_server(folder.authority(), ["localhost"], days=0))
    with pytest.raises(UsageError, match=r"expired on .*fedseal coordinator renew") as refused:
        folder.check()
    assert "server.pem" in one_line(refused.value)


def test_a_certificate_of_another_authority_in_the_folder_is_caught(folder, serve_with):
    serve_with(certificates.issue_server(certificates.make_authority("other"), ["localhost"]))
    with pytest.raises(UsageError, match="another authority"):
        folder.check()


def test_a_key_that_does_not_belong_to_the_certificate_is_caught_without_being_shown(folder, admit):
    (folder.path / "server.key").write_bytes(admit("ann").person.key)
    with pytest.raises(UsageError, match="do not belong together") as refused:
        folder.check()
    one_line(refused.value)


def test_settings_of_another_version_are_refused(folder, settings):
    settings(version=7)
    with pytest.raises(UsageError, match=r"coordinator\.json: version 7; allowed: 1"):
        folder.addresses()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("\ud800", "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("[]", "version None; allowed: 1"),
        ('{"version": 1}', "hosts: missing"),
        ('{"version": 1, "hosts": []}', "hosts: empty"),
        ('{"version": 1, "hosts": "fed"}', "hosts: 'fed' is not a list"),
        ('{"version": 1, "hosts": [7]}', "hosts[0]: 7 is not text"),
        ('{"version": 1, "hosts": ["a"], "port": 9443}', "port: unknown key"),
        ('{"version": 1, "hosts": ["a"], "bind": null}', "bind: None is not text"),
        ('{"version": 1, "hosts": ["a"], "door_port": "9444"}', "door_port: '9444' is not a whole number"),
        ('{"version": 1, "hosts": ["a"], "nodes_port": 65536}', "nodes_port: 65536 is not allowed"),
        ('{"version": 1, "hosts": ["a"], "health_port": -1}', "health_port: -1 is not allowed"),
    ],
)
def test_a_slip_in_the_settings_is_one_line_with_file_and_key(folder, text, says):
    file = folder.path / "coordinator.json"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UsageError) as refused:
        folder.addresses()
    assert one_line(refused.value).startswith(f"{file}: {says}")
