"""A coordinator's folder, node cards, people with passes, a job and its runs: what the tests of this folder start from.

In place of a run's program stands a shell script, which is there in milliseconds.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from clients.runtime_api import Task
from fl_core.errors import JobFailed
from fl_core.home import Home
from fl_core.trust import certificates
from fl_core.trust.federation import Pass
from fl_core.trust.identity import Identity
from fl_core.trust.node_card import NodeCard
from server.coordinator.folder import Addresses, CoordinatorFolder
from server.coordinator.runs import Runs
from server.registry import all_runs


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a coordinator, to copy: keys are made once."""
    home = Home.open(tmp_path_factory.mktemp("made") / "home")
    CoordinatorFolder.create(home, Addresses(("localhost",), "127.0.0.1", 0, 0, 0))
    return home.path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> CoordinatorFolder:
    """Ports of 0: whoever listens takes a free one."""
    return CoordinatorFolder.open(Home.open(shutil.copytree(made, tmp_path / "home")))


@pytest.fixture
def settings(folder: CoordinatorFolder) -> Callable[..., None]:
    """Change the coordinator's settings, as an operator does with an editor."""
    file = folder.path / "coordinator.json"

    def change(**values: Any) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


@pytest.fixture
def serve_with(folder: CoordinatorFolder) -> Callable[[certificates.Pair], None]:
    """Put another certificate and key in the place of the server's."""

    def put(pair: certificates.Pair) -> None:
        (folder.path / "server.pem").write_bytes(pair.certificate)
        (folder.path / "server.key").write_bytes(pair.key)

    return put


@pytest.fixture
def make_card() -> Callable[..., NodeCard]:
    """A node's card with fresh keys, or with the key that is given."""

    def make(name: str, key: str | None = None) -> NodeCard:
        if key is None:
            public = ec.generate_private_key(ec.SECP384R1()).public_key()
            key = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        return NodeCard.make(Identity.create(name), key)

    return make


@pytest.fixture
def admit(folder: CoordinatorFolder) -> Callable[..., Pass]:
    """Give somebody a pass, as `fedseal coordinator admit` does."""

    def give(name: str, *roles: str) -> Pass:
        pair = certificates.issue_client(folder.authority(), name=name, roles=roles or ("engineer",))
        checked = certificates.check(pair.certificate, authority=folder.authority_pem, purpose="client")
        folder.people.add(checked)
        return Pass(folder.federation(), pair)

    return give


@pytest.fixture
def job() -> dict[str, Any]:
    """A job of three parties for a deployment."""
    parties = [{"name": name, "data": "patients", "id": "id", "label": "y"} for name in "abc"]
    return {
        "kind": "horizontal",
        "name": "test",
        "seed": 3,
        "runtime": "deployment",
        "party": parties,
        "model": {"name": "logistic"},
        "train": {"rounds": 2, "learning_rate": 0.5},
    }


class SuperLink:
    """Gives out tasks; `away`: does not answer."""

    address, ca, token = "127.0.0.1:1", b"the authority's PEM", "f3" * 16

    def __init__(self) -> None:
        self.started: list[str] = []
        self.away = False

    def start_run(self, run: str) -> Task:
        if self.away:
            raise JobFailed("the SuperLink at 127.0.0.1:1 does not answer (ConnectError)")
        self.started.append(run)
        return Task(11, 2**63 + len(self.started), self.token)


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def runs(folder: CoordinatorFolder, superlink: SuperLink, make_card: Callable[..., NodeCard]) -> Iterator[Runs]:
    """Of a coordinator with the nodes a, b and c, which Flower knows as 5, 6 and 7."""
    made = Runs(folder, superlink, "127.0.0.1:1")
    for number, name in enumerate("abc", start=5):
        folder.nodes.register(make_card(name))
        folder.nodes.set_flower_id(name, number)
    yield made
    for run, _ in all_runs(folder.home):
        run.ask_to_stop()
    end = time.monotonic() + 20
    while made.active and time.monotonic() < end:
        made.reap()
        time.sleep(0.01)


class Program:
    """What stands in place of a run's program; `said` is the folder with what it was given."""

    def __init__(self, path: Path, use: Callable[[str], None]) -> None:
        self.said, self._path, self._use, self._count = path / "said", path, use, 0
        self.said.mkdir()

    def __call__(self, body: str) -> Path:
        """The program of the runs from here on; an earlier one may still be waiting to be read."""
        self._count += 1
        script = self._path / f"python-{self._count}"
        script.write_text(f'#!/bin/sh\ncd {self.said}\ncat > stdin\necho "$*" > words\nenv > env\n{body}\n')
        script.chmod(0o700)
        self._use(str(script))
        return self.said

    def waits_for_stop(self, then: str = "") -> Path:
        """One that ends when its run is asked to stop, or after ten seconds."""
        return self(f'for n in $(seq 500); do [ -e "$3/coordinator/runs/$4/stop" ] && break; sleep 0.02; done\n{then}')


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(tmp_path, lambda script: monkeypatch.setattr(sys, "executable", script))
