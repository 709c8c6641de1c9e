"""The filter before Flower's one port: what an attacker types at it, over real HTTP, in front of the real SuperLink."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.main import create_app

from fl_core.trust.federation import Federation
from server.coordinator.filter import MAX_BODY, NodesOnly
from server.coordinator.nodes import DISABLED, ENABLED, Nodes

PULL = "/v1/fleet/pull-messages"
ACTIVATE = "/v1/fleet/activate-node"


@dataclass
class SuperLink:
    """Flower's own app, and what got through to it."""

    app: Any
    passed: list[tuple[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed.append((scope["method"], scope["path"]))
        await self.app(scope, receive, send)


@dataclass
class Outside:
    """The port that faces the nodes."""

    port: int
    link: SuperLink
    nodes: Nodes

    def send(self, data: bytes) -> list[tuple[int, bytes]]:
        """Bytes as they are; the answers' statuses and bodies, until the other side closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as wire:
            wire.sendall(data)
            got = b""
            while part := wire.recv(1 << 16):
                got += part
        answers = []
        while got:
            head, _, rest = got.partition(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in lines)
            length = int(fields.get(b"content-length", len(rest)))
            answers.append((int(first.split()[1]), rest[:length]))
            got = rest[length:]
        return answers

    def call(self, path: str, *headers: tuple[str, str], method: str = "POST", body: bytes = b"") -> tuple[int, bytes]:
        """One request as an honest client frames it."""
        fields = [("Host", "localhost"), ("Content-Length", str(len(body))), ("Connection", "close"), *headers]
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields) + "\r\n"
        (answer,) = self.send(head.encode("latin-1") + body)
        return answer


class Key:
    """A node's Flower key, and the headers that Flower's client makes with it."""

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP384R1())
        self.public = public_key_to_bytes(self._private.public_key())

    @property
    def named(self) -> tuple[str, str]:
        return FLEET_HTTP_PUBLIC_KEY_HEADER, b64encode(self.public).decode()

    def signed(self) -> list[tuple[str, str]]:
        stamp = now().isoformat()
        signature = b64encode(sign_message(self._private, stamp.encode())).decode()
        kind = ("Content-Type", PROTOBUF_MEDIA_TYPE)
        return [kind, (TIMESTAMP_HEADER, stamp), (FLEET_HTTP_SIGNATURE_HEADER, signature)]

    def activation(self) -> bytes:
        return ActivateNodeRequest(public_key=self.public, heartbeat_interval=30.0).SerializeToString()


class Port:
    """One listener for all tests; each puts its own filter behind it."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def superlink() -> SuperLink:
    app = create_app()
    app.state.enable_supernode_auth = True
    return SuperLink(app)


@pytest.fixture(scope="module")
def port() -> Iterator[tuple[Port, int]]:
    """Served as `start_superlink` serves it, but for TLS."""
    made = Port()
    config = uvicorn.Config(made, host="127.0.0.1", port=0, lifespan="off", log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    yield made, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def outside(superlink, port, folder) -> Outside:
    listener, number = port
    superlink.passed.clear()
    listener.app = NodesOnly(superlink, folder.nodes, folder.public, header=FLEET_HTTP_PUBLIC_KEY_HEADER)
    return Outside(number, superlink, folder.nodes)


@pytest.fixture
def bank(outside, make_card) -> Key:
    return add(outside, make_card, "bank")


def add(outside: Outside, make_card: Any, name: str) -> Key:
    """A node that both the coordinator and Flower know."""
    key = Key()
    outside.nodes.register(make_card(name, key.public.decode()))
    outside.link.app.state.linkstate_factory.state().create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key.public, 30.0)
    return key


# ---- who


def test_a_registered_node_reaches_flower_and_is_taken_by_it(outside, bank):
    status, body = outside.call(ACTIVATE, bank.named, *bank.signed(), body=bank.activation())
    assert status == 200 and ActivateNodeResponse.FromString(body).node_id
    assert outside.link.passed == [("POST", ACTIVATE)]


def test_a_registered_nodes_name_without_its_signature_gets_no_further_than_flowers_check(outside, bank):
    stranger = Key()
    status, _ = outside.call(ACTIVATE, bank.named, *stranger.signed(), body=bank.activation())
    assert status == 401


def test_a_node_that_flower_knows_and_the_operator_does_not_is_kept_out(outside, bank, make_card):
    gone = add(outside, make_card, "gone")
    outside.nodes.remove("gone")
    assert outside.call(ACTIVATE, gone.named, *gone.signed(), body=gone.activation())[0] == 401
    assert outside.link.passed == []


def test_a_disabled_node_is_kept_out_from_the_next_call_until_it_is_enabled(outside, bank):
    for state, through in ((ENABLED, True), (DISABLED, False), (ENABLED, True)):
        outside.nodes.set_state("bank", state)
        outside.link.passed.clear()
        status, _ = outside.call(ACTIVATE, bank.named, *bank.signed(), body=bank.activation())
        assert bool(outside.link.passed) is through is (status != 401), state


def test_disabling_works_on_a_connection_that_is_open(outside, bank):
    with closing(http.client.HTTPConnection("127.0.0.1", outside.port, timeout=10)) as wire:
        wire.connect()
        opened = wire.sock
        for state in (ENABLED, DISABLED):
            outside.nodes.set_state("bank", state)
            wire.request("POST", PULL, body=b"", headers=dict([bank.named]))
            answer = wire.getresponse()
            answer.read()
            assert (answer.status == 401) is (state == DISABLED)
        assert wire.sock is opened
    assert outside.link.passed == [("POST", PULL)]


def test_a_disabled_node_does_not_get_in_behind_another_nodes_key(outside, bank, make_card):
    gone = add(outside, make_card, "gone")
    outside.nodes.set_state("gone", DISABLED)
    status, _ = outside.call(ACTIVATE, gone.named, bank.named, *gone.signed(), body=gone.activation())
    assert status in (400, 401)
    assert outside.link.passed == []


def test_who_names_no_registered_key_is_kept_out(outside, bank):
    header, value = bank.named
    assert outside.call(PULL)[0] == 401
    near = b64encode(b64decode(value).replace(b"PUBLIC", b"public")).decode()
    for other in ("", "bank", "*", "é", "a" * 4000, near, value.lower(), value + "=", value[:-1], f"{value}, {value}"):
        assert outside.call(PULL, (header, other))[0] == 401, other
    assert outside.call(PULL, ("X-" + header, value))[0] == 401
    assert outside.link.passed == []


def test_without_a_register_nobody_comes_in(outside, bank):
    outside.nodes.path.unlink()
    assert outside.call(PULL, bank.named)[0] == 401
    assert outside.link.passed == []


@pytest.mark.parametrize("name", [FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER, "Content-Length", "X-Other"])
def test_no_header_comes_twice_whatever_is_in_it(outside, bank, name):
    """Whose first and whose last is looked at is nobody's guess."""
    status, _ = outside.call(ACTIVATE, bank.named, *bank.signed(), (name, "0"), (name, "1"), body=bank.activation())
    assert status == 400
    assert outside.link.passed == []


def test_one_damaged_entry_in_the_register_does_not_keep_every_node_out(outside, bank, make_card):
    evil = add(outside, make_card, "evil")
    table = json.loads(outside.nodes.path.read_text())
    table["evil"]["card"]["key"] = "no key at all"
    outside.nodes.path.write_text(json.dumps(table))
    assert outside.call(ACTIVATE, bank.named, *bank.signed(), body=bank.activation())[0] == 200
    assert outside.call(ACTIVATE, evil.named, *evil.signed(), body=evil.activation())[0] == 401


def test_a_register_that_cannot_be_read_lets_nobody_in_until_it_is_whole_again(outside, bank):
    whole = outside.nodes.path.read_text()
    for text, status in ((whole[:-5], 401), (whole, 200)):
        outside.nodes.path.write_text(text)
        assert outside.call(ACTIVATE, bank.named, *bank.signed(), body=bank.activation())[0] == status


# ---- what


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-task-input",
        "/health",
        "/docs",
        "/openapi.json",
        "/",
        "//v1/control/start-run",
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/v1/fleet",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/../../v1/control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/%2E%2E%2Fcontrol/start-run",
        "/v1/fleet/..%2fcontrol%2fstart-run",
        "/v1/fleet/..;/control/start-run",
        "/v1/fleet/.%2e/control/start-run",
        "/V1/FLEET/pull-messages",
        "/v1/Fleet/pull-messages",
        "/v1%2ffleet/../control/start-run",
        "/v1/control/start-run?/v1/fleet/pull-messages",
        "/v1/control/start-run#/v1/fleet/pull-messages",
        "/./v1/fleet/pull-messages",
        "\\v1\\fleet\\pull-messages",
        "http://localhost/v1/control/start-run",
        "http://localhost//v1/fleet/pull-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/register%2dnode",
        "/v1/fleet/%72egister-node",
        "/v1/fleet/register-node?x=1",
        "http://localhost/v1/fleet/register-node",
    ],
)
def test_a_registered_node_gets_nothing_but_its_own_calls(outside, bank, path):
    status, _ = outside.call(path, bank.named, *bank.signed())
    assert status in (400, 404)
    assert outside.link.passed == []


