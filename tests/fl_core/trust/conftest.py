"""Identities are made once a session; ledgers are small and fresh."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_core.trust.checkpoint import cosign
from fl_core.trust.entry import Entry, Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_copy import as_file
from fl_core.trust.postgres_url import Place
from fl_core.trust.verify import Report, verify_ledger
from tests.postgres import Server, start_server

PARTIES = ("bank_a", "bank_b", "bank_c")


class Scenario:
    """A coordinator, three parties and their ledger, with one-line helpers."""

    def __init__(self, path: Place, coordinator: Identity, parties: dict[str, Identity]) -> None:
        self.path, self.coordinator, self.parties = path, coordinator, parties
        self.ledger = Ledger.open(path, coordinator)

    def say(self, by: str, kind: str, body: dict[str, Any] | None = None, run: str = "run-1") -> Statement:
        identity = self.coordinator if by == "coordinator" else self.parties[by]
        return Statement.make(identity, log=self.ledger.log, kind=kind, run=run, body=body or {})

    def show_cards(self) -> list[Entry]:
        cards = [self.say(name, "card", {"card": party.card.to_dict()}, run="") for name, party in self.parties.items()]
        return self.ledger.commit(cards)[0]

    def cosign(self, note: str, *names: str) -> int:
        size = int(note.split("\n")[1])
        self.ledger.add_cosignatures(size, {name: cosign(self.parties[name], note) for name in names})
        return size

    def verify(self, **options: Any) -> Report:
        with as_file(self.path) as file:
            return verify_ledger(file, **options)

    def run(self, run: str = "run-1", rounds: int = 2, cosigners: tuple[str, ...] = PARTIES) -> str:
        """A whole run: roster, rounds, end; returns the note that its cosigners signed."""
        names = list(self.parties)
        self.ledger.commit([self.say("coordinator", "roster", {"parties": names, "min_parties": 3}, run)])
        for number in range(rounds):
            self.ledger.commit([self.say(name, "update", {"round": number}, run) for name in names])
        note = self.ledger.commit([self.say("coordinator", "end", {"status": "done"}, run)])[1]
        self.cosign(note, *cosigners)
        return note


@pytest.fixture(scope="session")
def coordinator() -> Identity:
    return Identity.create("coordinator")


@pytest.fixture(scope="session")
def parties() -> dict[str, Identity]:
    return {name: Identity.create(name) for name in PARTIES}


@pytest.fixture
def make_scenario(coordinator: Identity, parties: dict[str, Identity]) -> Iterator[Callable[[Place], Scenario]]:
    made: list[Scenario] = []

    def make(path: Place) -> Scenario:
        made.append(Scenario(path, coordinator, parties))
        return made[-1]

    yield make
    for scenario in made:
        scenario.ledger.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    server = start_server()
    yield server
    server.close()


@pytest.fixture
def ledger_place(tmp_path: Path) -> Place:
    return tmp_path / "ledger.db"


@pytest.fixture
def scenario(ledger_place: Place, make_scenario: Callable[[Place], Scenario]) -> Scenario:
    made = make_scenario(ledger_place)
    made.show_cards()
    return made
