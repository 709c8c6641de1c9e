"""A ledger that moves: nothing is lost and no two can be written to, wherever the move is cut short; attacks are refused."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing, suppress
from functools import partial

import pytest

from fl_core.errors import FedsealError, JobFailed, LedgerBroken, UsageError
from fl_core.trust import database, ledger_move, ledger_postgres, postgres_connection
from fl_core.trust.checkpoint import cosign
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_copy import as_file, copy_ledger, digests
from fl_core.trust.ledger_move import move_to_file, move_to_server, take_back
from fl_core.trust.ledger_postgres import PostgresStore
from fl_core.trust.ledger_seal import key_of
from fl_core.trust.ledger_store import SqliteStore
from fl_core.trust.outside import WITNESS_KEY, VerifierKey
from fl_core.trust.postgres_connection import Connection
from fl_core.trust.postgres_url import PostgresUrl
from fl_core.trust.rotation import rotate
from fl_core.trust.verify import verify_ledger
from tests.fl_core.trust.flaky import Way
from tests.fl_core.trust.test_ledger_postgres import _restrict

pytestmark = pytest.mark.slow


@pytest.fixture
def full(scenario):
    """Every table has rows."""
    scenario.run()
    witness, size = Identity.create("outsider"), scenario.ledger.size
    line = cosign(witness, scenario.ledger.checkpoint_at(size))
    scenario.ledger.add_outside(size, VerifierKey.of(witness, algorithm=WITNESS_KEY), line)
    new = Identity.create("bank_a")
    scenario.ledger.commit([rotate(scenario.parties["bank_a"], new, log=scenario.ledger.log)])
    scenario.ledger.append([scenario.say("bank_b", "update", run="run-2")])  # under no checkpoint
    scenario.ledger.close()
    return scenario


@pytest.fixture
def server(postgres, full):
    """A ledger on a server, and the path of the file that it was."""
    place = postgres.place()
    move_to_server(full.path, place)
    return place


def content(place) -> dict[str, str]:
    """Digests of all rows."""
    if isinstance(place, PostgresUrl):
        with closing(PostgresStore.open(place, writable=False, fill=None)) as store, store.snapshot():
            return digests(store)
    with closing(SqliteStore.open(place, writable=False, fill=None)) as store:
        return digests(store)


def is_writable(place) -> bool:
    """Whether a coordinator may write to a ledger that is there."""
    kind = PostgresStore if isinstance(place, PostgresUrl) else SqliteStore
    try:
        kind.open(place, writable=True, fill=None).close()
    except UsageError:
        return False
    return True


def nothing_at(postgres, place) -> bool:
    query = f"SELECT count(*) FROM pg_namespace WHERE nspname = '{place.schema}'"
    return postgres.sql(query) == [[0]]


def asides(path) -> list:
    return sorted(path.parent.glob(f"{path.name}.moved-*"))


# ---- there and back


def test_every_row_is_there_afterwards_and_the_log_goes_on(full, postgres):
    target, before = postgres.place(), content(full.path)
    with Ledger.open(full.path) as ledger:
        head = ledger.log, ledger.size, ledger.root.hex()
    moved = move_to_server(full.path, target)
    assert (moved.log, moved.size, moved.root) == head and moved.verified and not moved.resumed
    assert content(target) == before == content(moved.aside)
    assert not full.path.exists() and moved.aside.name == f"ledger.db.moved-{moved.size}"
    assert not [path for path in full.path.parent.iterdir() if path.name.endswith(("-wal", "-shm", "-journal"))]
    assert (is_writable(target), is_writable(moved.aside)) == (True, False)
    with Ledger.open(target, full.coordinator) as ledger:
        ledger.commit([full.say("bank_b", "update", run="run-2")])
    with as_file(target) as file:
        assert verify_ledger(file).first_bad is None
    assert verify_ledger(moved.aside).first_bad is None


def test_it_comes_back_and_goes_again_and_no_name_is_taken_twice(full, postgres):
    before, size = content(full.path), None
    for number in range(2):
        target = postgres.place()
        size = move_to_server(full.path, target).size
        back = move_to_file(target, full.path)
        assert (back.size, back.aside, back.verified) == (size, None, True)
        assert content(full.path) == before == content(target)
        assert (is_writable(full.path), is_writable(target)) == (True, False)
        with closing(SqliteStore.open(full.path, writable=True, fill=None)) as store:
            assert store.all("PRAGMA journal_mode") == [("wal",)] and store.sealed() is None
        assert len(asides(full.path)) == number + 1
    with pytest.raises(UsageError, match="holds a ledger"):  # where it once was
        move_to_server(full.path, target)
    with Ledger.open(full.path, full.coordinator) as ledger:
        ledger.commit([full.say("bank_b", "update", run="run-2")])


def test_no_new_ledger_begins_where_the_file_was(full, server):
    """A coordinator that was started without FEDSEAL_LEDGER."""
    with pytest.raises(UsageError, match=r"its ledger was moved, and the file is ledger\.db\.moved-"):
        Ledger.open(full.path, full.coordinator)
    assert not full.path.exists()


def test_a_ledger_without_the_later_tables_moves_too(postgres, tmp_path, coordinator):
    path, place = tmp_path / "old.db", postgres.place()
    Ledger.open(path, coordinator).close()
    assert move_to_server(path, place).size == 1
    assert move_to_file(place, path, verify=False).verified is False
    with Ledger.open(path, coordinator) as ledger:
        assert ledger.size == 1


def test_progress_is_told_and_ends(full, postgres):
    said = []
    move_to_server(full.path, postgres.place(), say=lambda *told: said.append(told))
    assert {what for what, _, _ in said} == {"copied", "compared"}  # verified is told every thousand entries
    assert all(done <= of for _, done, of in said)
    assert [done == of for what, done, of in said if what == "copied"][-1]


def test_a_role_that_may_only_add_rows_is_enough_to_move_away(full, server, postgres):
    _restrict(postgres, server.schema)
    move_to_file(server, full.path)
    assert (is_writable(full.path), is_writable(server)) == (True, False)


# ---- cut short


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def at(what: str, share: float, told: str, done: int, of: int) -> None:
    if told == what and done >= share * of:
        die()


def patch_commit(monkeypatch, *, after: bool) -> None:
    run = Connection.run

    def commit(self, sql):
        if sql == "COMMIT" and not after:
            die()
        run(self, sql)
        if sql == "COMMIT":
            die()

    monkeypatch.setattr(Connection, "run", commit)


def patch(monkeypatch, owner, name: str, *, after: bool) -> None:
    whole = getattr(owner, name)

    def act(*values, **named):
        if not after:
            die()
        whole(*values, **named)
        die()

    monkeypatch.setattr(owner, name, act)


def killed(act) -> None:
    """Run in a child that does not come to its end."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            act()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "it was not killed where it should be"