@pytest.mark.parametrize(
    "path",
    ["//v1/control/start-run", ".", "pull-messages.", "%2e", "control/start-run", "%252e%252e/control/start-run", "register-node/",
     "register-node.", "register-node%20", "register-node%00", "REGISTER-NODE", "register-node;x", "%2fregister-node", "pull-messages/x"],
)  # fmt: skip
def test_what_only_looks_like_a_nodes_call_is_nothing_at_flower_either(outside, bank, path):
    """Within the nodes' part, Flower's own router knows its names; nothing else may be reached by a like one."""
    status, _ = outside.call(f"/v1/fleet/{path}", bank.named, *bank.signed(), body=bank.activation())
    assert status in (307, 400, 404)


@pytest.mark.parametrize("call", ["register-node", "unregister-node", "pull-messages"])
@pytest.mark.parametrize("more", ["%0A", "%0D", "%0D%0A", "%00", "%09", "%20", "%7F", "%C2%85", "%E2%80%A8"])
def test_a_call_is_not_reached_with_a_character_after_its_name_that_nobody_sees(outside, bank, call, more):
    """Flower's router ignores a line feed there."""
    status, _ = outside.call(f"/v1/fleet/{call}{more}", bank.named, *bank.signed(), body=bank.activation())
    assert status in (400, 404)
    assert outside.link.passed == []


