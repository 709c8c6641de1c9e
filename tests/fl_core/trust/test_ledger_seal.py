"""A sealed file takes no row from anybody, also who opened it before; a file set aside is not begun anew."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from fl_core.errors import JobFailed, UsageError
from fl_core.trust.checkpoint import cosign
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_seal import Seal, is_aside, key_of, name_aside
from fl_core.trust.ledger_store import LATER, SqliteStore
from fl_core.trust.outside import WITNESS_KEY, VerifierKey
from fl_core.trust.postgres_tables import TABLES
from fl_core.trust.postgres_url import PostgresUrl
from fl_core.trust.rotation import rotate

OUT = Seal(into=False, other="postgresql://db:5432/o'hara?schema=x", token=2**63 - 1)


def seal(path, how: Seal = OUT) -> None:
    with closing(SqliteStore.open(path, writable=True, fill=None)) as store, store.transaction():
        store.seal(how)


def rows(path) -> dict[str, list]:
    with closing(sqlite3.connect(path)) as db:
        return {name: db.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES if name != "format"}


def test_who_has_it_open_can_write_nothing_any_more(scenario):
    """The seal is in the file: a coordinator that goes on would write a fork."""
    note, size = scenario.ledger.checkpoint(), scenario.ledger.size
    witness = Identity.create("outsider")
    key, line = VerifierKey.of(witness, algorithm=WITNESS_KEY), cosign(witness, note)
    scenario.ledger.append([scenario.say("bank_b", "update")])
    seal(scenario.path)
    before = rows(scenario.path)
    for act in (
        lambda: scenario.ledger.append([scenario.say("bank_a", "update")]),
        lambda: scenario.ledger.commit([scenario.say("bank_a", "update")]),
        lambda: scenario.ledger.checkpoint(),
        lambda: scenario.ledger.add_cosignatures(size, {"bank_a": cosign(scenario.parties["bank_a"], note)}),
        lambda: scenario.ledger.add_outside(size, key, line),
        lambda: scenario.ledger.append([rotate(scenario.parties["bank_a"], Identity.create("bank_a"), log=scenario.ledger.log)]),
    ):  # fmt: skip
        with pytest.raises(JobFailed, match="this ledger was moved to postgresql://db:5432/o'hara"):
            act()
        assert rows(scenario.path) == before


@pytest.mark.parametrize("table", sorted(TABLES.keys() - {"format"}))
@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR IGNORE", "INSERT OR REPLACE"])
def test_no_table_takes_a_row(scenario, table, verb):
    seal(scenario.path)
    with closing(sqlite3.connect(scenario.path)) as db, pytest.raises(sqlite3.IntegrityError, match="was moved to"):
        db.execute(f"{verb} INTO {table} VALUES ({', '.join('9' for _ in TABLES[table].columns)})")


@pytest.mark.parametrize("into", [False, True])
def test_it_opens_to_be_read_and_verified_but_not_to_write(scenario, into):
    size = scenario.ledger.size
    seal(scenario.path, Seal(into, "postgresql://db:5432/team?schema=x", 7))
    with pytest.raises(UsageError, match="is being moved into this file" if into else "FEDSEAL_LEDGER with its URL"):
        Ledger.open(scenario.path, scenario.coordinator)
    with Ledger.open(scenario.path) as reader:
        assert reader.size == size
    assert scenario.verify().first_bad is None


def test_the_seal_comes_off_and_nothing_else(scenario):
    before = rows_and_schema(scenario.path)
    seal(scenario.path)
    assert rows_and_schema(scenario.path) != before
    with closing(SqliteStore.open(scenario.path, writable=False, fill=None)) as reader:
        assert reader.sealed() == OUT
    with closing(sqlite3.connect(scenario.path, isolation_level=None)) as db:
        store = SqliteStore(scenario.path, db)
        with store.transaction():
            store.unseal()
        assert store.sealed() is None
    after = rows_and_schema(scenario.path)
    assert {name: text for name, text in after.items() if name not in LATER} == before
    scenario.ledger.commit([scenario.say("bank_a", "update")])


def rows_and_schema(path) -> dict[str, tuple]:
    with closing(sqlite3.connect(path)) as db:
        names = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {
            name: (sql, db.execute(f"SELECT * FROM {name}").fetchall() if sql.startswith("CREATE TABLE") else ())
            for name, sql in names
        }


@pytest.mark.parametrize("writes", [True, False])
def test_where_a_file_was_set_aside_no_new_ledger_begins(scenario, writes):
    """A coordinator without FEDSEAL_LEDGER would sign another log under the same key."""
    scenario.ledger.close()
    scenario.path.rename(name_aside(scenario.path, 4))
    with pytest.raises(UsageError, match=r"its ledger was moved, and the file is ledger\.db\.moved-4"):
        Ledger.open(scenario.path, scenario.coordinator if writes else None)
    assert not scenario.path.exists()


def test_no_file_is_set_aside_over_another(tmp_path):
    path = tmp_path / "ledger.db"
    names = []
    for _ in range(3):
        names.append(name_aside(path, 12))
        names[-1].touch()
    assert [name.name for name in names] == ["ledger.db.moved-12", "ledger.db.moved-12.2", "ledger.db.moved-12.3"]
    assert is_aside(path) == names[0] and is_aside(tmp_path / "other.db") is None


def test_a_place_has_one_name_whoever_connects_and_no_password_in_it():
    urls = (
        "postgresql://a:pw@db/team",
        "postgres://b@db:5432/team?schema=fedseal",
        "postgresql://a@db/team?sslmode=require",
    )
    assert {key_of(PostgresUrl.parse(url)) for url in urls} == {"postgresql://db:5432/team?schema=fedseal"}
    assert key_of(PostgresUrl.parse("postgresql://a@db/team?schema=other")).endswith("schema=other")


def test_a_file_whose_move_was_cut_short_goes_back_to_its_log(scenario):
    scenario.ledger.close()
    with closing(sqlite3.connect(scenario.path)) as db:
        assert db.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    with closing(SqliteStore.open(scenario.path, writable=True, fill=None)) as store:
        assert store.all("PRAGMA journal_mode") == [("wal",)]
        assert store.all("PRAGMA busy_timeout") == [(30_000,)]


def test_one_that_is_being_moved_stays_as_it_is(scenario):
    scenario.ledger.close()
    with closing(sqlite3.connect(scenario.path, isolation_level=None)) as mover:
        mover.execute("PRAGMA journal_mode=DELETE")
        mover.execute("BEGIN IMMEDIATE")
        with closing(SqliteStore.open(scenario.path, writable=True, fill=None)) as store:
            assert store.all("PRAGMA journal_mode") == [("delete",)]
