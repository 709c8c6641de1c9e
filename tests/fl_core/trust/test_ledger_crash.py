"""kill -9 in the middle of grouped appends, of writers and of the server: no acknowledged entry is ever lost."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from fl_core.errors import JobFailed
from fl_core.trust.checkpoint import open_checkpoint
from fl_core.trust.entry import Statement
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_copy import as_file
from fl_core.trust.verify import verify_ledger
from tests.postgres import BOTH, place_for

KILLS = 100  # of each store


@pytest.fixture(params=BOTH)
def ledger_place(request, tmp_path):
    return place_for(request, tmp_path)


def _append_until_killed(path, coordinator, life, pipe):
    """Commit groups for ever; acknowledge each with the size and root of its checkpoint, as a party would see it."""
    ledger = Ledger.open(path, coordinator)
    group = 0
    while True:
        statements = [
            Statement.make(coordinator, log=ledger.log, kind="round", run=f"life-{life}", body={"group": group, "n": n})
            for n in range(5)
        ]
        _, note = ledger.commit(statements)
        head = open_checkpoint(note, coordinator.card)
        os.write(pipe, f"{head.size} {head.root.hex()} {group}\n".encode())
        group += 1


def _live_and_die(path, coordinator, life, delay):
    """Fork a writer, kill it `delay` seconds after its first acknowledgement, return all of them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _append_until_killed(path, coordinator, life, writing)
        finally:
            os._exit(1)
    os.close(writing)
    text = os.read(reading, 1 << 16)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as rest:
        text += rest.read()
    return [line.split() for line in text.decode().splitlines()]


@pytest.mark.e2e
def test_no_acknowledged_entry_is_lost_in_100_kills_of_each_store(ledger_place, coordinator):
    path = ledger_place
    chance = random.Random(7)
    acknowledged = 0
    for life in range(KILLS):
        acks = _live_and_die(path, coordinator, life, chance.uniform(0, 0.03))
        assert acks, "the writer died by itself"
        with Ledger.open(path) as ledger:
            for size, root, _ in acks:
                head = open_checkpoint(ledger.checkpoint_at(int(size)), coordinator.card)
                assert head.root.hex() == root
            assert ledger.size >= int(acks[-1][0])
            kept = [entry.body["group"] for entry in ledger.entries(run=f"life-{life}")]
            assert kept == [group for group in range(kept[-1] + 1) for _ in range(5)], "a part of a group was kept"
            assert kept[-1] in (int(acks[-1][2]), int(acks[-1][2]) + 1)
        acknowledged += len(acks)
    with as_file(path) as file:
        report = verify_ledger(file)
    assert report.first_bad is None and report.status == 4  # runs without an end
    assert acknowledged >= KILLS


def _append_through_crashes(place, coordinator, pipe, end):
    """Commit one group after the other; what was surely not stored is sent again.  Acknowledge as above."""
    ledger, group = Ledger.open(place, coordinator), 0
    while time.monotonic() < end:
        body = {"group": group}
        statements = [Statement.make(coordinator, log=ledger.log, kind="round", run="r", body=body) for _ in range(5)]
        try:
            _, note = ledger.commit(statements)
        except JobFailed as error:
            if "nothing was stored" not in str(error):
                raise
            continue
        head = open_checkpoint(note, coordinator.card)
        os.write(pipe, f"{head.size} {head.root.hex()} {group}\n".encode())
        group += 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stop -m immediate", "kill -9"])
def test_no_acknowledged_entry_is_lost_and_none_stored_twice_when_the_server_crashes(postgres, coordinator, way):
    place, chance = postgres.place(), random.Random(way)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            _append_through_crashes(place, coordinator, writing, time.monotonic() + 120)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    acknowledged = os.read(reading, 1 << 16)
    try:
        for _ in range(3):
            time.sleep(chance.uniform(0.1, 0.6))
            if way == "kill -9":
                postgres.kill()
            else:
                postgres.stop()
            postgres.start()
            acknowledged += os.read(reading, 1 << 20)
        time.sleep(0.5)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer died by itself"
    with os.fdopen(reading, "rb") as rest:
        acks = [line.split() for line in (acknowledged + rest.read()).decode().splitlines()]
    with Ledger.open(place) as ledger:
        for size, root, _ in acks:
            head = open_checkpoint(ledger.checkpoint_at(int(size)), coordinator.card)
            assert head.root.hex() == root
        kept = [entry.body["group"] for entry in ledger.entries(run="r")]
    assert kept == [group for group in range(kept[-1] + 1) for _ in range(5)]
    assert kept[-1] in (int(acks[-1][2]), int(acks[-1][2]) + 1)
    assert len(acks) > 10
    with as_file(place) as file:
        assert verify_ledger(file).first_bad is None
