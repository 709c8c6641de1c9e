"""A run whose parties talk to each other, in one process: what is on the ledger, and what a liar gets."""

from __future__ import annotations

import csv
import json
import threading
import time

import pytest

from clients.session import Attendance
from fl_core import messages
from fl_core.errors import BadMessage, DataError, FedsealError, JobFailed, LedgerBroken
from fl_core.session.sealed import SealedChannel
from fl_core.trust import canonical
from fl_core.trust.verify import verify_ledger
from strategies import sessions
from strategies.coordination import Stopped
from tests.support import Federation


@pytest.fixture
def psi(tmp_path):
    """A job of two or three parties with a few ids each."""

    def make(*sets, **psi):
        parties = []
        for name, ids in zip("abc", sets, strict=False):
            with (tmp_path / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["id"], *([i] for i in ids)])
            parties.append({"name": name, "data": str(tmp_path / f"{name}.csv"), "id": ["id"]})
        return {"kind": "psi", "name": "t", "party": parties, "psi": psi, "session": {"timeout": 10}}

    return make


def rows(fed, party):
    with (fed.out / party / "intersection.csv").open(newline="") as file:
        return [row[0] for row in csv.reader(file)][1:]


def test_a_session_ends_on_the_ledger_with_agreeing_conversations(tmp_path, psi):
    fed = Federation(tmp_path)
    outcome = fed.run(psi(range(40), range(20, 60)))
    assert outcome.metrics["intersection_size"] == 20
    assert sorted(rows(fed, "a"), key=int) == [str(n) for n in range(20, 40)]
    assert rows(fed, "a") == rows(fed, "b")
    opened, *said = fed.entries("session")
    assert opened.by == "coordinator"
    assert {s.by: set(s.body["transcripts"]) for s in said} == {"a": {"b"}, "b": {"a"}}
    assert said[0].body["transcripts"]["b"] == said[1].body["transcripts"]["a"]
    assert [r.round for r in fed.records] == [1]
    assert verify_ledger(fed.home.ledger).status == 0


def test_three_parties_are_compared_by_the_coordinator(tmp_path, psi):
    fed = Federation(tmp_path)
    fed.run(psi(range(40), range(20, 60), range(10, 30)))
    assert sorted(rows(fed, "c"), key=int) == [str(n) for n in range(20, 30)]


def test_nothing_that_leaves_a_party_holds_an_id(tmp_path, psi):
    fed = Federation(tmp_path)
    ids = [f"customer-{n}" for n in range(50)]
    fed.run(psi(ids, ids[25:], output="cardinality"))
    assert all(b"customer-" not in wire for _, _, wire in fed.grid.seen)
    assert b"customer-" not in fed.home.ledger.read_bytes()
    assert not (fed.out / "a").exists()


def test_a_party_that_cannot_take_part_ends_the_wait_of_the_others_at_once(tmp_path, psi, monkeypatch):
    """Party b fails before it comes to the exchange, where a would wait for it for minutes."""
    real = Attendance._name

    def fail(self, body, cards):
        if self.home.config.party == "b":
            raise BadMessage("it does not like the members")
        return real(self, body, cards)

    monkeypatch.setattr(Attendance, "_name", fail)
    fed, job = Federation(tmp_path), psi(range(40), range(40))
    job["session"]["timeout"] = 300
    began = time.monotonic()
    with pytest.raises(JobFailed, match="party b, in the session: message"):
        fed.run(job)
    assert time.monotonic() - began < 30
    assert {(e.by, e.body["code"]) for e in fed.entries("failure")} == {("b", "message"), ("a", "lost")}
    assert not fed.entries("drop")


def test_a_party_whose_data_changed_is_named_and_a_later_session_works(tmp_path, psi):
    fed, job = Federation(tmp_path), psi(range(40), range(40))
    joined = threading.Event()
    with pytest.raises(Stopped):
        fed.run(job, stopped=joined.is_set, progress=lambda event: event.kind == "joined" and joined.set())
    path = job["party"][0]["data"]
    with open(path) as file:
        held = file.read()
    with open(path, "a") as file:
        file.write("more\n")
    with pytest.raises(JobFailed):
        fed.run(job)
    with open(path, "w") as file:
        file.write(held)
    assert fed.run(job).metrics["intersection_size"] == 40
    assert verify_ledger(fed.home.ledger).status == 0


def test_conversations_that_differ_end_the_run(tmp_path, psi, monkeypatch):
    real = SealedChannel.transcript
    monkeypatch.setattr(
        SealedChannel, "transcript", lambda self, peer: real(self, peer)[::-1] if self.me == "a" else real(self, peer)
    )
    with pytest.raises(LedgerBroken, match="report different conversations"):
        Federation(tmp_path).run(psi(range(40), range(40)))


def test_an_opening_that_names_a_ghost_is_refused_by_the_parties(tmp_path, psi):
    fed = Federation(tmp_path)

    def add_ghost(party, step, arrays):
        if step == messages.SESSION:
            head = json.loads(arrays["head"])
            head["statement"]["body"]["members"].append("ghost")
            arrays["head"] = canonical.encode(head)
        return arrays

    with pytest.raises(JobFailed, match="signature"):
        fed.run(psi(range(40), range(40)), request=add_ghost)


def test_an_offer_for_another_party_does_not_open(tmp_path, psi):
    fed, seen = Federation(tmp_path), {}
    ready = threading.Event()

    def swap(party, step, arrays):
        if step != messages.SESSION:
            return arrays
        seen[party] = arrays["offer"]
        if party == "a":
            return arrays
        ready.wait(0.2)
        return {**arrays, "offer": seen.get("a", b"")}

    with pytest.raises(JobFailed, match="party b"):
        fed.run(psi(range(40), range(40)), request=swap)


def test_parties_that_report_different_sizes_end_the_run(tmp_path, psi, monkeypatch):
    from clients.psi import PsiProgram

    real = PsiProgram.run

    def lie(self, channel, post, tell):
        def posted(number, metrics):
            post(number, {**metrics, "intersection_size": "39"} if channel.me == "a" else metrics)

        return real(self, channel, posted, tell)

    monkeypatch.setattr(PsiProgram, "run", lie)
    with pytest.raises(LedgerBroken, match="intersection_size"):
        Federation(tmp_path).run(psi(range(40), range(40)))


def test_a_run_that_is_stopped_wakes_its_parties(tmp_path, psi, monkeypatch):
    began = threading.Event()

    def hang(self, timeout):
        began.set()
        self.recv(self.peers[0], step="never", max_bytes=1, timeout=60)

    monkeypatch.setattr(SealedChannel, "gather", hang)
    fed = Federation(tmp_path)
    at = time.monotonic()
    with pytest.raises((Stopped, FedsealError)):
        fed.run(psi(range(40), range(40)), stopped=began.is_set)
    assert time.monotonic() - at < 30


@pytest.mark.parametrize(("sets", "words"), [(([1, 2, 2], [1]), "party a"), (([1], ["", 3]), "party b")])
def test_ids_that_are_no_good_end_the_run_before_a_session(tmp_path, psi, sets, words):
    fed = Federation(tmp_path)
    with pytest.raises(DataError, match=words):
        fed.run(psi(*sets))
    assert not fed.entries("session")


def test_the_pooled_record_says_who_differs():
    class Said:
        def __init__(self, **metrics):
            self.body = {"metrics": metrics}

    pooled = sessions._pool({"a": Said(bytes="10", seconds="1.5", n="7"), "b": Said(bytes="5", seconds="2", n="7")})
    assert pooled == {"bytes": "15", "seconds": "2", "n": "7"}
