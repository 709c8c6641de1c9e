"""The ledger on a real PostgreSQL server: what it promises there, and what each failure leaves behind."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from fl_core.errors import BadMessage, BadSignature, FedsealError, JobFailed, LedgerBroken, UsageError, WrongKey
from fl_core.trust import ledger_postgres, postgres_connection
from fl_core.trust.board import LedgerBoard
from fl_core.trust.checkpoint import cosign, open_checkpoint
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_copy import as_file, copy_ledger
from fl_core.trust.ledger_postgres import PostgresStore
from fl_core.trust.outside import WITNESS_KEY, VerifierKey
from fl_core.trust.pack import write_pack
from fl_core.trust.postgres_tables import SCHEMA, TABLES
from fl_core.trust.postgres_url import PostgresUrl
from fl_core.trust.rotation import rotate
from fl_core.trust.verify import verify_ledger, verify_pack
from tests.fl_core.trust.flaky import Way
from tests.postgres import PASSWORD, certificate_for

pytestmark = pytest.mark.slow
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def ledger_place(postgres):
    return postgres.place()


@pytest.fixture
def way(postgres, monkeypatch):
    made = Way(postgres.port)
    monkeypatch.setattr(postgres_connection, "RETURN_SECONDS", 3.0)
    yield made
    made.close()


@pytest.fixture
def through(way, scenario):
    """The scenario's ledger by the way that fails."""
    text = scenario.path.shown.replace("***", "").replace(":@", "@")
    url = PostgresUrl.parse(text.replace(f":{scenario.path.port}/", f":{way.port}/"))
    place = PostgresUrl(**{**vars(url), "password": PASSWORD})
    with Ledger.open(place, scenario.coordinator) as ledger:
        yield ledger


# ---- a server lost while it stores


@pytest.mark.parametrize("what", ["commit", "append", "cosign", "rotate"])
def test_lost_after_the_server_stored_counts_as_stored_and_is_not_sent_again(scenario, way, through, what):
    note, size = scenario.ledger.checkpoint(), through.size
    way.fail = "after"
    if what == "cosign":
        through.add_cosignatures(size, {"bank_a": cosign(scenario.parties["bank_a"], note)})
        assert list(scenario.ledger.cosignatures(size)) == ["bank_a"]
    elif what == "rotate":
        new = Identity.create("bank_a")
        through.commit([rotate(scenario.parties["bank_a"], new, log=through.log)])
        assert scenario.ledger.card("bank_a") == new.card
    else:
        act = through.commit if what == "commit" else through.append
        act([scenario.say("bank_a", "update", {"n": n}) for n in range(3)])
        assert [e.body["n"] for e in scenario.ledger.entries(kind="update")] == [0, 1, 2]
    assert way.fail is None, "the connection was not cut"
    through.commit([scenario.say("bank_b", "update")])
    assert scenario.verify().first_bad is None


def test_lost_before_the_server_stored_says_so_and_may_be_sent_again(scenario, way, through):
    size, statements = through.size, [scenario.say("bank_a", "update", {"n": n}) for n in range(3)]
    way.fail = "before"
    with pytest.raises(JobFailed, match="nothing was stored"):
        through.commit(statements)
    assert through.size == size
    assert len(through.commit(statements)[0]) == 3
    assert scenario.ledger.size == size + 3 and scenario.verify().first_bad is None


