"""`fedseal serve` and `predict` with wrong words: one line that says what is wrong, exit code 2, nothing started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fl_core.trust.identity import Card
from server.cli.main import main


@pytest.fixture
def shell(tmp_path: Path, monkeypatch, capsys):
    """Runs a command in a folder of its own; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSEAL_HOME", str(tmp_path / "home"))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedseal", *words])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_card_is_printed_and_stays_the_same(shell):
    (_, first, _), (_, second, _) = (shell("predict", "--as", "clinic", "--card") for _ in range(2))
    assert first == second and Card.from_dict(json.loads(first)).name == "clinic"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "--as", "clinic"], "one of --server, --ca, --data is missing"),
        (["predict", "--server", "h:1", "--ca", "no.pem", "--data", "x.csv"], "--ca no.pem: cannot be read"),
        (["serve", "--model", "m", "--client", "no.card"], "--client no.card: no card there"),
        (["serve", "--model", "m", "--client", "a.card=soon"], "allowed: YYYY-MM-DD"),
        (["serve", "--model", "m", "--client", "a.card"], "m: no model there"),
        (["serve", "--model", "m", "--client", "a.card", "--listen", "nowhere"], "allowed: HOST:PORT"),
        (["serve", "--model", "m", "--client", "a.card", "--many", "--labels"], "allowed: one of them"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(shell, words, said):
    Path("a.card").write_text(shell("predict", "--as", "clinic", "--card")[1])
    code, out, err = shell(*words)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_a_changed_card_is_refused(shell):
    card = json.loads(shell("predict", "--as", "clinic", "--card")[1])
    Path("a.card").write_text(json.dumps({**card, "name": "other"}))
    assert "no card there" in shell("serve", "--model", "m", "--client", "a.card")[2]
