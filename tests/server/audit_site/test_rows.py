"""Looking through a ledger: pages lose and double nothing, a search finds every digest, nothing can be written."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import server.audit_site.look
from fl_core.errors import JobFailed, UsageError
from fl_core.trust.ledger import Ledger
from server.audit_site.rows import Rows


@pytest.fixture
def rows(scene) -> Rows:
    return Rows(scene.path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    run=st.sampled_from(["", "run-1", "run-2", "none"]),
    kind=st.sampled_from(["", "update", "round", "drop"]),
    by=st.sampled_from(["", "a", "coordinator"]),
    start=st.integers(0, 60),
    limit=st.integers(1, 9),
)
def test_pages_are_those_of_a_slow_reference(scene, run, kind, by, start, limit):
    filters = {name: value for name, value in (("run", run), ("kind", kind), ("by", by)) if value}
    everything = [
        entry.seq for entry in scene.ledger.entries() if all(getattr(entry, name) == filters[name] for name in filters)
    ]
    with Rows(scene.path).look() as look:
        after = [row.seq for row in look.entries(filters, start=start, limit=limit)]
        before = [row.seq for row in look.entries(filters, before=start, limit=limit)]
    assert after == [seq for seq in everything if seq >= start][:limit]
    assert before == [seq for seq in everything if seq < start][-limit:]


@pytest.mark.parametrize(("window", "page"), [(3, 200), (7, 2), (200_000, 200), (200_000, 1)])
def test_every_digest_is_found_once_whatever_the_window(scene, rows, monkeypatch, window, page):
    """Leaf hashes lie in the entry after, which may be in another window; the last one in none."""
    monkeypatch.setattr(server.audit_site.look, "PAGE", page)
    monkeypatch.setattr(server.audit_site.look, "WINDOW", window)
    wanted = {entry.seq: entry.leaf_hash.hex() for entry in scene.ledger.entries()}
    with rows.look() as look:
        for seq, digest in wanted.items():
            hits, low = [], look.size()
            while low:
                found, low = look.search(digest[:20], before=low, limit=5)
                hits += found
            assert [(hit.row.seq, hit.place, hit.digest) for hit in hits] == [(seq, "leaf hash", digest)]


def test_a_digest_in_a_body_is_found_with_the_way_to_it_newest_first(rows):
    with rows.look() as look:
        hits, low = look.search("abababab", before=10**9, limit=50)
    assert low == 0 and [hit.place for hit in hits] == ["body.job"] * 3
    assert [hit.row.run for hit in hits] == ["run-3", "run-2", "run-1"]


def test_hits_beyond_the_limit_come_with_the_next_search(rows):
    with rows.look() as look:
        first, low = look.search("cdcdcdcd", before=10**9, limit=3)
        rest, end = look.search("cdcdcdcd", before=low, limit=50)
        every, _ = look.search("cdcdcdcd", before=10**9, limit=50)
    assert (len(first), end) == (3, 0)
    assert [h.row.seq for h in every][:3] == [h.row.seq for h in first]
    assert {h.row.seq for h in every} == {h.row.seq for h in first + rest}


@pytest.mark.parametrize("text", ["", "abc", "ABABABAB", "abababa'", "%%%%%%%%", "a" * 129])
def test_only_digits_are_searched_for(rows, text):
    with rows.look() as look, pytest.raises(ValueError, match="digits"):
        look.search(text, before=10, limit=5)


def test_a_look_cannot_write(rows):
    with rows.look() as look:
        for statement in ("DELETE FROM entries", "CREATE TABLE x (y)", "PRAGMA user_version=7"):
            with pytest.raises(JobFailed, match=r"readonly|read-only"):
                look.store.all(statement)


def test_an_entry_that_is_none_is_bounded_and_says_nothing(scene, rows):
    db = sqlite3.connect(scene.path)
    db.execute("UPDATE entries SET leaf = zeroblob(900000) WHERE seq = 3")
    db.execute("UPDATE entries SET leaf = '[1]' WHERE seq = 4")
    db.execute("UPDATE entries SET leaf = 7 WHERE seq = 5")
    db.execute("UPDATE entries SET leaf = ? WHERE seq = 6", (b"[" * 100_000,))
    db.commit()
    db.close()
    with rows.look() as look:
        found = look.entries(start=3, limit=4)
        assert found[0].leaf is None and found[0].leaf_hash == ""
        assert [row.fields() for row in found] == [{}, {}, {}, {}]
        assert look.search("abababab", before=10**9, limit=50)[0]


def test_checkpoints_are_those_of_the_ledger(scene, rows):
    with rows.look() as look:
        found = look.checkpoints(before=10**9, limit=100)
        assert [one.size for one in found] == scene.ledger.checkpoint_sizes()[::-1]
        assert {one.size: one.parties for one in found} == {
            size: len(scene.ledger.cosignatures(size)) for size in scene.ledger.checkpoint_sizes()
        }
        assert [one.size for one in look.checkpoints(before=found[1].size, limit=1)] == [found[2].size]


def test_the_stamp_changes_with_every_write_and_with_nothing_else(scene, rows):
    before = rows.stamp()
    with rows.look() as look:
        look.entries(limit=5)
    with Ledger.open(scene.path):
        assert rows.stamp() == before
    scene.ledger.commit([scene.say("a", "update", {"round": 3}, "run-3")])
    assert rows.stamp() != before


@pytest.mark.parametrize("content", [b"", b"nothing", b"SQLite format 3\0" + bytes(4096)])
def test_what_is_no_ledger_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a fedseal ledger"), Rows(path).look():
        pass
