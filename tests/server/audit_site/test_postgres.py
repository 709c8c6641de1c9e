"""The auditor's pages over a ledger in PostgreSQL: as over its file, read only, few connections, no password."""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from urllib.parse import quote

import pytest

from fl_core.errors import JobFailed, UsageError
from fl_core.home import Home
from fl_core.trust.checkpoint import cosign
from fl_core.trust.ledger_copy import copy_ledger, digests
from fl_core.trust.ledger_postgres import PostgresStore
from fl_core.trust.postgres_url import PostgresUrl
from fl_core.trust.verify import verify_ledger
from server.audit_site import checking, look, rows
from server.audit_site.rows import Rows
from server.audit_site.site import AuditSite
from tests.postgres import PASSWORD
from tests.server.audit_site.scenes import Read
from tests.server.audit_site.test_site import ALL, FILES

pytestmark = pytest.mark.slow
MORE = (
    "/?kind=horizontal&party=a", "/entries?run=run-1&kind=update&by=b", "/entries?before=20", "/entry/0", "/run?id=run-2",
    "/search?q=cdcdcdcd", "/search?q=update", "/search?q=x%00y", "/checkpoint?size=4", "/checkpoints?before=9", "/entry/999",
    "/consistency?old=1&new=4", "/run?id=run-1",
)  # fmt: skip


@pytest.fixture
def pages(far, tmp_path, pages_of):
    return pages_of(far.path, tmp_path / "home")


@pytest.fixture
def beside(far, tmp_path):
    """The same ledger as a file."""
    path = tmp_path / "copy.db"
    copy_ledger(far.path, path)
    return path


def plain(text: str, place: object) -> str:
    """A page without what differs from one ledger's place, and one second, to another's."""
    words = " ".join(text.replace(str(place), "PLACE").split()).replace("'PLACE'", "PLACE").replace("&#39;", "")
    return re.sub(r"\d\d:\d\d:\d\d|\d+ (seconds|s) ago|in [\d.]+ (ms|s)\b|just now", "TIME", words)


def end_connections(postgres) -> None:
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fedseal'")


# ---- the same pages


def test_every_page_and_file_is_as_over_a_copy_in_a_file(far, beside, pages, tmp_path, pages_of):
    near = pages_of(beside, tmp_path / "home")
    assert "VALID" in pages.verdict() and "VALID" in near.verdict()
    for path in (*ALL, *MORE, *FILES):
        ours, theirs = pages.get(path), near.get(path)
        assert ours.status == theirs.status, path
        if "text/html" not in ours.headers["Content-Type"]:
            assert ours.content == theirs.content, path
        elif not path.startswith("/run"):  # where MLflow is asked meanwhile
            assert plain(ours.text, far.path) == plain(theirs.text, beside), path
        else:
            assert Read(ours.text).table("party", "role") == Read(theirs.text).table("party", "role")


def test_lists_are_those_of_the_file_whatever_is_asked(far, beside):
    with Rows(far.path).look() as ours, Rows(beside).look() as theirs:
        for filters in ({}, {"run": "run-1"}, {"kind": "update", "by": "a"}, {"run": "x\0"}, {"by": "'; --"}):
            for options in ({"start": 0}, {"start": 7}, {"before": 20}, {"before": 0}, {"start": 2**53 - 1}):
                asked = {**options, "limit": 9}
                assert ours.entries(filters, **asked) == theirs.entries(filters, **asked)
        for run in ("run-1", "none"):
            assert ours.count(run, "kind") == theirs.count(run, "kind")
        assert ours.checkpoints(before=99, limit=50) == theirs.checkpoints(before=99, limit=50)
        assert ours.outline(3, ("job", "end"), limit=10) == theirs.outline(3, ("job", "end"), limit=10)


@pytest.mark.parametrize(("window", "page"), [(5, 200), (200_000, 1)])
def test_a_search_finds_what_it_finds_in_the_file(far, beside, monkeypatch, window, page):
    monkeypatch.setattr(look, "WINDOW", window)
    monkeypatch.setattr(look, "PAGE", page)
    wanted = [entry.leaf_hash.hex()[:12] for entry in far.ledger.entries()] + ["abababab", "cdcdcdcd", "00000000"]
    with Rows(far.path).look() as ours, Rows(beside).look() as theirs:
        for digest in wanted:
            before = ours.size()
            while before:
                found = ours.search(digest, before=before, limit=3)
                assert found == theirs.search(digest, before=before, limit=3)
                before = found[1]


