"""URLs of a ledger in PostgreSQL: what they may say, what they must not show, and whether TLS checks anybody."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.errors import UsageError
from fl_core.home import Home
from fl_core.trust.postgres_connection import array
from fl_core.trust.postgres_tables import TABLES, lock_key
from fl_core.trust.postgres_url import PostgresUrl, read_place
from tests.postgres import certificate_for

SECRET = "s3cr%40t%3A%2F"  # s3cr@t:/


@pytest.fixture(autouse=True)
def no_passwords_around(monkeypatch, tmp_path):
    for name in ("PGPASSWORD", "FEDSEAL_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))


def test_parts_of_a_url():
    url = PostgresUrl.parse(f"postgresql://ann:{SECRET}@db.example.org:5433/team?schema=one&sslrootcert=/ca.pem")
    assert (url.host, url.port, url.user, url.database) == ("db.example.org", 5433, "ann", "team")
    assert (url.password, url.schema, url.sslmode, url.sslrootcert) == ("s3cr@t:/", "one", "verify-full", "/ca.pem")
    short = PostgresUrl.parse("postgres://ann@localhost/team")
    assert (short.port, short.password, short.schema, short.sslmode) == (5432, "", "fedseal", "disable")
    assert PostgresUrl.parse("postgresql://ann@/team?host=/run/postgresql").host == "/run/postgresql"
    assert PostgresUrl.parse("postgresql://ann@%2Frun%2Fpostgresql/team").host == "/run/postgresql"
    assert PostgresUrl.parse("postgresql://ann@[::1]:5/team").host == "::1"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://",
        "postgresql://ann@host",
        "postgresql://ann@host/",
        "postgresql://host/team",
        "postgresql://ann@/team",
        "postgresql://ann@host/team/more",
        "postgresql://ann@host:x/team",
        "postgresql://ann@host:99999/team",
        "postgresql://ann@host/team#part",
        "postgresql://ann@host/team?sslmode=prefer",
        "postgresql://ann@host/team?sslmode=allow",
        "postgresql://ann@host/team?sslmode=",
        "postgresql://ann@host/team?password=hunter2",
        "postgresql://ann@host/team?options=-c%20synchronous_commit%3Doff",
        "postgresql://ann@host/team?schema=A",
        'postgresql://ann@host/team?schema=a"b',
        "postgresql://ann@host/team?schema=pg_temp",
        "postgresql://ann@host/team?schema=a&schema=b",
        "postgresql://ann@host/team?host=/run",
        "postgresql://ann@/team?host=elsewhere",
        "postgresql:ann@host/team",
        "mysql://ann:hunter2@host/team",
    ],
)
def test_what_is_not_understood_is_refused_in_one_line_without_the_password(text):
    with pytest.raises(UsageError) as caught:
        read_place(text.replace("ann@", "ann:hunter2@", 1))
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


@given(st.text(min_size=1, max_size=30).filter(lambda t: "\x00" not in t and t.isprintable()))
def test_no_password_shows_in_text_repr_or_format(password):
    from urllib.parse import quote

    word = f"zq{password}qz"
    url = PostgresUrl.parse(f"postgresql://ann:{quote(word, safe='')}@db/team")
    assert url.password == word
    for shown in (str(url), repr(url), f"{url}", f"{url!r}", str([url]), str({"a": url})):
        assert word not in shown and quote(word, safe="") not in shown


@pytest.mark.parametrize(
    ("host", "mode"),
    [
        ("localhost", "disable"),
        ("127.0.0.1", "disable"),
        ("127.8.8.8", "disable"),
        ("[::1]", "disable"),
        ("db", "verify-full"),
        ("10.0.0.1", "verify-full"),
        ("localhost.example.org", "verify-full"),
    ],
)
def test_another_machine_is_checked_by_default(host, mode):
    assert PostgresUrl.parse(f"postgresql://ann@{host}/team").sslmode == mode


def test_each_mode_checks_what_it_says(tmp_path):
    def context(mode, more=""):
        return PostgresUrl.parse(f"postgresql://ann@db/team?sslmode={mode}{more}").tls()

    assert context("disable") is None
    checks = {mode: context(mode) for mode in ("require", "verify-ca", "verify-full")}
    assert [c.verify_mode for c in checks.values()] == [ssl.CERT_NONE, ssl.CERT_REQUIRED, ssl.CERT_REQUIRED]
    assert [c.check_hostname for c in checks.values()] == [False, False, True]
    key, certificate = certificate_for(["db"], [])
    (tmp_path / "ca.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    files = f"&sslrootcert={tmp_path}/ca.pem&sslcert={tmp_path}/ca.pem&sslkey={tmp_path}/key.pem"
    assert context("verify-full", files).cert_store_stats()["x509"] == 1
    for bad in (f"&sslrootcert={tmp_path}/none.pem", f"&sslcert={tmp_path}/key.pem"):
        with pytest.raises(UsageError, match="certificates"):
            context("verify-full", bad)


def test_password_comes_from_the_url_the_environment_or_a_private_file(monkeypatch, tmp_path):
    def password(host="db"):
        return PostgresUrl.parse(f"postgresql://ann@{host}/team").password

    assert password() == ""
    file = tmp_path / "pgpass"
    file.write_text("# a note\nother:*:*:*:no\ndb:5432:team:ann:from\\:fi\\\\le\n*:*:*:*:any\n")
    file.chmod(0o644)
    assert password() == "", "a file that others may read"
    file.chmod(0o600)
    assert (password(), password("elsewhere")) == ("from:fi\\le", "any")
    monkeypatch.setenv("PGPASSWORD", "from environment")
    assert password() == "from environment"
    assert PostgresUrl.parse("postgresql://ann:own@db/team").password == "own"


def test_a_home_has_one_ledger(monkeypatch, tmp_path):
    home = Home.open(tmp_path / "home")
    assert home.ledger == home.ledger_file == tmp_path / "home" / "ledger.db"
    monkeypatch.setenv("FEDSEAL_LEDGER", f"postgresql://ann:{SECRET}@db/team")
    assert str(home.ledger) == "postgresql://ann:***@db/team"
    home.ledger_file.touch()
    with pytest.raises(UsageError, match="one of them") as caught:
        _ = home.ledger
    assert SECRET not in str(caught.value)
    for text in ("/var/lib/ledger.db", "sqlite:///ledger.db"):
        monkeypatch.setenv("FEDSEAL_LEDGER", text)
        with pytest.raises(UsageError, match="allowed"):
            _ = home.ledger


def test_missing_driver_is_one_clear_line():
    code = (
        "import sys; sys.modules['pg8000'] = None\n"
        "from fl_core.errors import UsageError\n"
        "from fl_core.trust.ledger import Ledger\n"
        "from fl_core.trust.postgres_url import PostgresUrl\n"
        "try: Ledger.open(PostgresUrl.parse('postgresql://ann:hunter2@127.0.0.1:9/team'))\n"
        "except UsageError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert (
        out.stdout
        == "postgresql://ann:***@127.0.0.1:9/team: needs the driver pg8000; allowed: pip install 'fedseal[postgres]'\n"
    )


def test_the_driver_is_imported_for_postgresql_only():
    code = (
        "import sys, fl_core.trust.ledger, fl_core.trust.ledger_postgres, fl_core.home; print('pg8000' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_arrays_keep_every_text_apart():
    assert array([1, 2**53]) == "{1,9007199254740992}"
    assert array([b"\x00\xff", b""]) == r'{"\\x00ff","\\x"}'
    assert array(["null", "NULL", "", 'a"b\\', "{},", "—"]) == r'{"null","NULL","","a\"b\\","{},","—"}'


def test_schemas_do_not_share_a_lock():
    keys = {lock_key(schema) for schema in ("fedseal", "one", "two")}
    assert len(keys) == 3 and all(-(2**63) <= key < 2**63 for key in keys)


def test_tables_are_those_of_the_file(scenario, coordinator):
    """Names, order and keys of columns in PostgreSQL are those that SQLite itself tells of a file with all tables."""
    store = scenario.ledger._store
    with scenario.ledger._writing():
        for table in ("outside_cosignatures", "past_cards"):
            store.make_table(table)
    names = {name for (name,) in store.all("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == TABLES.keys() - {"format"}
    kinds = {"INTEGER": "bigint", "TEXT": "text", "BLOB": "bytea"}
    for name in names:
        rows = store.all(f"SELECT name, type, pk FROM pragma_table_info('{name}')")
        assert [(column, kinds[kind]) for column, kind, _ in rows] == list(TABLES[name].columns.items())
        assert tuple(column for column, _, pk in sorted(rows, key=lambda r: r[2]) if pk) == TABLES[name].key