def test_anothers_entries_in_the_same_place_do_not_count_as_ours(scenario, way, through):
    size = through.size
    way.fail, way.meanwhile = "before", lambda: scenario.ledger.commit([scenario.say("bank_b", "update", {"other": 1})])
    with pytest.raises(JobFailed, match="nothing was stored"):
        through.commit([scenario.say("bank_a", "update", {"ours": 1})])
    assert [e.by for e in scenario.ledger.entries(size)] == ["bank_b"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_that_does_not_come_back_leaves_it_open_and_says_so(scenario, way, through, when, monkeypatch):
    monkeypatch.setattr(postgres_connection, "RETURN_SECONDS", 0.3)
    way.fail, way.meanwhile = when, lambda: setattr(way, "closed", True)
    with pytest.raises(JobFailed, match="whether they are there shows fedseal audit show") as caught:
        through.commit([scenario.say("bank_a", "update")])
    assert "nothing was stored" not in str(caught.value).split("(")[0]
    way.closed = False
    assert scenario.ledger.size == through.size == (4 if when == "before" else 5)


def test_a_restart_between_two_acts_is_survived(scenario, postgres):
    size = scenario.ledger.size
    postgres.stop("fast")
    postgres.start()
    assert scenario.ledger.size == size
    postgres.stop("fast")
    postgres.start()
    scenario.ledger.commit([scenario.say("bank_a", "update")])
    assert scenario.ledger.size == size + 1 and scenario.verify().first_bad is None


def test_a_connection_cut_in_the_middle_of_a_transaction_stores_nothing(scenario, postgres):
    size = scenario.ledger.size
    with pytest.raises(JobFailed, match="nothing was stored"), scenario.ledger._writing():
        scenario.ledger._append([scenario.say("bank_a", "update")])
        _end_connections(postgres)
        scenario.ledger._sign_head()
    assert scenario.ledger.size == size
    scenario.ledger.commit([scenario.say("bank_a", "update")])


# ---- writers


def test_a_writer_that_waits_too_long_names_what_it_waited_for(scenario, monkeypatch):
    monkeypatch.setattr(ledger_postgres, "LOCK_SECONDS", 0.3)
    size = scenario.ledger.size
    with Ledger.open(scenario.path, scenario.coordinator) as other, other._writing():
        with pytest.raises(
            JobFailed, match=r"waited 0\.3 s for the writer fedseal .* process \d+ \(server process"
        ) as e:
            scenario.ledger.append([scenario.say("bank_a", "update")])
        assert "role fedseal" in str(e.value) and "nothing was stored" in str(e.value)
        assert scenario.ledger.size == size  # readers do not wait
    assert len(scenario.ledger.append([scenario.say("bank_a", "update")])) == 1


def test_a_writer_that_stands_still_does_not_hold_the_others_up_for_ever(scenario, monkeypatch):
    monkeypatch.setattr(ledger_postgres, "IDLE_SECONDS", 0.5)
    frozen = Ledger.open(scenario.path, scenario.coordinator)
    with pytest.raises(JobFailed, match="nothing was stored"), closing(frozen), frozen._writing():
        started = time.monotonic()
        scenario.ledger.append([scenario.say("bank_a", "update")])
        assert time.monotonic() - started < 20
        frozen._sign_head()


def _post(place, keeper, number):
    signal.alarm(120)
    with Ledger.open(place, keeper) as ledger:
        for n in range(12):
            ledger.commit([Statement.make(keeper, log=ledger.log, kind="round", run=f"c{number}", body={"n": n})])


def test_two_coordinators_on_one_database_write_one_chain(scenario, postgres, coordinator):
    """The same coordinator on two machines: a run here, the board there."""
    children = [FORK.Process(target=_post, args=(scenario.path, coordinator, n)) for n in range(2)]
    for child in children:
        child.start()
    board = LedgerBoard(scenario.path, coordinator)
    newcomers = [Identity.create(f"ann{n}") for n in range(5)]
    for one in newcomers:
        body = {"card": one.card.to_dict()}
        board.post([Statement.make(one, log=scenario.ledger.log, kind="card", run="", body=body)])
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    for number in range(2):
        assert [e.body["n"] for e in scenario.ledger.entries(run=f"c{number}")] == list(range(12))
    assert all(scenario.ledger.card(one.name) == one.card for one in newcomers)
    scenario.ledger.checkpoint()
    assert scenario.verify().first_bad is None


def test_two_coordinators_of_two_keys_need_two_schemas(scenario, postgres):
    other = Identity.create("coordinator")
    with pytest.raises(WrongKey, match="the ledger of coordinator"):
        Ledger.open(scenario.path, other)
    with Ledger.open(postgres.place(), other) as second, scenario.ledger._writing():
        second.commit([Statement.make(other, log=second.log, kind="round", run="r", body={})])
        assert second.size == 2  # and neither waits for the other


# ---- what the server must be


def test_synchronous_commit_is_on_whatever_role_and_database_say(scenario, postgres):
    postgres.sql(
        "ALTER ROLE fedseal SET synchronous_commit TO off", "ALTER DATABASE team SET synchronous_commit TO off"
    )
    try:
        with Ledger.open(scenario.path, scenario.coordinator) as ledger:
            store = ledger._store
            store._connection.run("SET synchronous_commit TO off")  # a session that somebody altered
            with ledger._writing():
                assert store.all("SHOW synchronous_commit") == [("on",)]
    finally:
        postgres.sql("ALTER ROLE fedseal RESET synchronous_commit", "ALTER DATABASE team RESET synchronous_commit")


def test_transactions_that_would_read_an_old_head_are_not_asked_for(scenario, postgres):
    """Under repeatable read the second writer would see the head of before it waited."""
    postgres.sql("ALTER ROLE fedseal SET default_transaction_isolation TO 'serializable'")
    try:
        ledgers = [Ledger.open(scenario.path, scenario.coordinator) for _ in range(2)]
        for n in range(6):
            ledgers[n % 2].commit([scenario.say("bank_a", "update", {"n": n})])
            ledgers[n % 2].close() if n > 3 else None
        assert [e.body["n"] for e in scenario.ledger.entries(kind="update")] == list(range(6))
    finally:
        postgres.sql("ALTER ROLE fedseal RESET default_transaction_isolation")


def test_a_server_without_fsync_is_refused_for_writing(scenario, postgres):
    postgres.sql("ALTER SYSTEM SET fsync TO off")
    postgres.sql("SELECT pg_reload_conf()")
    try:
        _until(lambda: postgres.sql("SHOW fsync") == [["off"]])
        with pytest.raises(UsageError, match="fsync = off; allowed: on"):
            Ledger.open(scenario.path, scenario.coordinator)
        Ledger.open(scenario.path).close()
    finally:
        postgres.sql("ALTER SYSTEM SET fsync TO on")
        postgres.sql("SELECT pg_reload_conf()")
        _until(lambda: postgres.sql("SHOW fsync") == [["on"]])


def test_a_reader_cannot_write_even_past_the_ledger(scenario):
    with Ledger.open(scenario.path) as reader:
        assert (reader.size, reader.root) == (scenario.ledger.size, scenario.ledger.root)
        with pytest.raises(UsageError, match="read-only"):
            reader.append([])
        with pytest.raises(JobFailed, match="read-only transaction"):
            reader._store.insert("checkpoints", [(99, "x")])


def test_what_is_no_ledger_is_refused(postgres, coordinator, scenario):
    nothing = postgres.place()
    assert not nothing.exists() and scenario.path.exists()
    with pytest.raises(UsageError, match="no fedseal ledger here"):
        Ledger.open(nothing)
    taken, newer = postgres.place(), postgres.place()
    postgres.sql(f"CREATE SCHEMA {taken.schema}", f"CREATE TABLE {taken.schema}.entries (x int)", user="fedseal")
    Ledger.open(newer, coordinator).close()
    postgres.sql(
        f"ALTER TABLE {newer.schema}.format DISABLE TRIGGER ALL", f"UPDATE {newer.schema}.format SET version = 2"
    )
    for place in (taken, newer):
        for identity in (None, coordinator):
            with pytest.raises(UsageError, match="not a fedseal ledger of version 1"):
                Ledger.open(place, identity)


def test_a_ledger_that_cannot_be_finished_leaves_nothing(postgres, coordinator, monkeypatch):
    place = postgres.place()

    def fail(*_):
        raise OSError("killed before the commit")

    monkeypatch.setattr(Ledger, "_sign_head", fail)
    with pytest.raises(OSError, match="killed"):
        Ledger.open(place, coordinator)
    assert postgres.sql(f"SELECT count(*) FROM pg_namespace WHERE nspname = '{place.schema}'") == [[0]]


# ---- who may do what


@pytest.mark.parametrize("table", [name for name, table in TABLES.items() if table.stays])
def test_the_tables_owner_cannot_change_or_remove_a_row(scenario, postgres, table):
    note = scenario.ledger.checkpoint()
    scenario.cosign(note, "bank_a")
    column = next(iter(TABLES[table].columns))
    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}", f"TRUNCATE {table}"):
        with postgres.connect(user="fedseal") as connection:
            connection.run(f"SET search_path TO {scenario.path.schema}")
            with pytest.raises(Exception, match="append-only"):
                connection.run(statement)


