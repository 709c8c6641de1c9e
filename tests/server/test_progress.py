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


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"quorum": 1, "signed": ["notary"], "missing": {}}, "1 of 1 co-signed, 1 must: notary"),
        (
            {"quorum": 1, "signed": ["notary"], "missing": {"x": f"witness x: {EVIL}"}},
            f"1 of 2 co-signed, 1 must: notary; witness x: {SHOWN}",
        ),
        (
            {"quorum": 2, "signed": [], "missing": {"x": f"x: {EVIL}", "y": "y: refuses"}},
            f"short of witnesses: 0 of 2 co-signed, 2 must; x: {SHOWN}; y: refuses",
        ),
        ({"error": EVIL}, f"no witness was asked: {SHOWN}"),
    ],
)
def test_who_co_signed_and_who_did_not_is_one_line(told, said, capsys):
    show_summary(SUMMARY | {"witnesses": told})
    lines = [harmless(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(said in line for line in lines) == 1, lines


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


# ---- vertical jobs


def told(events, capsys, monkeypatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", "200")
    with Progress() as progress:
        for event in events:
            progress.event(event)
    lines = capsys.readouterr().err.splitlines()
    return [re.sub(r"^ *[\d.]+ s +", "", line).strip() for line in lines]


@pytest.mark.parametrize(("unit", "steps"), [("epoch", 3), ("tree", 3)])
def test_records_of_a_vertical_job_are_named_by_what_they_are(unit, steps, capsys, monkeypatch):
    opened = Event("session", 1, {"parties": ["a", "b"], "unit": unit, "steps": steps})
    records = [
        Event("record", 0, {"rows_aligned": "30000", "seconds": "0.5", "bytes": "7"}),
        Event("record", 3, {"loss": "0.41", "auc": "0.77", "seconds": "0.1"}),
        Event("record", 4, {"auc": "0.78", "ks": "0.44", "loss": "0.42", "rows_aligned": "30000"}),
    ]
    aligned, step, result = told([opened, *records], capsys, monkeypatch)[1:]
    assert aligned == "aligned 30,000 rows  seconds 0.5"
    assert step == f"{unit} 3: auc 0.77  loss 0.41  seconds 0.1"
    assert result == "result: auc 0.78  ks 0.44  loss 0.42"


def test_a_later_session_of_another_kind_is_told_as_before(capsys, monkeypatch):
    vertical = Event("session", 1, {"parties": ["a"], "unit": "tree", "steps": 3})
    psi = Event("session", 1, {"parties": ["a"]})
    *_, line = told([vertical, psi, Event("record", 1, {"intersection_size": "20"})], capsys, monkeypatch)
    assert line == "round 1: intersection_size 20"


def test_an_odd_count_is_shown_as_it_is(capsys, monkeypatch):
    opened = Event("session", 1, {"parties": ["a"], "unit": "tree", "steps": 3})
    lines = told([opened, Event("record", 0, {"rows_aligned": EVIL})], capsys, monkeypatch)
    assert SHOWN in harmless(" ".join(lines))


def test_counts_are_whole_numbers_and_figures_come_first(capsys):
    metrics = {"bytes": 23029208.0, "auc": 0.785629, "rows_aligned": 30000.0, "seconds_per_tree": 0.0751493, "new": 1.5}
    show_summary(SUMMARY | {"metrics": metrics})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [re.split(r"  +", line) for line in lines[:5]] == [
        ["AUC on all test rows", "0.7856"],
        ["rows aligned", "30,000"],
        ["seconds a tree, median", "0.07515"],
        ["bytes of messages, all parties", "23,029,208"],
        ["new", "1.5"],
    ]


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"loss": 1.0, "accuracy": 0.91234}, "accuracy 0.9123"),
        ({"auc": 0.785629, "loss": 0.4}, "AUC 0.7856"),
        ({"rmse": 2.5, "r2": 0.4}, "RMSE 2.5000"),
        ({"intersection_size": 2000.0}, "2,000 ids in common"),
    ],
)
def test_a_run_is_known_by_its_main_figure(metrics, shown, capsys):
    show_runs([RUN | {"metrics": metrics, "error": ""}])
    assert shown in capsys.readouterr().out
