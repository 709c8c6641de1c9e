"""`fedseal audit move` as people run it: what it says, what it refuses, and what a home does afterwards."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from fl_core.home import Home
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.ledger_seal import Seal
from fl_core.trust.ledger_store import SqliteStore
from fl_core.trust.postgres_url import PostgresUrl
from server.cli import audit_move
from server.cli.main import main
from server.coordinator.folder import Addresses, CoordinatorFolder
from tests.postgres import PASSWORD, Server, start_server

NOWHERE = "postgresql://fedseal:s3cret-word@127.0.0.1:1/team"


class Shell:
    """`fedseal …` in this process, with a coordinator's home whose ledger has three entries."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.patch, self._capsys = path, monkeypatch, capsys
        monkeypatch.chdir(path)
        monkeypatch.setenv("FEDSEAL_HOME", str(path / "home"))
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.delenv("FEDSEAL_LEDGER", raising=False)
        self.home = Home.open(path / "home")
        self.identity: Identity = CoordinatorFolder.create(self.home, Addresses(("localhost",))).identity()
        self.file = self.home.ledger_file
        self.add(self.file)
        self.add(self.file)

    def add(self, place: Any) -> None:
        with Ledger.open(place, self.identity) as ledger:
            body = {"person": f"ann{ledger.size}"}
            ledger.commit([Statement.make(self.identity, log=ledger.log, kind="person", run="", body=body)])

    def __call__(self, *words: object, ledger: str | None = None) -> tuple[int, str, str]:
        with self.patch.context() as patches:
            if ledger is not None:
                patches.setenv("FEDSEAL_LEDGER", ledger)
            patches.setattr(sys, "argv", ["fedseal", *map(str, words)])
            code: Any = 0
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    server = start_server()
    yield server
    server.close()


def seal(path: Path, how: Seal) -> None:
    store = SqliteStore.open(path, writable=True, fill=None)
    with store.transaction():
        store.seal(how)
    store.close()


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [*db.iterdump(), str(db.execute("PRAGMA journal_mode").fetchone())]


def test_help_has_examples_and_says_what_the_exit_code_means(shell):
    code, out, _ = shell("audit", "move", "--help")
    assert code == 0 and "Exit: 0 moved, 1 not moved" in " ".join(out.split())
    assert "fedseal audit move --to postgresql://" in " ".join(out.partition("Examples")[2].split())
    assert "move" in shell("audit", "--help")[1]


@pytest.mark.parametrize(
    ("words", "ledger", "said"),
    [
        (["--to", "elsewhere.db"], "", "--to elsewhere.db; allowed: postgresql://… or "),
        (["--to", "home/ledger.db"], "", "FEDSEAL_LEDGER: not set; allowed: the URL of the ledger that moves"),
        (["--to", "home/ledger.db"], "other.db", "FEDSEAL_LEDGER: no URL"),
        (["--to", "mysql://u:s3cret-word@host/x"], "", "mysql://u:***@host/x: no place of a ledger"),
        (["--to", "postgresql://host/x"], "", "no server, user or database"),
        (["--to", NOWHERE], "postgresql://other@127.0.0.1:2/team", "FEDSEAL_LEDGER names postgresql://other@127.0.0.1"),
        (["--to", "home/ledger.db", "--undo"], "", "--undo: --to home/ledger.db; allowed: the URL"),
        (["--to", NOWHERE, "--undo"], "", "is not sealed"),
        ([], "", "Missing option '--to'"),
    ],
)
def test_a_wrong_option_is_one_line_and_moves_nothing(shell, words, ledger, said):
    before = dump(shell.file)
    code, out, err = shell("audit", "move", *words, ledger=ledger or None)
    assert code == 2 and said in err and not out and "s3cret" not in err
    assert dump(shell.file) == before and not list(shell.home.path.glob("*.moved-*"))
    shell.add(shell.file)


def test_a_server_that_cannot_be_reached_leaves_the_file_as_it_was(shell):
    code, out, err = shell("audit", "move", "--to", NOWHERE)
    assert (code, out) == (1, "") and "the server cannot be reached" in err and "s3cret" not in err
    assert err.count("\n") == 1
    shell.add(shell.file)
    assert shell("audit", "verify")[0] == 0


def test_where_there_is_no_ledger_or_it_was_moved_already_that_is_said(shell):
    shell.file.rename(shell.file.with_name("ledger.db.moved-3"))
    code, _, err = shell("audit", "move", "--to", NOWHERE)
    assert code == 2 and "ledger.db: was moved already; the file is ledger.db.moved-3" in err
    shell.file.with_name("ledger.db.moved-3").unlink()
    code, _, err = shell("audit", "move", "--to", NOWHERE)
    assert code == 2 and "ledger.db: no ledger here" in err


def test_a_home_whose_file_is_sealed_goes_on_by_no_command(shell):
    """Neither with the file, nor, while it is there, with the server."""
    seal(shell.file, Seal(into=False, other="postgresql://127.0.0.1:1/team?schema=fedseal", token=1))
    people = shell("coordinator", "admit", "ben", "--role", "auditor", "--out", "ben.pass")
    assert people[0] != 0 and "this ledger was moved to postgresql://127.0.0.1:1/team" in people[2]
    assert shell("audit", "show")[0] == 0
    code, _, err = shell("audit", "show", ledger=NOWHERE)
    assert code == 2 and "one of them" in err and "s3cret" not in err
    code, _, err = shell("audit", "move", "--to", NOWHERE.replace("/team", "/other"))
    assert code == 2 and "is sealed for postgresql://127.0.0.1:1/team?schema=fedseal" in err