def _restrict(postgres, schema):
    """What docs/operations.md has an administrator do after the first start."""
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```sql\n")[1:] if part.startswith("ALTER SCHEMA")).partition("```")[0]
    for word in ("SCHEMA {}", "{}.", "'{}'"):
        block = block.replace(word.format("fedseal"), word.format(schema))
    postgres.sql(block)


def test_a_role_that_may_only_add_is_enough(scenario, postgres, coordinator):
    _restrict(postgres, scenario.path.schema)
    with Ledger.open(scenario.path, coordinator) as ledger:
        note = ledger.commit([scenario.say("bank_a", "update")])[1]
        scenario.cosign(note, "bank_b")
        witness = Identity.create("outsider")
        key = VerifierKey.of(witness, algorithm=WITNESS_KEY)
        ledger.add_outside(ledger.size, key, cosign(witness, note))
        new = Identity.create("bank_a")
        ledger.commit([rotate(scenario.parties["bank_a"], new, log=ledger.log)])
        assert ledger.card("bank_a") == new.card
    for statement in (
        "UPDATE {}.entries SET run = ''",
        "DELETE FROM {}.entries",
        "ALTER TABLE {}.entries DISABLE TRIGGER ALL",
    ):
        with pytest.raises(Exception, match=r"permission denied|must be owner"):
            postgres.sql(statement.format(scenario.path.schema), user="fedseal")


