"""The coordinator's service beside its parts: what it has Flower know, and what it tells the operator, once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from fl_core.errors import JobFailed, UsageError
from server.coordinator.service import Coordinator


@dataclass
class SuperLink:
    """In place of Flower's: the nodes that it knows, and keys that it does not take."""

    known: dict[int, bytes] = field(default_factory=dict)
    refused: set[bytes] = field(default_factory=set)
    count: int = 4

    def online(self) -> dict[int, bool]:
        return dict.fromkeys(self.known, True)

    def register(self, key: bytes) -> int:
        if key in self.refused or key in self.known.values():
            raise JobFailed("the SuperLink answered 409: Public key already in use")
        self.count += 1
        self.known[self.count] = key
        return self.count

    def unregister(self, number: int) -> None:
        del self.known[number]


@dataclass
class Service:
    """A coordinator that was not started, and what it has said."""

    coordinator: Coordinator
    link: SuperLink
    said: list[str]

    def sync(self, times: int = 3) -> None:
        for _ in range(times):
            self.coordinator._sync()


@pytest.fixture
def service(folder):
    said: list[str] = []
    made = Service(Coordinator(folder, mlflow=None, say=said.append), SuperLink(), said)
    made.coordinator.link = made.link  # type: ignore[assignment]
    return made


def damage(folder, name: str, key: str) -> None:
    table = json.loads(folder.nodes.path.read_text())
    table[name]["card"]["key"] = key
    folder.nodes.path.write_text(json.dumps(table))


def test_flower_knows_every_registered_node_and_no_other(service, folder, make_card):
    bank = folder.nodes.register(make_card("bank"))
    service.sync()
    assert service.link.known == {5: bank.key} and folder.nodes.all()["bank"].flower_id == 5
    clinic = folder.nodes.register(make_card("clinic"))
    folder.nodes.remove("bank")
    service.sync()
    assert service.link.known == {6: clinic.key}


def test_nodes_are_known_again_when_flowers_database_was_lost(service, folder, make_card):
    """A backup leaves it out: the numbers in a restored register are those of another database."""
    bank = folder.nodes.register(make_card("bank"))
    folder.nodes.set_flower_id("bank", 77)
    service.sync()
    assert service.link.known == {5: bank.key} and folder.nodes.all()["bank"].flower_id == 5


def test_a_node_that_is_registered_while_another_is_brought_to_flower_is_not_overlooked(service, folder, make_card):
    folder.nodes.register(make_card("bank"))
    register = service.link.register

    def slow(key: bytes) -> int:
        if "clinic" not in folder.nodes.all():
            folder.nodes.register(make_card("clinic"))
        return register(key)

    service.link.register = slow  # type: ignore[method-assign]
    service.sync()
    assert [node.flower_id for node in folder.nodes.all().values()] == [5, 6]


def test_a_damaged_entry_is_told_once_and_does_not_keep_other_nodes_out(service, folder, make_card):
    for name in ("evil", "bank"):
        folder.nodes.register(make_card(name))
    damage(folder, "evil", "no key at all")
    service.sync()
    assert folder.nodes.all()["bank"].flower_id == 5
    assert sum("node evil: its key is none" in line for line in service.said) == 1
    folder.nodes.register(make_card("clinic"))
    service.sync()
    assert sum("node evil" in line for line in service.said) == 1
    assert len(service.link.known) == 2


def test_a_node_that_flower_does_not_take_is_told_once_tried_again_and_keeps_nobody_out(service, folder, make_card):
    first, bank = folder.nodes.register(make_card("first")), folder.nodes.register(make_card("bank"))
    service.link.refused.add(first.key)
    service.sync()
    assert list(service.link.known.values()) == [bank.key]
    assert sum("node first: the SuperLink answered 409" in line for line in service.said) == 1
    service.link.refused.clear()
    service.sync()
    assert set(service.link.known.values()) == {first.key, bank.key}


def test_a_register_that_cannot_be_read_is_told_once_and_takes_nothing_from_flower(service, folder, make_card):
    folder.nodes.register(make_card("bank"))
    service.sync()
    whole, known = folder.nodes.path.read_text(), dict(service.link.known)
    folder.nodes.path.write_text(whole[:-3])
    with pytest.raises(UsageError, match=r"nodes\.json: not a register"):
        service.coordinator._sync()
    service.sync()
    assert service.link.known == known
    folder.nodes.path.write_text(whole)
    service.sync()
    assert service.link.known == known and folder.nodes.all()["bank"].flower_id == 5
