"""Certificates: what a real TLS connection makes of them, and each reason to refuse one."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fl_core.errors import UsageError
from fl_core.trust import certificates
from fl_core.trust.certificates import Pair, check, issue_client, issue_server, make_authority, renew

AUTHORITY, OTHER = make_authority("ours"), make_authority("ours")
SERVER = issue_server(AUTHORITY, ["coordinator.example", "127.0.0.1"])
CLIENT = issue_client(AUTHORITY, name="eva", roles=["engineer", "auditor"])


def context(side: int, pair: Pair, authority: Pair, folder: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(side)
    file = folder / f"{side}.pem"
    file.write_bytes(pair.key + pair.certificate)
    made.load_cert_chain(file)
    made.load_verify_locations(cadata=authority.certificate.decode())
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """A TLS handshake in memory."""
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(a, b, server_hostname=host), server.wrap_bio(b, a, server_side=True)]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not ends


@pytest.mark.parametrize("host", ["coordinator.example", "127.0.0.1"])
def test_both_sides_of_a_connection_accept_what_was_issued(tmp_path, host):
    client = context(ssl.PROTOCOL_TLS_CLIENT, CLIENT, AUTHORITY, tmp_path)
    shake_hands(client, context(ssl.PROTOCOL_TLS_SERVER, SERVER, AUTHORITY, tmp_path), host)


@pytest.mark.parametrize(
    ("client", "server", "host"),
    [
        (CLIENT, SERVER, "elsewhere.example"),
        (CLIENT, issue_server(OTHER, ["127.0.0.1"]), "127.0.0.1"),
        (issue_client(OTHER, name="eva", roles=["engineer"]), SERVER, "127.0.0.1"),
        (SERVER, SERVER, "127.0.0.1"),
    ],
    ids=["wrong host", "server of another authority", "client of another authority", "server's as client's"],
)
def test_a_connection_is_refused(tmp_path, client, server, host):
    with pytest.raises(ssl.SSLError):
        shake_hands(
            context(ssl.PROTOCOL_TLS_CLIENT, client, AUTHORITY, tmp_path),
            context(ssl.PROTOCOL_TLS_SERVER, server, AUTHORITY, tmp_path),
            host,
        )


def test_check_tells_who_and_how_long():
    told = check(CLIENT.certificate, authority=AUTHORITY.certificate, purpose="client")
    assert (told.name, told.roles) == ("eva", ("engineer", "auditor"))
    assert told.days_left == certificates.CLIENT_DAYS - 1
    assert told.fingerprint == certificates.fingerprint(CLIENT.certificate)


@pytest.mark.parametrize(
    ("certificate", "options", "says"),
    [
        (SERVER.certificate, {"host": "other"}, "not for host 'other'; allowed: coordinator.example, 127.0.0.1"),
        (SERVER.certificate, {"purpose": "client"}, "not a client's"),
        (SERVER.certificate, {"now": datetime.now(UTC) + timedelta(days=400)}, "expired on"),
        (SERVER.certificate, {"now": datetime.now(UTC) - timedelta(days=1)}, "not valid before"),
        (SERVER.certificate, {"authority": OTHER.certificate}, "another authority"),
        (b"nothing", {}, "not a PEM certificate"),
    ],
)
def test_check_refuses_in_one_line(certificate, options, says):
    settings = {"authority": AUTHORITY.certificate, "purpose": "server"} | options
    with pytest.raises(UsageError, match=says) as refused:
        check(certificate, **settings)
    assert "\n" not in str(refused.value)


def test_no_byte_of_the_signed_part_can_be_changed():
    der = x509.load_pem_x509_certificate(SERVER.certificate).public_bytes(Encoding.DER)
    for at in range(8, len(der), 7):
        changed = der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]
        pem = ssl.DER_cert_to_PEM_cert(changed).encode()
        with pytest.raises(UsageError):
            check(pem, authority=AUTHORITY.certificate, purpose="server", host="127.0.0.1")


def test_renewal_keeps_the_names_and_changes_the_key():
    new = renew(AUTHORITY, SERVER.certificate)
    certificates.check_key(new)
    told = check(new.certificate, authority=AUTHORITY.certificate, purpose="server")
    assert told.hosts == ("coordinator.example", "127.0.0.1")
    assert new.key != SERVER.key
    with pytest.raises(UsageError, match="another authority"):
        renew(OTHER, SERVER.certificate)


def test_a_key_of_another_certificate_is_refused_and_no_key_is_shown():
    with pytest.raises(UsageError, match="do not belong together"):
        certificates.check_key(Pair(SERVER.certificate, CLIENT.key))
    assert "PRIVATE" not in repr(SERVER)


@pytest.mark.parametrize("roles", [[], ["king"]])
def test_a_role_that_is_not_known_is_refused(roles):
    with pytest.raises(UsageError, match="allowed: engineer, data-owner, model-owner, receiver, auditor, operator"):
        issue_client(AUTHORITY, name="eva", roles=roles)