def test_a_role_without_rights_gets_one_clear_line(scenario, postgres):
    postgres.sql(f"CREATE ROLE nosy LOGIN PASSWORD '{PASSWORD}'")
    try:
        with pytest.raises(UsageError, match="permission denied") as caught:
            Ledger.open(postgres.place(scenario.path.schema, user="nosy"))
        assert "\n" not in str(caught.value) and PASSWORD not in str(caught.value)
        with pytest.raises(UsageError, match="permission denied for database team"):
            Ledger.open(postgres.place(user="nosy"), scenario.coordinator)
    finally:
        postgres.sql("DROP ROLE nosy")


@pytest.mark.parametrize(
    "change",
    [
        {"password": "wr0ng-secret"},
        {"password": ""},
        {"user": "nobody_here"},
        {"database": "nothing_here"},
        {"port": 1},
        {"host": "/nowhere"},
        {"host": "name.invalid"},
    ],
)
def test_no_way_in_is_one_line_without_the_password(scenario, change):
    place = PostgresUrl(**{**vars(scenario.path), **change})
    with pytest.raises((UsageError, JobFailed)) as caught:
        Ledger.open(place)
    text = repr(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in text and "wr0ng" not in text


# ---- TLS


def test_tls_checks_certificate_and_name(scenario, postgres, tmp_path):
    schema, own = scenario.path.schema, postgres.folder / "server.pem"
    other = tmp_path / "other.pem"
    other.write_bytes(certificate_for(["localhost"], ["127.0.0.1"])[1])

    def size(more):
        with Ledger.open(postgres.place(schema, more=more)) as ledger:
            return ledger.size, ledger._store.all("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")

    assert size("") == (4, [(False,)])
    for mode in ("require", "verify-ca", "verify-full"):
        root = "" if mode == "require" else f"&sslrootcert={own}"
        assert size(f"&sslmode={mode}{root}") == (4, [(True,)])
    for root in ("", f"&sslrootcert={other}"):
        with pytest.raises(UsageError, match="certificate does not verify"):
            size(f"&sslmode=verify-full{root}")
    key, wrong = certificate_for(["elsewhere.example.org"], [])
    (postgres.folder / "server.key").write_bytes(key)
    own.write_bytes(wrong)
    postgres.sql("SELECT pg_reload_conf()")
    try:
        _until(lambda: size(f"&sslmode=verify-ca&sslrootcert={own}")[1] == [(True,)])
        with pytest.raises(UsageError, match="certificate does not verify"):
            size(f"&sslmode=verify-full&sslrootcert={own}")
    finally:
        postgres._write_certificate()
        postgres.sql("SELECT pg_reload_conf()")


def test_a_server_without_tls_is_refused_where_tls_was_asked_for(scenario, postgres):
    postgres.sql("ALTER SYSTEM SET ssl TO off")
    postgres.sql("SELECT pg_reload_conf()")
    try:
        _until(lambda: postgres.sql("SHOW ssl") == [["off"]])
        with pytest.raises(UsageError, match="offers no TLS"):
            Ledger.open(postgres.place(scenario.path.schema, more="&sslmode=require"))
    finally:
        postgres.sql("ALTER SYSTEM SET ssl TO on")
        postgres.sql("SELECT pg_reload_conf()")
        _until(lambda: postgres.sql("SHOW ssl") == [["on"]])


def test_a_unix_socket_is_a_way_in(scenario, postgres):
    with Ledger.open(postgres.place(scenario.path.schema, socket=True)) as ledger:
        assert ledger.root == scenario.ledger.root


# ---- what is in it


NASTY = ["null", "NULL", "Null", "{}", "{a,b}", '"', "\\", "\\x41", "a'b;--", "?", ":v0", "$1", "%s", "∞"]


def test_every_text_comes_back_as_it_was(scenario):
    runs = [text for text in NASTY if text.isascii()]
    for n, run in enumerate(runs):
        scenario.ledger.append([scenario.say("bank_a", "update", {"n": n, "texts": NASTY}, run=run)])
    for n, run in enumerate(runs):
        assert [(e.run, e.body) for e in scenario.ledger.entries(run=run)] == [(run, {"n": n, "texts": NASTY})]
    scenario.ledger.checkpoint()
    assert scenario.verify().first_bad is None


def test_the_copy_is_the_ledger_and_a_file_that_can_be_used(scenario, postgres, tmp_path):
    scenario.run()
    witness, size = Identity.create("outsider"), scenario.ledger.size
    scenario.ledger.add_outside(
        size, VerifierKey.of(witness, algorithm=WITNESS_KEY), cosign(witness, scenario.ledger.checkpoint_at(size))
    )
    path = tmp_path / "copy.db"
    copy_ledger(scenario.path, path)
    assert verify_ledger(path).reason == "valid"
    with Ledger.open(path, scenario.coordinator) as copy:
        assert (copy.size, copy.root) == (scenario.ledger.size, scenario.ledger.root)
        for name in TABLES.keys() - {"format"}:
            query = f"SELECT * FROM {name} ORDER BY {', '.join(TABLES[name].key)}"
            assert copy._store.all(query) == scenario.ledger._store.all(query)
        copy.commit([scenario.say("bank_a", "update")])
    with pytest.raises(UsageError):
        copy_ledger(scenario.path, path)


def test_the_copy_is_one_state_while_others_write(scenario):
    with closing(PostgresStore.open(scenario.path, writable=False, fill=None)) as store, store.snapshot():
        before = [row for rows in store.stream("checkpoints") for row in rows]
        scenario.ledger.commit([scenario.say("bank_a", "update")])
        assert len([row for rows in store.stream("entries") for row in rows]) == before[-1][0]


def test_a_pack_of_it_verifies(scenario, tmp_path):
    scenario.run()
    packed = write_pack(scenario.ledger, "run-1", tmp_path / "pack")
    assert packed.size == scenario.ledger.size
    assert verify_pack(tmp_path / "pack").reason.startswith("valid")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE nodes SET hash = decode(repeat('00', 32), 'hex') WHERE level = 3",
        "DELETE FROM nodes WHERE level = 3",
        "DELETE FROM entries WHERE seq = 8",
        "UPDATE entries SET leaf = '\\x00' WHERE seq = 8",
        "DELETE FROM checkpoints",
        "UPDATE checkpoints SET note = lower(note)",
    ],
)
def test_damaged_tables_are_not_written_on_and_the_verifier_finds_it(scenario, postgres, damage):
    scenario.run(rounds=1)
    with postgres.connect() as connection:  # the server's administrator
        connection.run(f"SET search_path TO {scenario.path.schema}; SET session_replication_role TO replica; {damage}")
    with pytest.raises((LedgerBroken, BadSignature, BadMessage, UsageError)):
        Ledger.open(scenario.path, scenario.coordinator)
    if "nodes" not in damage:  # which the verifier computes itself
        assert scenario.verify().status == 1


