"""Whom a new node trusts: the network may be anybody's, a fingerprint may be mistyped, a file may be another."""

from __future__ import annotations

import dataclasses
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clients.node.bootstrap import federation_of, split, verify
from fl_core.errors import FedsealError, JobFailed, UsageError
from fl_core.processes import free_port
from fl_core.trust import certificates
from fl_core.trust.federation import Federation
from fl_core.trust.identity import Identity

AUTHORITY, OTHER = certificates.make_authority("ours"), certificates.make_authority("ours")
CARD = Identity.create("coordinator").card
OURS = Federation(AUTHORITY.certificate, CARD, "localhost:9443", "localhost:9444")
SERVERS = {
    "ours": certificates.issue_server(AUTHORITY, ["localhost"]),
    "elsewhere": certificates.issue_server(AUTHORITY, ["elsewhere.example"]),
    "another authority": certificates.issue_server(OTHER, ["localhost"]),
    "expired": certificates.issue_server(AUTHORITY, ["localhost"], days=0),
    "a person's": certificates.issue_client(AUTHORITY, name="ann", roles=["engineer"]),
}


class Coordinator:
    """The nodes' port as far as a node that is being made asks it."""

    def __init__(self, pair: certificates.Pair, folder) -> None:
        self.status, self.body, self.paths = 200, OURS.encode(), []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.paths.append(self.path)
                self.send_response(told.status)
                self.end_headers()
                self.wfile.write(told.body)

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        file = folder / f"{id(self)}.pem"
        file.write_bytes(pair.key + pair.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # a client that does not trust us hangs up
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"localhost:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def coordinators(tmp_path_factory):
    made = {name: Coordinator(pair, tmp_path_factory.mktemp("coordinator")) for name, pair in SERVERS.items()}
    yield made
    for coordinator in made.values():
        coordinator.close()


@pytest.fixture
def ours(coordinators):
    held = coordinators["ours"]
    yield held
    held.status, held.body = 200, OURS.encode()


def ask(coordinator: Coordinator, fingerprint: str | None = None) -> Federation:
    return federation_of(coordinator.address, file=None, fingerprint=fingerprint)


# ---- from the network


def test_what_the_coordinator_tells_is_taken_and_then_holds(ours):
    found = ask(ours)
    assert found == OURS
    verify(ours.address, found)
    assert set(ours.paths) == {"/fedseal/federation"}


@pytest.mark.parametrize("name", ["elsewhere", "another authority", "expired", "a person's"])
def test_a_coordinator_without_a_certificate_of_its_own_authority_is_refused(coordinators, name):
    """It tells of our authority, which anybody can fetch; it cannot show a certificate of it."""
    found = ask(coordinators[name])
    with pytest.raises(UsageError, match="its certificate does not hold") as refused:
        verify(coordinators[name].address, found)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given", [OURS.fingerprint, OURS.fingerprint[:16], OURS.fingerprint.upper()], ids=["whole", "short", "upper case"]
)
def test_the_operators_fingerprint_is_recognised(ours, given):
    assert ask(ours, given) == OURS


@pytest.mark.parametrize(
    "given",
    ["", OURS.fingerprint[:15], OURS.fingerprint[1:], OURS.fingerprint + "0", "0" * 64, OURS.fingerprint[:15] + "g",
     "x" * 5000],
    ids=["empty", "short", "shifted", "longer", "another", "mistyped", "endless"],
)  # fmt: skip
def test_another_fingerprint_is_refused_with_the_one_that_was_found(ours, given):
    with pytest.raises(UsageError, match=f"the authority is {OURS.fingerprint}; allowed: 16 digits or more") as refused:
        ask(ours, given)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("status", [302, 401, 404, 500])
def test_another_answer_is_told_with_its_number(ours, status):
    ours.status = status
    with pytest.raises(UsageError, match=f"answered {status}; is this the nodes' port"):
        ask(ours)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"x" * (1 << 20), json.dumps({"version": 2}).encode()])
def test_a_web_server_that_is_no_coordinator_is_refused(ours, body):
    ours.body = body
    with pytest.raises(UsageError, match=f"^{ours.address}: not a federation of version 1$"):
        ask(ours)


