"""`fedseal backup` and `fedseal restore` as people run them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.node.folder import NodeFolder, Settings
from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.witness import Witness
from server.cli.main import main
from server.coordinator.folder import Addresses, CoordinatorFolder


class Shell:
    """`fedseal …` in this process, in a folder of its own, with a coordinator and a node in `home`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._patch, self._capsys = path, monkeypatch, capsys
        monkeypatch.chdir(path)
        monkeypatch.setenv("FEDSEAL_HOME", str(path / "home"))
        monkeypatch.setenv("COLUMNS", "300")

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["fedseal", *map(str, words)])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    home = Home.open(tmp_path / "home")
    identity = CoordinatorFolder.create(home, Addresses(("localhost",))).identity()
    with Ledger.open(home.ledger, identity) as ledger:
        ledger.append([Statement.make(identity, log=ledger.log, kind="person", run="", body={"person": "ann"})])
        ledger.checkpoint()
    node = NodeFolder.create(home, Settings("bank", "localhost:9443"), authority=b"PEM")
    Witness(node.path / "witness", Identity.load_or_create(node.path, "bank"))
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_help_has_an_example(shell: Shell, command: str) -> None:
    code, out, _ = shell(command, "--help")
    assert code == 0
    assert f"fedseal {command}" in out.partition("Example")[2]
    assert command in shell("--help")[1]


def test_a_backup_comes_back_and_the_ledger_is_valid(shell: Shell) -> None:
    code, out, err = shell("backup", "b.tar")
    assert (code, err) == (0, "")
    assert "home saved in b.tar: " in out and "ledger fedseal/" in out and "2 entries" in out and "private keys" in out
    code, out, err = shell("restore", "b.tar", "--home", "new")
    assert (code, err) == (0, "")
    assert "new restored from b.tar of 20" in out and ": VALID" in out
    warnings = [line for line in out.splitlines() if line.startswith("warning: ")]
    for said in (
        "refuse this ledger as a fork",
        "people revoked",
        "node bank: paused",
        "fedseal node resume --name bank",
    ):
        assert any(said in line for line in warnings), said
    assert shell("audit", "verify", "--home", "new")[0] == 0
    assert CoordinatorFolder.open(Home.open("new")).check().hosts
    assert NodeFolder.of(Home.open("new"), "bank").paused
    assert shell("node", "resume", "--home", "new")[0] == 0
    assert not NodeFolder.of(Home.open("new"), "bank").paused


def test_json_says_the_same_in_one_object(shell: Shell) -> None:
    saved = json.loads(shell("backup", "b.tar", "--json")[1])
    assert saved["bytes"] == os.path.getsize("b.tar") and saved["links"] == []
    code, out, err = shell("restore", "b.tar", "--home", "new", "--json")
    told = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert (told["verdict"], told["paused"], told["privacy"]) == ("VALID", {"bank": []}, [])
    assert {k: told[k] for k in ("file", "time", "files", "ledger")} == {
        k: saved[k] for k in ("file", "time", "files", "ledger")
    }
    assert told["ledger"]["size"] == 2 and told["home"] == str(shell.path / "new")
    assert len(told["warnings"]) == 4


def test_no_secret_is_ever_printed(shell: Shell) -> None:
    said = "".join(
        text
        for words in (["backup", "b.tar"], ["backup", "c.tar", "--json"], ["restore", "b.tar", "--home", "n1"])
        for text in shell(*words)[1:]
    )
    said += "".join(shell("restore", "c.tar", "--home", "n2", "--json")[1:])
    home = Home.open()
    for path in (home.coordinator, home.party("bank")):
        held = json.loads((path / "identity.key").read_bytes())
        assert not [k for k in ("ed25519", "x25519") if held[k][:12] in said]
    for name in ("coordinator/authority.key", "coordinator/server.key", "parties/bank/flower.key"):
        lines = (home.path / name).read_text().splitlines()[1:-1]
        assert not [line for line in lines if line[:16] in said]
    for name in ("coordinator/superexec.secret", "parties/bank/runtime.secret"):
        assert (home.path / name).read_bytes().hex()[:12] not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backup", "there.tar"], "there.tar: there is a file already; allowed: a new one"),
        (["backup", "new.tar", "--home", "none"], "none: no home here"),
        (["backup", "home/new.tar"], "lies in the home itself"),
        (["restore", "none.tar", "--home", "new"], "none.tar: no such file"),
        (["restore", "there.tar", "--home", "new"], "there.tar: not a backup"),
        (["restore", "there.tar"], "home: holds ledger.db already; allowed: a home that is not there yet, or is empty"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(shell: Shell, words: list[str], said: str) -> None:
    (shell.path / "there.tar").write_text("mine")
    code, out, err = shell(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fedseal: ") and said in err
    assert sorted(p.name for p in shell.path.iterdir()) == ["home", "there.tar"]


def test_a_home_of_a_newer_version_is_neither_saved_nor_touched(shell: Shell) -> None:
    (shell.path / "home" / "version").write_text("2\n")
    code, _, err = shell("backup", "b.tar")
    assert code == 2 and "a home of version '2'; allowed: version 1; a newer fedseal made it: upgrade fedseal" in err
    assert [p.name for p in shell.path.iterdir()] == ["home"]


def test_a_ledger_that_is_broken_is_restored_with_exit_code_1(shell: Shell) -> None:
    with sqlite3.connect(shell.path / "home" / "ledger.db") as db:
        (note,) = db.execute("SELECT note FROM checkpoints WHERE size = 1").fetchone()  # the newest one holds
        db.execute("UPDATE checkpoints SET note = ? WHERE size = 1", (note[:-20] + "A" * 16 + note[-4:],))
    assert shell("backup", "b.tar")[0] == 0
    code, out, _ = shell("restore", "b.tar", "--home", "new", "--json")
    assert (code, json.loads(out)["verdict"]) == (1, "BROKEN")
    assert COORDINATOR in Identity.load_or_create(shell.path / "new" / "coordinator", COORDINATOR).card.name


def test_a_backup_imports_nothing_heavy(shell: Shell) -> None:
    script = (
        "import sys, atexit; from server.cli.main import main;"
        "atexit.register(lambda: print(sorted(set(sys.modules) & {'torch', 'flwr', 'mlflow', 'opacus', 'grpc'}))); main()"
    )
    for words in (["backup", "b.tar"], ["restore", "b.tar", "--home", "new"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": ROOT},
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


ROOT = str(Path(__file__).parents[2])
