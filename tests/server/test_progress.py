"""What a person sees of a run: names from others are text, never markup and never a terminal's commands."""

from __future__ import annotations

import re

import pytest

from fl_core.text import printable
from server.cli.progress import Progress, show_check, show_runs, show_summary
from strategies.coordination import Event

EVIL = "bank [/x] [red]r :smile: \x1b[2J\x1b]0;t\x07\nnext\u202e"
SHOWN = "bank [/x] [red]r :smile: �[2J�]0;t��next�"
LEDGER = {"root": "ab" * 32, "size": 7, "path": EVIL}
SUMMARY = {
    "job": EVIL,
    "status": "done",
    "metrics": {"accuracy": 0.5},
    "seconds": 2.0,
    "outputs": {EVIL: {"model": None}},
    "ledger": LEDGER,
    "mlflow_run_id": EVIL,
    "mlflow": {"uri": EVIL, "delivered": False, "reason": EVIL},
    "unsafe": [EVIL],
}
RUN = {
    "run": "00" * 8,
    "started": 0.0,
    "status": "failed",
    "name": EVIL,
    "metrics": {},
    "error": EVIL,
    "mlflow_run_id": None,
}
PARTY = {"party": EVIL, "problem": EVIL, "status": "failed", "rows": 1}
EVENTS = [
    Event("submitted", 0, {"coordinator": EVIL, "run": "00" * 8}),
    Event("lost", 0, {"text": EVIL}),
    Event("joined", 0, {"parties": [EVIL], "key": EVIL}),
    Event("record", 1, {"accuracy": EVIL}),
    Event("dropped", 1, {"party": EVIL, "code": EVIL}),
    Event("refused", 1, {"party": EVIL, "code": "paused", "text": EVIL}),
]


def harmless(text: str) -> str:
    """The text on one line, which holds nothing that a terminal obeys."""
    assert all(c.isprintable() or c == "\n" for c in text), ascii(text)
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_an_events_names_are_shown_as_they_are(event, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with Progress() as progress:
        progress.event(event)
    assert SHOWN in harmless(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("show", "given", "times"), [(show_summary, SUMMARY, 7), (show_runs, [RUN], 2)], ids=["summary", "runs"]
)
def test_a_runs_names_are_shown_as_they_are(show, given, times, capsys):
    show(given)
    assert harmless(capsys.readouterr().out).count(SHOWN) == times


def test_a_checks_names_are_shown_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    show_check({"parties": [PARTY], "problems": [EVIL], "unsafe": [EVIL], "ok": False})
    assert harmless(capsys.readouterr().out).count(SHOWN) == 4


def test_text_of_any_language_stays_and_a_stray_byte_can_be_printed():
    assert printable("Zürich ε 銀行 x") == "Zürich ε 銀行 x"
    assert printable("a\udc80b\x00\x7f\x85\u2028").encode() == "a�b����".encode()
    assert printable(None) == "None" and printable("") == ""