AWAY = {
    "in the copy": (lambda patches: {"say": partial(at, "copied", 0.3)}, True),
    "in the comparison": (lambda patches: {"say": partial(at, "compared", 0.3)}, True),
    "before the seal": (lambda patches: patch(patches, SqliteStore, "seal", after=False), True),
    "before the seal is on the disk": (lambda patches: patch(patches, SqliteStore, "seal", after=True), True),
    "before the server's commit": (lambda patches: patch_commit(patches, after=False), False),
    "after the server's commit": (lambda patches: patch_commit(patches, after=True), False),
    "before the file's name": (lambda patches: patch(patches, ledger_move, "_set_aside", after=False), False),
    "after the file's name": (lambda patches: patch(patches, ledger_move, "_set_aside", after=True), False),
}


@pytest.mark.parametrize("where", AWAY)
def test_killed_on_its_way_to_the_server(full, postgres, monkeypatch, where):
    target, before = postgres.place(), content(full.path)
    set_up, writable = AWAY[where]
    with monkeypatch.context() as patches:
        options = set_up(patches) or {}
        killed(lambda: move_to_server(full.path, target, **options))
    there = not nothing_at(postgres, target)
    assert is_writable(full.path) is writable and is_writable(target) is there
    assert not (is_writable(full.path) and is_writable(target))
    assert content(target if there else full.path) == before
    if writable:
        with Ledger.open(full.path, full.coordinator) as ledger:  # life goes on, and the move begins anew
            ledger.append([full.say("bank_b", "update", run="run-2")])
        before = content(full.path)
    if full.path.exists():
        moved = move_to_server(full.path, target)
        assert moved.resumed is not writable and moved.aside == asides(full.path)[0]
    assert (is_writable(target), full.path.exists(), len(asides(full.path))) == (True, False, 1)
    assert content(target) == before
    with Ledger.open(target, full.coordinator) as ledger:
        ledger.commit([full.say("bank_b", "update", run="run-2")])
    with as_file(target) as file:
        assert verify_ledger(file).first_bad is None


