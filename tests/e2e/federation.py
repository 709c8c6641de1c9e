"""A deployment on loopback with real processes: a coordinator, nodes, people, and a network that can be cut."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from tests.e2e.process import Place, Running, wait_until

DEPLOYED = """
kind = "horizontal"
name = "{name}"
seed = 3
runtime = "deployment"
{parties}
[model]
name = "logistic"
[train]
rounds = {rounds}
learning_rate = 0.5
min_parties = {least}
{more}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Federation:
    """A coordinator's place with its nodes and people; ended by `clear`."""

    def __init__(self, path: Path, *, coordinator: Path | None = None) -> None:
        self.path = path
        self.place = Place(coordinator or path / "coordinator")
        self.nodes_port, self.door_port, self.health_port, self.exchange_port = (free_port() for _ in range(4))
        self.nodes: dict[str, Node] = {}
        self.people: dict[str, Place] = {}
        self.service: Running | None = None
        ports = ["--port", self.nodes_port, "--door-port", self.door_port, "--health-port", self.health_port]
        ports += ["--exchange-port", self.exchange_port]
        done = self.place.fedseal("coordinator", "init", "--host", "localhost", "--bind", "127.0.0.1", *ports)
        assert done.code == 0, done

    def start(self, *more: str) -> Running:
        self.service = self.place.start("coordinator", "start", *more)
        self.service.wait_for("ready")
        return self.service

    def coordinator(self, *arguments: object) -> Any:
        return self.place.fedseal("coordinator", *arguments)

    def node(self, name: str, *more: object, port: int | None = None, register: bool = True) -> Node:
        node = self.nodes[name] = Node(self.path / name, name, port or self.nodes_port, *more)
        if register:
            assert self.coordinator("register", node.card).code == 0
        return node

    def person(self, name: str, role: str = "engineer") -> Place:
        """Somebody with a pass, in a home of their own."""
        place = self.people[name] = Place(self.path / name)
        done = self.coordinator("admit", name, "--role", role, "--out", place.path / "pass")
        assert done.code == 0, done
        done = place.fedseal("login", place.path / "pass")
        assert done.code == 0, done
        return place

    def ledger(self, kind: str) -> list[dict[str, Any]]:
        """Entries of a kind."""
        done = self.place.fedseal("audit", "show", "--kind", kind, "--json")
        return [json.loads(line) for line in done.out.splitlines()]

    def sees(self, name: str) -> bool:
        """Whether the coordinator takes a node for connected."""
        told = json.loads(self.coordinator("status", "--json").out)
        return any(node["name"] == name and node["connected"] for node in told["nodes"])

    def verdict(self) -> int:
        return self.place.fedseal("audit", "verify").code

    def child(self, part: str) -> int:
        """The coordinator's process of a part: start_superlink, run_process."""
        return _one(self.place, f"server.coordinator.{part}")

    def clear(self) -> None:
        for place in (*(n.place for n in self.nodes.values()), *self.people.values(), self.place):
            place.clear()


class Node:
    """One organisation's node."""

    def __init__(self, path: Path, name: str, port: int, *more: object) -> None:
        self.name, self.place = name, Place(path)
        self.service: Running | None = None
        done = self.place.fedseal("node", "init", "--name", name, "--coordinator", f"localhost:{port}", "--json", *more)
        assert done.code == 0, done
        self.made = done.json
        self.card = self.made["card"]

    @property
    def folder(self) -> Path:
        return self.place.home / "parties" / self.name

    def start(self, *, wait: bool = True, **env: str) -> Running:
        self.service = self.place.start("node", "start", **env)
        if wait:
            self.service.wait_for("connected")
            self.wait_for_executor()
        return self.service

    def wait_for_executor(self) -> None:
        log = self.folder / "logs" / "executor.log"
        wait_until(lambda: log.exists() and "ready" in log.read_text(), f"the executor of {self.name}")

    def status(self) -> dict[str, Any]:
        done = self.place.fedseal("node", "status", "--json")
        return dict(json.loads(done.out))

    def child(self, part: str) -> int:
        """The node's process of a part: supernode, executor."""
        return _one(self.place, f"clients.node.{part}")

    def kill_all(self) -> None:
        """As a machine that loses its power."""
        for pid in self.place.processes():
            os.kill(pid, signal.SIGKILL)


def _one(place: Place, words: str) -> int:
    found = [pid for pid, said in place.processes().items() if words in said]
    assert len(found) == 1, (words, place.processes())
    return found[0]


class Wire:
    """A TCP proxy on loopback: a network that can be cut and joined."""

    def __init__(self, target: int) -> None:
        self._target, self._pairs, self._cut = target, [], False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                inside, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:  # as a network that swallows packets: nothing is answered
                self._pairs.append((inside, inside))
                continue
            outside = socket.create_connection(("127.0.0.1", self._target))
            self._pairs.append((inside, outside))
            for one, other in ((inside, outside), (outside, inside)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                if not self._cut:
                    other.sendall(data)
        except OSError:
            return  # the other direction, or a cut, closed it
        finally:
            other.close()

    def cut(self) -> None:
        """Swallow everything."""
        self._cut = True

    def join(self) -> None:
        """Let new connections through; what hung is reset."""
        self._cut = False
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                end.close()

    def close(self) -> None:
        self._listener.close()
        self.join()
