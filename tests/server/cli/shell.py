"""`fedseal …` as people type it, in this process; homes to type it in: one's own, a node's, one with a pass."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clients.board import LocalBoard
from clients.node.folder import NodeFolder, Settings, Source
from fl_core.home import Home
from fl_core.processes import free_port
from fl_core.trust import certificates
from fl_core.trust.entry import Statement
from fl_core.trust.federation import Pass
from fl_core.trust.ledger import Ledger
from server.cli.main import main
from server.coordinator.door import Door, open_door
from server.coordinator.folder import Addresses, CoordinatorFolder

CSV = "id,age,income,name,y\n" + "".join(f"{n},{20 + n},{n * 1.5},x{n},{n % 2}\n" for n in range(123))
HOSTILE = "x\x1b[2J\x9b31m\u202eoob\u2028\x07"  # what a terminal would obey


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Shell:
    """`fedseal …` in this process; nothing that a terminal obeys may come out."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.home = path, path / "home"
        self._patch, self._capsys = monkeypatch, capsys
        (path / "credit.csv").write_text(CSV)
        monkeypatch.chdir(path)
        monkeypatch.delenv("FEDSEAL_PASS", raising=False)
        monkeypatch.setenv("FEDSEAL_HOME", str(self.home))
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *words: object, home: Path | None = None) -> Done:
        self._patch.setattr(sys, "argv", ["fedseal", *map(str, words), *(["--home", str(home)] if home else [])])
        self._capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        said = self._capsys.readouterr()
        for text in (said.out, said.err):
            assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")], text
        return Done(code, said.out, said.err)

    def json(self, *words: object, home: Path | None = None) -> Any:
        return self(*words, "--json", home=home).json

    def fails(self, code: int, *words: object, home: Path | None = None) -> str:
        done = self(*words, home=home)
        assert (done.code, done.out) == (code, ""), done
        assert done.err.startswith("fedseal: ") and done.err.count("\n") == 1, done.err
        return done.err


def publish(shell: Shell, name: str = "credit", *more: object, home: Path | None = None) -> Any:
    words = ("data", "publish", "credit.csv", "--name", name, "--purpose", "credit scoring", "--epsilon", "8")
    return shell.json(*words, "--as", "bank", *more, home=home)


def ask(shell: Shell, *more: object) -> str:
    words = ("grant", "request", "bank/credit", "--kind", "horizontal", "--uses", 3, "--epsilon", "4")
    return str(shell.json(*words, "--until", "2099-12-31", *more)["request"])


def make_node(shell: Shell, path: Path) -> Path:
    """A node's home whose data are bound; the coordinator's is the shell's own."""
    coordinator = LocalBoard(Home.open(shell.home)).coordinator
    home = Home.open(path)
    settings = Settings("bank", "localhost:1", sources={"credit": Source(str(shell.path / "credit.csv"))})
    NodeFolder.create(home, settings, authority=b"").pin(coordinator.card)
    return home.path


Enter = Callable[..., Path]


@contextmanager
def serve_door(path: Path) -> Iterator[tuple[CoordinatorFolder, Enter]]:
    """A coordinator's door; `enter(name, *roles)` makes a home with a pass."""
    addresses = Addresses(("localhost",), "127.0.0.1", 0, free_port(), 0)
    folder = CoordinatorFolder.create(Home.open(path / "coordinator"), addresses)
    identity = folder.identity()

    def note(kind: str, run: str, body: dict[str, Any]) -> None:
        with Ledger.open(folder.home.ledger, identity) as ledger:
            ledger.append([Statement.make(identity, log=ledger.log, kind=kind, run=run, body=body)])

    def enter(name: str, *roles: str, home: Path | None = None) -> Path:
        pair = certificates.issue_client(folder.authority(), name=name, roles=roles)
        folder.people.add(certificates.check(pair.certificate, authority=folder.authority_pem, purpose="client"))
        place = Home.open(home or path / f"home-{name}").path
        (place / "pass.json").write_bytes(Pass(folder.federation(), pair).encode())
        return place

    server = open_door(Door(folder, None, lambda act: act(), note), folder, note)
    yield folder, enter
    server.stop(0).wait(10)