BACK = {
    "in the copy": (lambda patches: {"say": partial(at, "copied", 0.3)}, True),
    "in the comparison": (lambda patches: {"say": partial(at, "compared", 0.3)}, True),
    "before the file's name": (lambda patches: patch(patches, database, "link_once", after=False), True),
    "after the file's name": (lambda patches: patch(patches, database, "link_once", after=True), True),
    "before the mark": (lambda patches: patch(patches, PostgresStore, "mark_moved", after=False), True),
    "before the server's commit": (lambda patches: patch_commit(patches, after=False), True),
    "after the server's commit": (lambda patches: patch_commit(patches, after=True), False),
    "before the seal is off": (lambda patches: patch(patches, ledger_move, "_unseal", after=False), False),
    "after the seal is off": (lambda patches: patch(patches, ledger_move, "_unseal", after=True), None),
}


@pytest.mark.parametrize("where", BACK)
def test_killed_on_its_way_back(full, server, postgres, monkeypatch, where):
    before = content(server)
    set_up, writable = BACK[where]
    with monkeypatch.context() as patches:
        options = set_up(patches) or {}
        killed(lambda: move_to_file(server, full.path, **options))
    done = writable is None
    assert is_writable(server) is bool(writable) and is_writable(full.path) is done
    assert content(server) == before
    if writable:
        with Ledger.open(server, full.coordinator) as ledger:
            ledger.append([full.say("bank_b", "update", run="run-2")])
        before = content(server)
    if done:
        with pytest.raises(UsageError, match="was moved away already"):
            move_to_file(server, full.path)
    else:
        assert move_to_file(server, full.path).resumed is not writable
    assert (is_writable(server), is_writable(full.path)) == (False, True)
    assert content(full.path) == before
    with Ledger.open(full.path, full.coordinator) as ledger:
        ledger.commit([full.say("bank_b", "update", run="run-2")])
    assert verify_ledger(full.path).first_bad is None


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_lost_in_its_commit(full, postgres, monkeypatch, when):
    """Stored or not: the target is looked at again, and the file stays sealed until that is known."""
    monkeypatch.setattr(postgres_connection, "RETURN_SECONDS", 3.0)
    way, target, before = Way(postgres.port), postgres.place(), content(full.path)
    by_way = PostgresUrl(**{**vars(target), "port": way.port})
    way.fail = when
    if when == "after":
        assert move_to_server(full.path, by_way).size and content(target) == before
    else:
        with pytest.raises(JobFailed, match=r"nothing was stored; the file is sealed; allowed: the same move"):
            move_to_server(full.path, by_way)
        assert not is_writable(full.path) and nothing_at(postgres, target)
        assert move_to_server(full.path, by_way).resumed
    assert content(target) == before and way.fail is None
    way.close()


def test_a_server_lost_in_the_commit_of_the_mark(full, server, postgres, monkeypatch):
    monkeypatch.setattr(postgres_connection, "RETURN_SECONDS", 3.0)
    way, before = Way(postgres.port), content(server)
    place = PostgresUrl(**{**vars(server), "port": way.port})
    way.fail = "before"
    with pytest.raises(JobFailed, match="nothing was stored"):
        move_to_file(place, full.path)
    assert (is_writable(server), is_writable(full.path)) == (True, False)
    way.fail = "after"
    assert move_to_file(place, full.path).size and content(full.path) == before
    way.close()


# ---- a move that was cut short is ended, or taken back, and no other is begun


@pytest.fixture
def sealed(full, postgres, monkeypatch):
    """A file that is sealed for a place where nothing is yet."""
    target = postgres.place()
    with monkeypatch.context() as patches:
        patch_commit(patches, after=False)
        killed(lambda: move_to_server(full.path, target))
    return target


def test_another_target_is_refused(full, sealed, postgres):
    other = postgres.place()
    with pytest.raises(UsageError, match=r"is sealed for postgresql://127\.0\.0\.1.*allowed: --to there") as caught:
        move_to_server(full.path, other)
    assert key_of(sealed) in str(caught.value) and nothing_at(postgres, other)


def test_it_can_be_taken_back_while_nothing_is_there(full, sealed, postgres):
    with pytest.raises(UsageError, match="is sealed for"):
        take_back(full.path, postgres.place())
    before = content(full.path)
    take_back(full.path, sealed)
    assert is_writable(full.path) and nothing_at(postgres, sealed) and content(full.path) == before
    with pytest.raises(UsageError, match="is not sealed"):
        take_back(full.path, sealed)
    assert not move_to_server(full.path, sealed).resumed


