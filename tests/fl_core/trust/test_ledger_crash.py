"""kill -9 in the middle of grouped appends: no acknowledged entry is ever lost."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from fl_core.trust.checkpoint import open_checkpoint
from fl_core.trust.entry import Statement
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify import verify_ledger

KILLS = 100


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
def test_no_acknowledged_entry_is_lost_in_100_kills(tmp_path, coordinator):
    path = tmp_path / "ledger.db"
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
    report = verify_ledger(path)
    assert report.first_bad is None and report.status == 4  # runs without an end
    assert acknowledged >= KILLS