def test_other_methods_are_not_there(outside, bank):
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "FROB"):
        status, _ = outside.call(PULL, bank.named, method=method)
        assert status in (400, 404), method
    assert outside.link.passed == []


def test_a_second_request_on_the_same_connection_is_looked_at_too(outside, bank):
    one = f"POST {PULL} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{bank.named[0]}: {bank.named[1]}\r\n\r\n"
    two = one.replace(PULL, "/v1/control/start-run").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
    answers = outside.send((one + two).encode())
    assert answers[-1] == (404, b"not found")
    assert outside.link.passed == [("POST", PULL)]


def test_a_websocket_is_not_opened(outside, bank):
    request = (
        f"GET {PULL} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"{bank.named[0]}: {bank.named[1]}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", outside.port), timeout=10) as wire:
        wire.sendall(request.encode())
        assert wire.recv(1 << 16).split(b"\r\n")[0].split()[1] in (b"403", b"404", b"500")
    assert outside.link.passed == []


# ---- how much


def answer_to(outside: Outside, key: Key, **headers: str) -> int | None:
    """What the filter says to a call's head, None where it lets it through; no body is ever asked for."""
    said: list[int] = []

    async def through(scope: Any, receive: Any, send: Any) -> None:
        return None

    async def send(message: Any) -> None:
        said.extend([message["status"]] if "status" in message else [])

    fields = {key.named[0].replace("_", "-"): key.named[1], **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": PULL,
        "headers": [(k.encode(), v.encode()) for k, v in fields.items()],
    }
    guarded = NodesOnly(through, outside.nodes, outside.nodes.path, header=FLEET_HTTP_PUBLIC_KEY_HEADER)
    asyncio.run(guarded(scope, None, send))
    return said[0] if said else None


def test_the_size_of_a_body_is_known_and_bounded_before_it_is_read(outside, bank):
    for length in ("0", str(20 << 20), str(MAX_BODY)):  # Flower's largest part of an array is of 20 MiB
        assert answer_to(outside, bank, **{"content-length": length}) is None, length
    for length in (str(MAX_BODY + 1), "9" * 30):
        assert answer_to(outside, bank, **{"content-length": length}) == 413, length
    for length in ("", "-1", "+1", "1e3", "0x10", "1 ", "1, 1"):
        assert answer_to(outside, bank, **{"content-length": length}) == 411, length


def test_a_body_without_an_end_is_refused_before_it_is_read(outside, bank):
    head = f"POST {PULL} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{bank.named[0]}: {bank.named[1]}\r\n"
    (answer,) = outside.send(f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode())
    assert answer[0] == 411
    (answer,) = outside.send(
        f"{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode()
    )
    assert answer[0] == 400
    assert outside.link.passed == []


# ---- what everybody may know


def test_everybody_is_told_whom_to_trust_and_no_secret(outside, folder):
    status, body = outside.call("/fedseal/federation", method="GET")
    assert status == 200
    assert Federation.decode(body, "there") == folder.federation()
    assert b"PRIVATE" not in body and folder.secret.read_bytes().hex().encode() not in body
    assert set(json.loads(body)) == {"version", "authority", "coordinator", "nodes", "door"}


def test_a_renewed_coordinator_tells_its_new_host_without_a_restart(outside, folder):
    folder.renew(["new.example.org"])
    assert Federation.decode(outside.call("/fedseal/federation", method="GET")[1], "there").nodes == "new.example.org:0"


def test_no_other_file_is_served(outside):
    for path in ("federation/", "federation/../authority.key", "federation%2f..%2fauthority.key", "authority.key", ""):
        assert outside.call(f"/fedseal/{path}", method="GET") == (404, b"not found"), path
    for path in ("/coordinator.json", "//fedseal/federation", "/fedseal%2Ffederation/.", "/fedseal/../server.key"):
        assert outside.call(path, method="GET") == (404, b"not found"), path
    for method in ("POST", "PUT", "DELETE"):
        assert outside.call("/fedseal/federation", method=method) == (404, b"not found"), method