def test_it_cannot_be_taken_back_once_the_ledger_is_there(full, postgres, monkeypatch):
    target = postgres.place()
    with monkeypatch.context() as patches:
        patch_commit(patches, after=True)
        killed(lambda: move_to_server(full.path, target))
    with pytest.raises(UsageError, match="holds the ledger"):
        take_back(full.path, target)
    assert not is_writable(full.path)
    with Ledger.open(target, full.coordinator) as ledger:  # from another machine
        size = ledger.commit([full.say("bank_b", "update", run="run-2")])[0][0].seq + 1
    moved = move_to_server(full.path, target)
    assert moved.resumed and moved.size == size - 1


def test_it_cannot_be_taken_back_while_another_mover_is_about_to_commit(full, postgres, monkeypatch):
    """The lock of the target's schema orders them."""
    monkeypatch.setattr(ledger_postgres, "LOCK_SECONDS", 0.3)
    target, tried = postgres.place(), []
    run = Connection.run

    def commit(self, sql):
        if sql == "COMMIT" and not tried:
            tried.append(True)
            with pytest.raises(JobFailed, match="locked; waited"):
                take_back(full.path, target)
        run(self, sql)

    monkeypatch.setattr(Connection, "run", commit)
    monkeypatch.setattr(ledger_move, "_alone", _many(ledger_move._alone))
    move_to_server(full.path, target)
    assert tried and is_writable(target) and not full.path.exists()