def test_an_endless_answer_is_not_read_to_its_end(ours):
    ours.body = OURS.encode() + b" " * (64 << 10)
    assert ask(ours) == OURS
    ours.body = b" " * (64 << 10) + OURS.encode()
    with pytest.raises(UsageError, match="not a federation"):
        ask(ours)


def test_nobody_there_is_a_failure_that_says_what_to_do():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(JobFailed, match=f"{address} does not answer .*; start it, or give its --federation FILE"):
        federation_of(address, file=None, fingerprint=None)
    with pytest.raises(JobFailed, match=f"{address} does not answer"):
        verify(address, OURS)


def test_a_server_without_tls_is_a_failure_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            inside, _ = listener.accept()
            with inside:
                inside.recv(4096)
                inside.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(FedsealError, match="does not answer") as failed:
            federation_of(f"127.0.0.1:{listener.getsockname()[1]}", file=None, fingerprint=None)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("authority", [b"nonsense", b"\xff", AUTHORITY.key])
def test_an_authority_that_is_none_is_refused(ours, authority):
    ours.body = json.dumps(json.loads(OURS.encode()) | {"authority": authority.decode("latin-1")}).encode()
    with pytest.raises(UsageError, match="not a federation"):
        ask(ours)
    with pytest.raises(UsageError, match="its authority is not a PEM certificate"):
        verify(ours.address, dataclasses.replace(OURS, authority=authority))


def test_an_authority_with_a_second_one_behind_it_is_refused(ours):
    """The fingerprint that people compare is the first one's; TLS would take certificates of both."""
    both = (AUTHORITY.certificate + OTHER.certificate).decode()
    ours.body = json.dumps(json.loads(OURS.encode()) | {"authority": both}).encode()
    with pytest.raises(UsageError, match="not a federation"):
        ask(ours, OURS.fingerprint)


# ---- from a file


def test_a_file_from_the_operator_needs_no_network(tmp_path):
    file = tmp_path / "federation.json"
    file.write_bytes(OURS.encode())
    address = f"127.0.0.1:{free_port()}"
    assert federation_of(address, file=file, fingerprint=OURS.fingerprint[:20]) == OURS
    with pytest.raises(UsageError, match="--fingerprint"):
        federation_of(address, file=file, fingerprint="0" * 64)


def test_a_file_that_is_not_there_or_another_is_refused_by_its_path(tmp_path):
    for name, says in (("missing.json", "cannot be read"), ("", "cannot be read"), ("other.json", "not a federation")):
        (tmp_path / "other.json").write_text("{}")
        with pytest.raises(UsageError, match=f"{tmp_path / name}: {says}"):
            federation_of("fed.example:9443", file=tmp_path / name, fingerprint=None)


# ---- addresses


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("fed.example:9443", ("fed.example", 9443)),
        ("10.0.0.7:1", ("10.0.0.7", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_an_address_is_host_and_port(address, found):
    assert split(address) == found


@pytest.mark.parametrize(
    "address",
    [
        "", ":", "fed.example", "fed.example:", ":9443", "fed.example:0", "fed.example:65536", "fed.example:-1",
        "fed.example:https", "fed.example:9443/", "fed.example: 9443",
        "fed.example:²", "fed.example:٣", "fed example:9443", "fed..example:9443", ".example:9443", "fed\n.example:9443",
        "x" * 70 + ".example:9443", "https://fed.example:9443", "me@fed.example:9443", "[fed.example:9443",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_what_is_allowed(address):
    with pytest.raises(UsageError, match=r"^--coordinator .*; allowed: HOST:PORT$"):
        split(address)


@pytest.mark.parametrize(
    "host", ["fed example", "fed..example", "x" * 70 + ".example"], ids=["blank", "dots", "long label"]
)
def test_a_mistyped_host_is_told_in_one_line(host):
    with pytest.raises(UsageError, match=r"^--coordinator '.*'; allowed: HOST:PORT$"):
        federation_of(f"{host}:9443", file=None, fingerprint=None)