def test_after_a_move_a_home_without_the_variable_begins_no_other_log(shell):
    shell.file.rename(shell.file.with_name("ledger.db.moved-3"))
    for words in (
        ("coordinator", "admit", "ben", "--role", "auditor", "--out", "ben.pass"),
        ("witness", "log"),
        ("audit", "show"),
    ):
        code, _, err = shell(*words)
        assert code != 0 and "ledger" in err, words
    assert not shell.file.exists()


def test_progress_is_a_line_now_and_then_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(audit_move, "SAY_SECONDS", 0.0)
    progress = audit_move._Progress()
    progress("copied", 120_000, 1_000_000)
    progress("verified", 1000, 9000)
    said = capsys.readouterr()
    assert said.out == "" and said.err == "copied 120,000 of 1,000,000 rows\nverified 1,000 of 9,000 entries\n"
    monkeypatch.setattr(audit_move, "SAY_SECONDS", 60.0)
    progress("copied", 1, 2)
    assert capsys.readouterr().err == ""


# ---- with a server


@pytest.mark.slow
def test_there_and_back_by_the_command_line(shell, postgres):
    url = postgres.url()
    secrets = (PASSWORD, quote(PASSWORD, safe=""))
    code, out, err = shell("audit", "move", "--to", url)
    shown = str(PostgresUrl.parse(url))
    assert (code, err) == (0, "") and "moved: fedseal/" in out and ", 3 entries, head " in out
    assert f"which is {shell.file}.moved-3 now" in out and f"to   {shown}" in out and "every signature verified" in out
    assert "FEDSEAL_LEDGER with this URL" in out and not any(secret in out for secret in secrets)
    assert shell("audit", "verify", ledger=url)[0] == 0
    code, _, err = shell("coordinator", "admit", "ben", "--role", "auditor", "--out", "ben.pass")
    assert code == 2 and "its ledger was moved, and the file is ledger.db.moved-3" in err
    shell.add(PostgresUrl.parse(url))
    code, out, err = shell("audit", "move", "--to", "home/ledger.db", "--json", ledger=url)
    found = json.loads(out)
    assert (code, err) == (0, "") and not any(secret in out for secret in secrets)
    assert found.keys() == {"log", "size", "root", "verified", "resumed", "aside", "from", "to"}
    assert (found["size"], found["verified"], found["resumed"], found["aside"]) == (4, True, False, None)
    assert (found["from"], found["to"]) == (shown, "home/ledger.db")
    assert shell("audit", "verify")[0] == 0
    shell.add(shell.file)
    code, _, err = shell("audit", "move", "--to", url)
    assert code == 2 and "holds a ledger; allowed: an empty schema" in err
    assert shell("audit", "verify", "--ledger", url)[0] == 0  # what was left there can be read


@pytest.mark.slow
def test_no_verify_says_so(shell, postgres):
    code, out, _ = shell("audit", "move", "--to", postgres.url(), "--no-verify", "--json")
    assert code == 0 and json.loads(out)["verified"] is False


@pytest.mark.slow
def test_a_broken_ledger_is_not_moved(shell, postgres):
    with closing(sqlite3.connect(shell.file)) as db, db:
        db.execute("UPDATE entries SET by = 'x' WHERE seq = 1")
    code, out, err = shell("audit", "move", "--to", postgres.url())
    assert (code, out) == (1, "") and "entry 1: " in err and "a broken ledger is not moved" in err


@pytest.mark.slow
def test_a_move_that_was_cut_short_is_ended_or_undone(shell, postgres):
    url = postgres.url()
    kill = (
        "import os, sys\n"
        "from fl_core.trust.postgres_connection import Connection\n"
        "run = Connection.run\n"
        "Connection.run = lambda self, sql: os.kill(os.getpid(), 9) if sql == 'COMMIT' else run(self, sql)\n"
        "sys.argv = ['fedseal', 'audit', 'move', '--to', sys.argv[1]]\n"
        "from server.cli.main import main\n"
        "main()\n"
    )
    assert subprocess.run([sys.executable, "-c", kill, url], env=dict(os.environ), check=False).returncode == -9
    code, out, err = shell("audit", "move", "--to", url, "--undo")
    assert (code, err) == (0, "") and out == f"{shell.file}: the seal is off; nothing was moved\n"
    shell.add(shell.file)
    assert subprocess.run([sys.executable, "-c", kill, url], env=dict(os.environ), check=False).returncode == -9
    code, out, err = shell("audit", "move", "--to", url, ledger=url)  # the variable may be set already
    assert (code, err) == (0, "") and "4 entries" in out and "an earlier move brought to its end" in out
    assert shell("audit", "verify", ledger=url)[0] == 0
    code, _, err = shell("audit", "move", "--to", url, "--undo")
    assert code == 2 and "was moved already" in err