def _many(alone):
    """As `_alone`, where the other mover has let go of the file by then."""
    from contextlib import contextmanager

    @contextmanager
    def made(path):
        with database.storage_errors(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
            store = SqliteStore(path, db)
            db.execute("BEGIN")
            yield store, db
            if db.in_transaction:
                db.execute("ROLLBACK")

    del alone
    return made


def test_a_ledger_that_was_made_at_the_target_meanwhile_is_no_copy(full, sealed):
    with Ledger.open(sealed, full.coordinator) as fork:
        assert fork.size == 1
    with pytest.raises(UsageError, match="holds another ledger"):
        move_to_server(full.path, sealed)


def test_a_second_machine_cannot_bring_it_back_once_more(full, server, tmp_path):
    """Twice the same ledger as a file would be a fork."""
    move_to_file(server, full.path)
    second = tmp_path / "second" / "ledger.db"
    for path in (full.path, second):
        with pytest.raises(UsageError, match="was moved away already"):
            move_to_file(server, path)
    assert not second.exists()


def test_an_attempt_of_before_is_not_ended_by_anothers_mark(full, server, tmp_path, monkeypatch):
    """Its sealed file holds all rows, but the ledger went on in another machine's file."""
    first = tmp_path / "first" / "ledger.db"
    with monkeypatch.context() as patches:
        patch(patches, PostgresStore, "mark_moved", after=False)
        killed(lambda: move_to_file(server, first))
    move_to_file(server, full.path)
    with pytest.raises(UsageError, match="was moved away already"):
        move_to_file(server, first)
    assert (is_writable(first), is_writable(full.path)) == (False, True)


def test_a_file_that_another_move_left_there_is_refused(full, server, postgres, monkeypatch):
    with monkeypatch.context() as patches:
        patch(patches, ledger_move, "_unseal", after=False)
        killed(lambda: move_to_file(server, full.path))
    other = postgres.place()
    Ledger.open(other, full.coordinator).close()
    with pytest.raises(UsageError, match="there is a file already"):
        move_to_file(other, full.path)
    assert is_writable(other)


# ---- who else is there


def test_a_file_that_is_open_elsewhere_is_not_moved(full, postgres, monkeypatch):
    monkeypatch.setattr(ledger_move, "OPEN_SECONDS", 0.2)
    target = postgres.place()
    for identity in (full.coordinator, None):
        with Ledger.open(full.path, identity) as held:
            assert held.size
            with pytest.raises(JobFailed, match="another program has it open; stop coordinator and pages"):
                move_to_server(full.path, target)
    assert nothing_at(postgres, target) and is_writable(full.path)
    with closing(sqlite3.connect(full.path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_who_opens_the_file_just_before_it_is_held_stops_the_move(full, postgres, monkeypatch):
    """It brings the log back, which would keep the file's old name."""
    target, opened, connect = postgres.place(), [], database.connect

    class Raced:
        def __init__(self, db):
            self.db = db

        def __getattr__(self, name):
            return getattr(self.db, name)

        def execute(self, sql, *values):
            if sql == "BEGIN IMMEDIATE" and not opened:
                opened.append(SqliteStore.open(full.path, writable=True, fill=None))
            return self.db.execute(sql, *values)

    with monkeypatch.context() as patches:
        patches.setattr(
            ledger_move.database, "connect", lambda *a, **k: connect(*a, **k) if opened else Raced(connect(*a, **k))
        )
        with pytest.raises(JobFailed, match="another program has it open"):
            move_to_server(full.path, target)
    opened[0].close()
    assert nothing_at(postgres, target) and is_writable(full.path)


def test_who_opens_the_file_while_it_moves_writes_nothing_then_or_later(full, postgres, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    target, opened = postgres.place(), []

    def say(what, done, of):
        if not opened:
            opened.append(Ledger.open(full.path, full.coordinator))
            with pytest.raises(JobFailed, match="locked"):
                opened[0].append([full.say("bank_b", "update", run="run-2")])

    before = content(full.path)
    move_to_server(full.path, target, say=say)
    with pytest.raises(JobFailed, match=r"this ledger was moved to postgresql://127\.0\.0\.1"):
        opened[0].append([full.say("bank_b", "update", run="run-2")])
    opened[0].close()
    assert content(target) == before


def test_who_is_connected_to_the_server_writes_nothing_then_or_later(full, server, monkeypatch):
    monkeypatch.setattr(ledger_postgres, "LOCK_SECONDS", 0.3)
    refused = []
    with Ledger.open(server, full.coordinator) as other:

        def say(what, done, of):
            if not refused:
                with pytest.raises(JobFailed, match="locked; waited"):
                    other.append([full.say("bank_b", "update", run="run-2")])
                refused.append(True)

        size = move_to_file(server, full.path, say=say).size
        with pytest.raises(UsageError, match="this ledger was moved to a file"):
            other.append([full.say("bank_b", "update", run="run-2")])
        assert refused and other.size == size
    with pytest.raises(UsageError, match="this ledger was moved to a file"):
        Ledger.open(server, full.coordinator)


def test_a_long_check_of_the_copy_does_not_cost_the_transaction(full, server, monkeypatch):
    """While the file is verified the server hears nothing; it ends silent transactions."""
    import time

    from fl_core.trust import ledger_sound

    monkeypatch.setattr(ledger_postgres, "IDLE_SECONDS", 0.5)
    real = ledger_sound.verify_ledger
    monkeypatch.setattr(ledger_sound, "verify_ledger", lambda path, **k: (time.sleep(1.2), real(path, **k))[1])
    assert move_to_file(server, full.path).verified


# ---- what is refused


def test_a_target_that_holds_a_ledger_is_refused(full, postgres, coordinator):
    """Another coordinator's, the same one's begun anew, and even a copy of this one."""
    theirs, anew, same = postgres.place(), postgres.place(), postgres.place()
    Ledger.open(theirs, Identity.create("coordinator")).close()
    Ledger.open(anew, coordinator).close()
    second = full.path.with_name("second.db")
    shutil.copy(full.path, second)
    move_to_server(second, same)
    for target in (theirs, anew, same):
        before = content(target)
        with pytest.raises(UsageError, match="holds a ledger"):
            move_to_server(full.path, target)
        assert content(target) == before and is_writable(full.path)


def test_a_schema_with_something_else_in_it_is_refused(full, postgres):
    half, other = postgres.place(), postgres.place()
    postgres.sql(f"CREATE SCHEMA {half.schema}", f"CREATE TABLE {half.schema}.entries (x int)", user="fedseal")
    postgres.sql(f"CREATE SCHEMA {other.schema}", f"CREATE TABLE {other.schema}.format (x int)", user="fedseal")
    for target in (half, other):
        with pytest.raises(UsageError, match="not a fedseal ledger of version 1"):
            move_to_server(full.path, target)
    assert is_writable(full.path)


def test_a_target_made_while_we_copied_is_refused(full, postgres, monkeypatch, coordinator):
    target, head = postgres.place(), ledger_move.require_sound

    def meanwhile(*values, **named):
        head(*values, **named)
        Ledger.open(target, coordinator).close()

    monkeypatch.setattr(ledger_move, "require_sound", meanwhile)
    with pytest.raises(UsageError, match="made a ledger there meanwhile; nothing was moved"):
        move_to_server(full.path, target)
    assert is_writable(full.path) and not asides(full.path)


DAMAGE = {
    "a signature": 'UPDATE entries SET leaf = CAST(replace(CAST(leaf AS TEXT), \'"sig":"\', \'"sig":"0\') AS BLOB) WHERE seq = 7',
    "an entry": "DELETE FROM entries WHERE seq = 7",
    "the tail": "DELETE FROM entries WHERE seq > 9",
    "columns": "UPDATE entries SET by = 'nobody' WHERE seq = 7",
    "a checkpoint": "UPDATE checkpoints SET note = replace(note, '4', '5') WHERE size = 4",
    "a node": "UPDATE nodes SET hash = zeroblob(32) WHERE level = 1 AND idx = 1",
    "a node of no tree": "INSERT INTO nodes VALUES (9, 9, zeroblob(32))",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_broken_file_is_refused_before_anything_is_written(full, postgres, what):
    with closing(sqlite3.connect(full.path)) as db, db:
        db.execute(DAMAGE[what])
    target = postgres.place()
    with pytest.raises(FedsealError, match=r"a broken ledger is not moved|not those that were signed|is missing"):
        move_to_server(full.path, target)
    assert nothing_at(postgres, target) and not asides(full.path)
    with closing(SqliteStore.open(full.path, writable=True, fill=None)) as store:
        assert store.all("PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize(
    "damage", ["UPDATE entries SET by = 'nobody' WHERE seq = 7", "DELETE FROM nodes WHERE level = 1 AND idx = 0"]
)
def test_a_broken_ledger_on_a_server_is_refused_and_leaves_no_file(full, server, postgres, damage):
    with postgres.connect() as connection:
        connection.run(f"SET search_path TO {server.schema}; SET session_replication_role TO replica; {damage}")
    with pytest.raises(LedgerBroken, match="a broken ledger is not moved"):
        move_to_file(server, full.path)
    assert not full.path.exists() and is_writable(server)


def test_without_the_check_of_signatures_the_signed_root_still_counts(full, postgres):
    with closing(sqlite3.connect(full.path)) as db, db:
        db.execute("DELETE FROM entries WHERE seq > 9")
    target = postgres.place()
    with pytest.raises(LedgerBroken):
        move_to_server(full.path, target, verify=False)
    assert nothing_at(postgres, target)


@pytest.mark.parametrize("table", ["entries", "nodes", "cards", "cosignatures", "outside_cosignatures", "past_cards"])
def test_a_copy_that_is_not_the_source_is_refused(full, postgres, monkeypatch, table):
    """A byte changed, or a row lost, on the way."""
    insert, target = PostgresStore.insert, postgres.place()

    def less(self, name, rows, *, ignore=False):
        insert(self, name, rows[:-1] if name == table else rows, ignore=ignore)

    monkeypatch.setattr(PostgresStore, "insert", less)
    with pytest.raises(LedgerBroken, match="read back is not what was written; nothing was moved"):
        move_to_server(full.path, target)
    assert nothing_at(postgres, target) and is_writable(full.path)


def test_a_file_that_is_there_is_not_written_over(full, server, tmp_path):
    copy_ledger(server, full.path)
    before = full.path.read_bytes()
    with pytest.raises(UsageError, match="there is a file already"):
        move_to_file(server, full.path)
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(UsageError, match="not a fedseal ledger"):
        move_to_file(server, other)
    assert (full.path.read_bytes(), other.read_text()) == (before, "mine") and is_writable(server)


def test_no_password_in_any_word(full, postgres):
    from tests.postgres import PASSWORD

    wrong = PostgresUrl(**{**vars(postgres.place()), "password": "wr0ng-secret"})
    with pytest.raises(UsageError) as caught:
        move_to_server(full.path, wrong)
    assert "wr0ng" not in str(caught.value) and "\n" not in str(caught.value) and is_writable(full.path)
    moved = move_to_server(full.path, postgres.place())
    assert PASSWORD.encode() not in moved.aside.read_bytes() and b"***" not in moved.aside.read_bytes()


def test_a_server_hears_a_word_while_a_copy_is_looked_at(full, server, monkeypatch):
    from fl_core.trust import ledger_sound

    monkeypatch.setattr(ledger_sound, "WORD_SECONDS", -1.0)
    asked, query = [], Connection.query
    monkeypatch.setattr(Connection, "query", lambda self, sql, *v: (asked.append(sql), query(self, sql, *v))[1])
    move_to_file(server, full.path)
    assert asked.count("SELECT 1") > 1