def test_a_rewritten_entry_in_the_middle_is_found_by_the_verifier(scenario, postgres):
    scenario.run()
    with postgres.connect() as connection:
        connection.run(f"SET search_path TO {scenario.path.schema}; SET session_replication_role TO replica")
        ((leaf,),) = connection.run("SELECT leaf FROM entries WHERE seq = 6")
        connection.run("UPDATE entries SET leaf = :leaf WHERE seq = 6", leaf=leaf.replace(b'"round":0', b'"round":1'))
    report = scenario.verify()
    assert (report.status, report.first_bad) == (1, 6)


def test_a_schema_made_by_hand_is_taken_up(postgres, coordinator):
    """An administrator makes an empty schema for a role that may not make any."""
    place = postgres.place()
    postgres.sql(f"CREATE SCHEMA {place.schema} AUTHORIZATION fedseal")
    with Ledger.open(place, coordinator) as ledger:
        assert open_checkpoint(ledger.checkpoint(), coordinator.card).size == 1
    assert "CREATE TABLE entries" in SCHEMA
    with as_file(place) as path:
        shutil.copy(path, path.with_name("again.db"))
        assert verify_ledger(path).status == 0
    assert not path.exists()


# ---- helpers


def _until(done, seconds=20.0):
    end = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except FedsealError:
            pass
        assert time.monotonic() < end
        time.sleep(0.05)


def _end_connections(postgres):
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fedseal'")
    _until(lambda: postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'fedseal'") == [[0]])
