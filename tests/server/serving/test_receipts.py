"""Receipts on their way to the ledger: none is lost where it cannot be written, none comes on it twice."""

from __future__ import annotations

import threading

import pytest

from fl_core.errors import JobFailed
from fl_core.serving import make_receipt, make_request
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from server.serving.accounts import Accounts
from server.serving.receipts import Receipts


class World:
    """An owner's ledger and accounts."""

    def __init__(self, path) -> None:
        self.owner, self.client = Identity.create("lab"), Identity.create("clinic")
        self.accounts, self.ledger = Accounts(path / "accounts.db"), Ledger.open(path / "ledger.db", self.owner)

    def served(self, count: int) -> list[str]:
        """Keep so many receipts; their digests."""
        made = []
        for _ in range(count):
            request = make_request(self.client, "Describe", self.owner.card.fingerprint)
            receipt = make_receipt(
                self.owner, self.ledger.log, request, self.client.card, answers="0" * 64, received=1, answered=1
            )
            self.accounts.keep(receipt)
            made.append(receipt.digest)
        return made

    def written(self) -> list[str]:
        return [entry.statement.digest for entry in self.ledger.entries(kind="served")]

    def close(self) -> None:
        self.ledger.close()
        self.accounts.close()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.close()


def test_receipts_wait_for_a_ledger_that_cannot_be_written_and_keep_their_order(world, monkeypatch, caplog):
    commit, tried, works = world.ledger.commit, threading.Semaphore(0), threading.Event()

    def once_it_works(statements):
        tried.release()
        if not works.is_set():
            raise JobFailed("no space")
        return commit(statements)

    monkeypatch.setattr(world.ledger, "commit", once_it_works)
    receipts = Receipts(world.ledger, world.accounts, seconds=0.01)
    made = world.served(3)
    for _ in range(2):  # it tries again
        assert tried.acquire(timeout=20)
    assert world.written() == [] and "receipts wait for the ledger: no space" in caplog.text
    works.set()
    made += world.served(600)  # more than one group
    receipts.close()
    assert world.written() == made and world.accounts.kept() == []


def test_a_log_that_cannot_be_moved_ends_nothing(world, monkeypatch):
    tried = threading.Semaphore(0)

    def fails():
        tried.release()
        raise JobFailed("no space")

    monkeypatch.setattr(world.accounts, "move_log", fails)
    receipts = Receipts(world.ledger, world.accounts, seconds=0.01)
    for _ in range(2):
        assert tried.acquire(timeout=20)
    made = world.served(1)
    receipts.close()
    assert world.written() == made