# ---- reading only


def test_no_page_writes_a_row_and_a_look_cannot(far, pages):
    def state():
        with far.ledger._store.snapshot():
            return digests(far.ledger._store)

    before = state()
    for path in (*ALL, *MORE, *FILES):
        pages.get(path)
    pages.verdict()
    assert state() == before
    for statement in (
        "INSERT INTO checkpoints VALUES (99, 'x')",
        "CREATE TABLE x (y int)",
        "SET TRANSACTION READ WRITE",
        "DELETE FROM cards",
    ):
        with Rows(far.path).look() as opened, pytest.raises(JobFailed, match=r"read-only|must be set before any query"):
            opened.store.all(statement)


def test_a_role_that_may_only_read_is_enough(far, postgres, pages_of, tmp_path):
    schema = far.path.schema
    postgres.sql(f"CREATE ROLE auditor LOGIN PASSWORD '{PASSWORD}'")
    postgres.sql(f"GRANT USAGE ON SCHEMA {schema} TO auditor")
    postgres.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO auditor")
    try:
        pages = pages_of(postgres.place(schema, user="auditor"), tmp_path / "home")
        assert "run-1" in pages.text("/") and "SHORT OF QUORUM" in pages.verdict()
        assert pages.get("/entry/5/proof").status == 200
    finally:
        postgres.sql("DROP OWNED BY auditor", "DROP ROLE auditor")


def test_a_look_is_one_state_while_others_write(far):
    with Rows(far.path).look() as opened:
        size, newest = opened.size(), opened.checkpoints(before=10**6, limit=1)
        far.ledger.commit([far.say("a", "update", {"round": 9}, "run-3")])
        assert opened.size() == size and opened.row(size) is None
        assert opened.checkpoints(before=10**6, limit=1) == newest
    with Rows(far.path).look() as opened:
        assert opened.size() == size + 1


# ---- what is never shown, and what may fail


def test_the_password_stands_on_no_page(far, pages, postgres, monkeypatch):
    secrets = (PASSWORD, quote(PASSWORD, safe=""), "p@ss")
    texts = [pages.get(path).text for path in (*ALL, *MORE, *FILES)] + [pages.verdict()]
    postgres.stop()
    try:
        texts += [pages.get(path).text for path in ALL]
    finally:
        postgres.start()
    assert not [text for text in texts if any(secret in text for secret in secrets)]
    assert "postgresql://fedseal:***@127.0.0.1" in texts[0]


def test_a_lost_server_is_a_page_and_the_site_lives_on(far, pages, postgres):
    shown = pages.text("/")
    assert "SHORT OF QUORUM" in pages.verdict()
    postgres.stop()
    try:
        for path in ("/", "/entries", "/entry/5", "/entry/5/proof", "/run?id=run-1", "/search?q=a", "/verify"):
            answer = pages.get(path)
            assert answer.status == 503, path
            assert "Not possible now" in answer.text and "the server cannot be reached" in answer.text
            assert "Does not hold" not in answer.text
        assert pages.get("/nope").status == 404
    finally:
        postgres.start()
    again = pages.text("/")
    assert Read(again).table("run", "name") == Read(shown).table("run", "name") and "was changed" not in again


def test_a_connection_cut_between_two_questions_is_no_verdict_on_an_entry(pages, monkeypatch):
    @contextmanager
    def lost(self):
        raise JobFailed("the server cannot be reached")
        yield

    monkeypatch.setattr(rows.Rows, "ledger", lost)  # after the look
    answer = pages.get("/entry/5")
    assert answer.status == 503 and "Does not hold" not in answer.text


def test_a_question_that_takes_too_long_is_cut_off_and_said(far, pages, monkeypatch):
    monkeypatch.setattr(rows, "STATEMENT_SECONDS", 0.3)
    monkeypatch.setattr(rows, "POSTGRES", look.Dialect("leaf", "position(? IN leaf) > 0 AND pg_sleep(1) IS NOT NULL"))
    answer = pages.get("/search", q="abababab")
    assert answer.status == 503 and "statement timeout" in answer.text
    assert pages.get("/").status == 200


