"""How the connection is: written by one process, read by another, through restarts and a clock that moves."""

from __future__ import annotations

import errno
import os
import threading
from types import SimpleNamespace

import pytest

from clients.node import connection
from clients.node.connection import Connection, Contact, is_connected, read


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=1000.0)
    made.time = lambda: made.now
    monkeypatch.setattr(connection, "time", made)
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "connection.json"


def test_before_the_first_call_there_is_nothing(path):
    assert read(path) is None and not is_connected(None)


def test_each_change_is_told_at_once_with_its_time(path, clock):
    link = Connection(path)
    link.note("connected")
    assert read(path) == Contact("connected", 1000.0, 1000.0)
    clock.now = 1001.0
    link.note("unreachable", "ConnectError: refused")
    assert read(path) == Contact("unreachable", 1001.0, 1001.0, "ConnectError: refused")
    clock.now = 1002.0
    link.note("connected")
    assert read(path) == Contact("connected", 1002.0, 1002.0)


def test_many_calls_do_not_wear_the_disk_and_the_first_one_is_remembered(path, clock):
    link, writes = Connection(path), 0
    for tenth in range(200):  # twenty seconds of polls
        clock.now = 1000.0 + tenth / 10
        before = path.stat().st_ino if path.exists() else 0
        link.note("connected")
        writes += path.stat().st_ino != before
    assert 3 <= writes <= 5
    told = read(path)
    assert told.since == 1000.0 and 1014 < told.last <= 1020


def test_a_changed_detail_is_told_within_seconds(path, clock):
    link = Connection(path)
    link.note("unreachable", "ConnectError: refused")
    clock.now += 6
    link.note("unreachable", "ReadTimeout: ")
    assert read(path) == Contact("unreachable", 1000.0, 1006.0, "ReadTimeout: ")


@pytest.mark.parametrize(
    ("state", "age", "connected"),
    [("connected", 0, True), ("connected", 44, True), ("connected", 46, False), ("refused", 0, False), ("", 0, False)],
)
def test_a_node_is_connected_only_while_the_coordinator_answers(path, clock, state, age, connected):
    Connection(path).note(state)
    clock.now += age
    assert is_connected(read(path)) is connected


def test_a_reader_never_meets_a_half_written_file(path):
    """Outcomes that change each time, so that each is written."""
    link, over = Connection(path), threading.Event()
    link.note("connected")

    def write() -> None:
        for i in range(100):
            link.note("refused" if i % 2 else "unreachable", "x" * (i % 50))
        over.set()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    looks = 0
    while not over.is_set():
        assert read(path).state in ("connected", "refused", "unreachable")
        looks += 1
    for writer in writers:
        writer.join()
    assert looks and [p.name for p in path.parent.iterdir()] == ["connection.json"]


@pytest.mark.parametrize("text", ["", '{"state": "conn', "null", '{"state": "connected"}'])
def test_what_a_power_cut_left_is_no_contact(path, text):
    path.write_text(text)
    assert read(path) is None


def test_a_full_disk_does_not_cut_a_node_off(path, clock, monkeypatch, caplog):
    """`note` is called in each call to the coordinator."""
    link = Connection(path)
    link.note("connected")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    link.note("refused", "HTTP 401")
    assert read(path).state == "connected" and "No space left on device" in caplog.text
    monkeypatch.undo()
    link.note("connected")
    assert [p.name for p in path.parent.iterdir()] == ["connection.json"]
