"""The list of runs: reading on is as reading anew, only the coordinator speaks for a run, a rewritten file is noticed."""

from __future__ import annotations

import dataclasses
import sqlite3

import pytest

from fl_core.errors import JobFailed
from server.audit_site import runs
from server.audit_site.look import Look
from server.audit_site.rows import Rows
from server.audit_site.runs import RunIndex
from tests.fl_core.trust.pack_scene import JOB, MODEL
from tests.server.audit_site.scenes import scene_at


def read(index: RunIndex, path) -> dict:
    with Rows(path).look() as look:
        return {name: dataclasses.asdict(run) for name, run in index.read(look).items()}


def test_reading_on_after_each_entry_is_as_reading_once(tmp_path, people):
    scene = scene_at(tmp_path / "l.db", people)
    steps, index = RunIndex(), None
    for act in (
        lambda: scene.open_run("x"), lambda: scene.round("x", 1), lambda: scene.open_run("y"), lambda: scene.end_run("x"),
        lambda: scene.ledger.append([scene.say("coordinator", "failure", {"status": "stopped", "code": "stopped"}, "y")]),
        lambda: scene.ledger.append([scene.say("coordinator", "resume", {"job": JOB}, "y")]),
    ):  # fmt: skip
        act()
        index = RunIndex()
        assert read(steps, scene.path) == read(index, scene.path)
    assert not steps.changed_at
    assert read(steps, scene.path)["y"]["state"] == "open"
    scene.ledger.close()


def test_states_names_and_parties_are_what_the_coordinator_said(scene):
    found = read(RunIndex(), scene.path)
    assert [run["state"] for run in found.values()] == ["ended", "refused", "open"]
    first = found["run-1"]
    assert (first["name"], first["kind"], first["digest"], first["model"]) == ("digits", "horizontal", JOB, MODEL)
    assert first["roster"] == ("a", "b", "c") and found["run-2"]["code"] == "budget"
    entries = list(scene.ledger.entries(run="run-1"))
    assert (first["entries"], first["first"], first["last"]) == (len(entries), entries[0].seq, entries[-1].seq)
    assert first["began"] == entries[0].t


@pytest.mark.parametrize("kind", ["end", "failure", "job", "roster", "resume"])
def test_a_party_cannot_speak_for_a_run(scene, kind):
    before = read(RunIndex(), scene.path)["run-3"]
    body = {
        "status": "failed",
        "model": "f" * 64,
        "job": "0" * 64,
        "view": {"name": "mine"},
        "parties": ["a"],
        "min_parties": 1,
    }
    scene.ledger.append([scene.say("a", kind, body, "run-3")])
    after = read(RunIndex(), scene.path)["run-3"]
    assert {name for name in after if after[name] != before[name]} == {"entries", "last"}


def test_a_file_that_was_cut_or_rewritten_is_noticed_and_read_anew(scene):
    index = RunIndex()
    read(index, scene.path)
    db = sqlite3.connect(scene.path)
    db.execute("DELETE FROM entries WHERE run = 'run-3'")
    db.commit()
    assert list(read(index, scene.path)) == ["run-1", "run-2"] and index.changed_at > 0
    index.changed_at = 0
    db.execute("UPDATE entries SET leaf = replace(leaf, 'a', 'b') WHERE seq = (SELECT MAX(seq) FROM entries)")
    db.commit()
    db.close()
    read(index, scene.path)
    assert index.changed_at > 0


@pytest.mark.parametrize("page", [1, 3, 500])
def test_a_reading_that_is_cut_short_goes_on_where_it_was(scene, monkeypatch, page):
    """What was taken up by then must not look like another ledger afterwards."""
    monkeypatch.setattr(runs, "PAGE", page)
    whole, index, row = read(RunIndex(), scene.path), RunIndex(), Look.row

    def lost(look, seq):
        if seq == 20 or page == 500:
            raise JobFailed("the server cannot be reached")
        return row(look, seq)

    monkeypatch.setattr(Look, "row", lost)
    with pytest.raises(JobFailed):
        read(index, scene.path)
    monkeypatch.setattr(Look, "row", row)
    assert read(index, scene.path) == whole and not index.changed_at


def test_bodies_of_any_shape_are_taken(scene):
    shapes = [
        {},
        {"view": []},
        {"view": {"name": {"x": 1}, "kind": 7}, "job": [1]},
        {"parties": [1, {}], "submitted": "x"},
    ]
    for body in shapes:
        for kind in ("job", "failure", "resume", "end"):
            run = f"odd-{shapes.index(body)}-{kind}"
            scene.ledger.append([scene.say("coordinator", kind, body, run)])
    found = read(RunIndex(), scene.path)
    assert all(isinstance(run["name"], str) and run["state"] for run in found.values()) and len(found) == 19


def test_a_run_is_found_by_its_id_name_party_kind_and_digests(scene):
    with Rows(scene.path).look() as look:
        run = RunIndex().read(look)["run-1"]
    for text in ("run-1", "run-", "DIGITS", "git", "a", "coordinator", "horizontal", JOB[:9], MODEL):
        assert run.matches(text), text
    for text in ("un-1", "horiz", "ab'", "z"):
        assert not run.matches(text), text