def test_a_server_is_asked_by_few_at_a_time(far, pages, postgres, monkeypatch):
    monkeypatch.setattr(rows, "WAIT_SECONDS", 0.2)
    held = [threading.Event() for _ in range(rows.AT_ONCE)]
    go_on = threading.Event()

    def stay(begun):
        with pages.site.rows.look(), pages.site.rows.ledger():  # who is inside waits for no second door
            begun.set()
            go_on.wait(20)

    threads = [threading.Thread(target=stay, args=(begun,)) for begun in held]
    for thread in threads:
        thread.start()
    try:
        assert all(begun.wait(20) for begun in held)
        answer = pages.get("/")
        assert answer.status == 503 and "others are looking into it" in answer.text
        query = f"SELECT count(*) FROM pg_stat_activity WHERE usename = 'fedseal' AND application_name LIKE '%process {os.getpid()}'"
        assert postgres.sql(query)[0][0] <= 2 * rows.AT_ONCE + 1  # and that of the ledger itself
    finally:
        go_on.set()
        for thread in threads:
            thread.join(20)
    assert pages.get("/").status == 200


# ---- the verdict


def test_a_verdict_is_kept_until_something_is_written(far, pages, monkeypatch):
    runs = []
    monkeypatch.setattr(checking, "verify_ledger", lambda *a, **k: (runs.append(1), verify_ledger(*a, **k))[1])
    for _ in range(3):
        assert "written to since" not in pages.verdict()
    assert len(runs) == 1
    far.ledger.commit([far.say("a", "update", {"round": 3}, "run-3")])
    assert "the ledger was written to since" in pages.text("/")
    assert f"over {far.ledger.size}" in pages.verdict() and len(runs) == 2
    note, size = far.ledger.checkpoint(), far.ledger.size
    far.ledger.add_cosignatures(size, {"a": cosign(far.parties["a"], note)})
    pages.verdict()
    assert len(runs) == 3  # a co-signature may complete a quorum


def test_a_copy_for_the_verifier_goes_away(far, pages, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    seen = []
    monkeypatch.setattr(checking, "verify_ledger", lambda path, **k: (seen.append(path), verify_ledger(path, **k))[1])
    assert "SHORT OF QUORUM" in pages.verdict()
    assert seen[0].is_relative_to(tmp_path) and not seen[0].parent.exists()


def test_a_server_lost_while_it_is_verified_gives_no_verdict(pages, postgres, monkeypatch):
    real = checking.as_file

    def cut(place):
        end_connections(postgres)
        postgres.stop()
        return real(place)

    monkeypatch.setattr(checking, "as_file", cut)
    try:
        pages.get("/verify")
        for thread in threading.enumerate():
            if thread.name == "verify":
                thread.join(60)
    finally:
        postgres.start()
    text = pages.verdict()
    assert "Not verified.</b>" in text and "the server cannot be reached" in text and PASSWORD not in text


def test_a_rewritten_entry_is_found_and_named(far, postgres, pages_of, tmp_path):
    with postgres.connect() as connection:  # the server's administrator
        connection.run(f"SET search_path TO {far.path.schema}; SET session_replication_role TO replica")
        ((leaf,),) = connection.run("SELECT leaf FROM entries WHERE seq = 9")
        connection.run("UPDATE entries SET leaf = :leaf WHERE seq = 9", leaf=leaf.replace(b'"sig":"', b'"sig":"0'))
    pages = pages_of(far.path, tmp_path / "home")
    text = pages.verdict()
    assert "BROKEN." in text and 'First bad: <a href="/entry/9">' in text
    assert "Does not hold" in pages.text("/entry/9")


def test_where_there_is_no_ledger_nothing_is_served(postgres, tmp_path):
    with pytest.raises(UsageError, match="no fedseal ledger here"):
        AuditSite(postgres.place(), Home.at(tmp_path))
    with pytest.raises(JobFailed, match="cannot be reached"):
        AuditSite(PostgresUrl(**{**vars(postgres.place()), "port": 1}), Home.at(tmp_path))


def test_a_ledger_that_was_moved_away_can_still_be_looked_through(far, pages):
    store = PostgresStore.open(far.path, writable=True, fill=None)
    with store.transaction():
        store.mark_moved(7)
    store.close()
    assert "run-1" in pages.text("/") and "Holds:" in pages.text("/entry/5")
    with pytest.raises(UsageError, match="was moved to a file"):
        far.ledger.append([far.say("a", "update", {"round": 4}, "run-3")])
