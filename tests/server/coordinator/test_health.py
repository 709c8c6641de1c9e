"""What a supervisor and the operator are told of a coordinator: never that all is well when it is not."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from fl_core.errors import JobFailed
from fl_core.trust import certificates
from server.coordinator import status
from server.coordinator.health import open_health
from server.coordinator.nodes import DISABLED


@dataclass
class Child:
    """A part of the service as the supervisor knows it."""

    name: str
    alive: bool = True
    starts: int = 1


@dataclass
class Coordinator:
    """What is asked of the running service."""

    folder: Any
    children: list[Child] = field(default_factory=lambda: [Child("superlink"), Child("mlflow")])
    active: list[str] = field(default_factory=list)

    @property
    def service(self) -> Any:
        return SimpleNamespace(children=self.children)

    @property
    def runs(self) -> Any:
        return SimpleNamespace(active=self.active)


@pytest.fixture(autouse=True)
def quick_ends(monkeypatch):
    """A server of the standard library looks twice a second whether it is to end."""
    monkeypatch.setattr(HTTPServer, "serve_forever", partialmethod(HTTPServer.serve_forever, 0.01))


@pytest.fixture
def coordinator(folder):
    return Coordinator(folder)


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def tell(folder: Any, health: str, superlink: str = "127.0.0.1:1") -> None:
    """As the service does when it is ready."""
    folder.running.write_text(json.dumps({"pid": 1, "superlink": superlink, "health": health, "since": 0.0}))


@contextmanager
def answering(code: int, body: bytes):
    """Another program on the port of a coordinator that is gone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/health"
    finally:
        server.shutdown()
        server.server_close()


# ---- /health


def test_a_coordinator_whose_parts_run_is_well(coordinator, make_card):
    coordinator.folder.nodes.register(make_card("bank"))
    coordinator.active.append("ab" * 8)
    coordinator.children[0].starts = 3
    with open_health(coordinator) as url:
        code, body = get(url)
    assert code == 200
    assert json.loads(body) == {
        "ok": True,
        "parts": {"superlink": "running", "mlflow": "running"},
        "runs": ["ab" * 8],
        "nodes": 1,
        "restarts": {"superlink": 2, "mlflow": 0},
    }


def test_a_part_that_is_down_is_told_as_an_error_and_well_again_afterwards(coordinator):
    with open_health(coordinator) as url:
        coordinator.children[1].alive = False
        code, body = get(url)
        assert (code, json.loads(body)["parts"]["mlflow"], json.loads(body)["ok"]) == (503, "down", False)
        coordinator.children[1].alive = True
        assert get(url)[0] == 200


def test_nothing_else_is_served_there(coordinator):
    with open_health(coordinator) as url:
        base = url.removesuffix("/health")
        for path in ("/", "/health/", "/healthz", "/health?x", "/../authority.key", "/HEALTH"):
            assert get(base + path) == (404, b"{}"), path
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(url, data=b"x", timeout=5)


def test_it_listens_on_loopback_only_and_ends_with_the_block(coordinator):
    with open_health(coordinator) as url:
        port = int(url.split(":")[2].split("/")[0])
        assert url.startswith("http://127.0.0.1:")
        with socket.socket() as other:  # free on another address of this machine: it is not bound to all of them
            other.bind(("127.0.0.2", port))
    with pytest.raises(OSError, match="refused"):
        get(url)


def test_a_client_that_says_nothing_does_not_hold_up_the_next(coordinator):
    with open_health(coordinator) as url:
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)):
            assert get(url)[0] == 200


def test_a_port_that_is_taken_is_one_line(folder, settings):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        settings(health_port=taken)
        with pytest.raises(JobFailed, match=str(taken)), open_health(Coordinator(folder)):
            raise AssertionError("served on another program's port")


# ---- fedseal coordinator status


def test_a_coordinator_that_never_ran_is_not_running(folder, make_card):
    folder.nodes.register(make_card("bank"))
    found = status.look(folder)
    assert (found["ok"], found["running"]) == (False, False)
    assert found["problems"] == ["not running; allowed: fedseal coordinator start"]
    assert [(n["name"], n["state"], n["connected"]) for n in found["nodes"]] == [("bank", "enabled", False)]
    assert found["certificate"]["hosts"] == ["localhost", "127.0.0.1"]


def test_a_coordinator_that_was_killed_is_not_taken_for_running(coordinator):
    with open_health(coordinator) as url:
        tell(coordinator.folder, url)
    found = status.look(coordinator.folder)
    assert (found["ok"], found["running"], found["parts"]) == (False, False, {})


