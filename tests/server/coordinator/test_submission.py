"""A submitted job and a run's events: readers see whole events, in order, once."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from server.coordinator.submission import Caller, Events, load, save

ANN = Caller("ann", ("engineer", "auditor"), "ab" * 32)


def test_a_submission_comes_back_and_only_its_owner_reads_it(tmp_path):
    """The parties' own parts are in it."""
    table = {"name": "test", "party": [{"name": "bank", "data": "patients ü", "label": "y"}], "train": {"rounds": 3}}
    save(tmp_path, table, ANN)
    assert load(tmp_path) == (table, {"name": "ann", "roles": ["engineer", "auditor"], "certificate": "ab" * 32})
    assert [stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()] == [0o600]


def test_who_resumes_a_run_is_its_submitter_from_then_on(tmp_path):
    save(tmp_path, {}, ANN)
    save(tmp_path, {}, Caller("bob", ("engineer",), "cd" * 32))
    assert load(tmp_path)[1]["name"] == "bob"


def test_a_run_without_events_has_none(tmp_path):
    events = Events(tmp_path)
    assert events.count() == 0
    reader = events.read()
    assert (reader.new(), reader.number) == ([], 0)
    events.add("joined", 0, {})
    assert [number for number, _ in reader.new()] == [1]


def test_each_event_is_told_once_and_in_order(tmp_path):
    events = Events(tmp_path)
    reader = events.read()
    seen = []
    for n in range(5):
        events.add("round", n, {"loss": n / 2, "text": "two\nlines ü \u2028"})
        seen += reader.new()
    assert reader.new() == []
    assert [(number, e["kind"], e["round"]) for number, e in seen] == [(n + 1, "round", n) for n in range(5)]
    assert seen[3][1]["facts"] == {"loss": 1.5, "text": "two\nlines ü \u2028"}


@pytest.mark.parametrize(("after", "told"), [(0, [1, 2, 3]), (2, [3]), (3, []), (9, [])])
def test_a_reader_that_comes_back_hears_nothing_twice(tmp_path, after, told):
    events = Events(tmp_path)
    for n in range(3):
        events.add("round", n, {})
    reader = events.read(after)
    assert [number for number, _ in reader.new()] == told
    assert reader.number == 3


def test_an_event_that_is_still_being_written_waits_for_its_end(tmp_path):
    events = Events(tmp_path)
    events.add("round", 1, {})
    reader, line = events.read(), json.dumps({"kind": "round", "round": 2, "facts": {}, "time": 1.0}).encode()
    with (tmp_path / "events.jsonl").open("ab", buffering=0) as file:
        file.write(line[:9])
        assert [number for number, _ in reader.new()] == [1]
        assert reader.new() == [] and events.count() == 1
        file.write(line[9:])
        assert reader.new() == []
        file.write(b"\n")
    assert [(number, e["round"]) for number, e in reader.new()] == [(2, 2)]


def test_facts_that_json_does_not_know_do_not_end_the_run(tmp_path):
    Events(tmp_path).add("summary", 0, {"out": Path("/out")})
    assert Events(tmp_path).read().new()[0][1]["facts"] == {"out": "/out"}


def test_a_reader_beside_a_busy_writer_misses_nothing(tmp_path):
    events = Events(tmp_path)
    long = "x" * 20_000  # more than one write of a buffered file

    def write() -> None:
        for n in range(60):
            events.add("round", n, {"text": long})

    writer = threading.Thread(target=write)
    reader, seen = events.read(), []
    writer.start()
    while writer.is_alive():
        seen += reader.new()
    writer.join()
    seen += reader.new()
    assert [(number, e["round"]) for number, e in seen] == [(n + 1, n) for n in range(60)]


@pytest.mark.parametrize("cut", [1, 20, -20, -2])
def test_an_event_that_a_crash_or_a_full_disk_tore_does_not_spoil_the_resumed_run(tmp_path, cut):
    events = Events(tmp_path)
    events.add("round", 1, {})
    file = tmp_path / "events.jsonl"
    watcher, line = events.read(), file.read_bytes()
    assert [number for number, _ in watcher.new()] == [1]
    file.write_bytes(line + line[:cut])
    had = events.count()
    assert (watcher.new(), had) == ([], 1)
    events.add("resumed", 0, {})
    events.add("summary", 0, {"accuracy": 0.9})
    kinds = [(number, e["kind"]) for number, e in events.read(had).new()]
    assert kinds == [(3, "resumed"), (4, "summary")]
    assert [(number, e["kind"]) for number, e in watcher.new()] == kinds
    assert [e["kind"] for _, e in events.read().new()] == ["round", "resumed", "summary"]


def test_an_event_that_lacks_nothing_but_the_end_of_its_line_is_not_lost(tmp_path):
    events = Events(tmp_path)
    events.add("round", 1, {})
    file = tmp_path / "events.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    events.add("resumed", 0, {})
    assert [(number, e["kind"]) for number, e in events.read().new()] == [(1, "round"), (2, "resumed")]