def test_parts_that_are_down_and_a_superlink_that_is_silent_are_problems(coordinator):
    coordinator.children[1].alive = False
    with open_health(coordinator) as url:
        tell(coordinator.folder, url)
        found = status.look(coordinator.folder)
    assert (found["ok"], found["running"]) == (False, True)
    assert "mlflow is down" in found["problems"]
    assert any("the SuperLink at 127.0.0.1:1 does not answer" in text for text in found["problems"])
    assert all(len(text.splitlines()) == 1 for text in found["problems"])


@pytest.fixture
def well(coordinator, make_card, monkeypatch):
    """Running, with one node connected, one that Flower counts as connected though it is disabled, and one away."""
    for number, name in enumerate(("bank", "clinic", "bureau"), start=5):
        coordinator.folder.nodes.register(make_card(name))
        coordinator.folder.nodes.set_flower_id(name, number)
    coordinator.folder.nodes.set_state("clinic", DISABLED)
    monkeypatch.setattr(status.SuperLink, "online", lambda self: {5: True, 6: True, 7: False})
    with open_health(coordinator) as url:
        tell(coordinator.folder, url)
        yield coordinator.folder


def test_only_a_node_that_is_let_in_counts_as_connected(well):
    found = status.look(well)
    assert found["ok"] and found["problems"] == []
    assert {n["name"]: n["connected"] for n in found["nodes"]} == {"bank": True, "clinic": False, "bureau": False}


def test_a_certificate_that_ends_soon_is_told_while_all_is_well(well, serve_with):
    serve_with(certificates.issue_server(well.authority(), ["localhost"], days=10))
    found = status.look(well)
    assert found["ok"]
    assert found["problems"] == ["the server's certificate ends in 9 days: fedseal coordinator renew"]


def test_a_certificate_that_has_ended_is_not_well(well, serve_with):
    serve_with(certificates.issue_server(well.authority(), ["localhost"], days=0))
    found = status.look(well)
    assert not found["ok"] and "certificate" not in found
    (problem,) = found["problems"]
    assert "expired on" in problem


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (200, b"<html>"),
        (200, b""),
        (404, b"<html>"),
        (404, b'{"detail": "not found"}'),
        (200, b"[1]"),
        (200, b'{"parts": 3, "runs": [], "restarts": {}}'),
        (200, b'{"a":' * 100_000),
        (503, b"\xff"),
    ],
)
def test_another_program_on_its_port_is_not_taken_for_the_coordinator(folder, code, body):
    with answering(code, body) as url:
        tell(folder, url)
        found = status.look(folder)
    assert (found["ok"], found["running"]) == (False, False)
    assert found["problems"] == [f"not running (another program answers at {url}); allowed: fedseal coordinator start"]


def test_another_program_that_does_not_speak_http_is_no_traceback(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            with other.accept()[0] as wire:
                wire.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=greet, daemon=True).start()
        tell(folder, f"http://127.0.0.1:{other.getsockname()[1]}/health")
        found = status.look(folder)
    assert (found["ok"], found["running"]) == (False, False)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"health": 3, "superlink": "x"}'])
def test_a_damaged_note_of_what_runs_is_no_traceback(folder, text):
    folder.running.write_text(text)
    assert status.look(folder)["problems"] == ["not running; allowed: fedseal coordinator start"]


def test_a_damaged_register_is_not_well_and_its_nodes_are_named(well):
    table = json.loads(well.nodes.path.read_text())
    table["bureau"]["card"] = {}
    well.nodes.path.write_text(json.dumps(table))
    found = status.look(well)
    assert not found["ok"] and [n["name"] for n in found["nodes"]] == ["bank", "clinic"]
    (problem,) = found["problems"]
    assert "node bureau: its entry is damaged" in problem
    well.nodes.path.write_text("{")
    found = status.look(well)
    assert not found["ok"] and found["nodes"] == []
    assert any(str(well.nodes.path) in problem for problem in found["problems"])
    code, body = get(json.loads(well.running.read_text())["health"])
    assert (code, json.loads(body)["ok"]) == (503, False)


def test_a_person_sees_each_node_and_each_problem(well, capsys):
    well.nodes.remove("bureau")
    status.show(status.look(well))
    shown = capsys.readouterr().out
    assert "superlink running" in shown
    assert [line.split()[:2] for line in shown.splitlines() if "…" in line] == [
        ["bank", "connected"],
        ["clinic", "disabled"],
    ]
