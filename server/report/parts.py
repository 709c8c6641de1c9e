"""Pieces of the audit report that every kind of job uses; all text from outside is escaped here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from server.report.chart import Series

Facts = Mapping[str, Any]

COLUMNS = {
    "rows_aligned": "rows aligned",
    "rows_per_second": "rows a second",
    "auc": "AUC",
    "ks": "KS",
    "accuracy": "accuracy",
    "rmse": "RMSE",
    "r2": "R²",
    "loss": "loss",
    "train_loss": "training loss",
    "valid_loss": "validation loss",
    "test_loss": "loss, held-out rows",
    "epsilon": "ε spent",
    "test_rows": "rows tested",
    "bytes_up": "bytes up",
    "bytes_down": "bytes down",
    "seconds": "seconds",
    "parties": "parties",
    "bytes": "bytes of messages",
    "intersection_size": "ids in common",
    "seconds_per_epoch": "seconds an epoch",
    "seconds_per_tree": "seconds a tree",
}


@dataclass(frozen=True)
class Told:
    """What a kind of job has to say of itself.

    sentence, tiles : of the head; a tile without a value is left out. course, parties : whole sections, or empty.
    privacy : rows of a table, name and text. proofs : rows beside those of the ledger, shown as code.
    heading, step, label : of the table of records: its title, what a record is, and how one is named.
    """

    sentence: str
    tiles: Mapping[str, str]
    course: str
    parties: str
    privacy: Sequence[tuple[str, object]]
    proofs: Mapping[str, str] = field(default_factory=dict)
    heading: str = "Rounds"
    step: str = "round"
    label: Callable[[int], str] = str


def text(value: object) -> str:
    """As text of the page."""
    return escape(str(value))


def row(name: str, value: object, *, code: bool = False) -> str:
    """A row of a table of two columns."""
    shown = f"<code>{text(value)}</code>" if code else text(value)
    return f"<tr><td>{text(name)}</td><td>{shown}</td></tr>"


def words(value: object) -> str:
    """A setting in words; empty when it is not set."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def names(facts: Facts) -> list[str]:
    """The parties: of the job file, and whoever a round names."""
    listed = [str(p["name"]) for p in facts["job"].get("party", [])]
    seen = (str(n) for r in facts["rounds"] for n in [*r["parties"], *r["missing"]])
    return list(dict.fromkeys([*listed, *sorted(set(seen))]))


def last(facts: Facts, metric: str) -> str:
    """The latest recorded text of a metric; empty when there is none."""
    return next((str(r["metrics"][metric]) for r in reversed(facts["rounds"]) if metric in r["metrics"]), "")


def series(rounds: Sequence[Facts], metric: str, name: str = "") -> Series:
    """A metric over records."""
    texts = ((r["round"], str(r["metrics"][metric])) for r in rounds if metric in r["metrics"])
    return Series(name or COLUMNS[metric], tuple((number, float(said), said) for number, said in texts))


def count(said: str) -> str:
    """A whole number with thousands apart; as it is where it is none."""
    try:
        value = float(said)
    except ValueError:
        return said
    return f"{value:,.0f}" if math.isfinite(value) else said


def took_part(facts: Facts) -> str:
    """The section of who was there in which rounds."""
    rows = ""
    for name in names(facts):
        there = [r["round"] for r in facts["rounds"] if name in r["parties"] and r["round"] > 0]
        missed = [r["round"] for r in facts["rounds"] if name in r["missing"] and r["round"] > 0]
        rows += f"<tr><td>{text(name)}</td><td>{_spans(there)}</td><td>{_spans(missed)}</td></tr>"
    receivers = facts["job"].get("train", {}).get("receivers") or []
    also = f"<p>Receive the model without giving data: {text(', '.join(receivers))}.</p>" if receivers else ""
    head = "<tr><th>party</th><th>took part in rounds</th><th>missing in rounds</th></tr>"
    return f"<h2>Who took part</h2><table>{head}{rows}</table>{also}"


def charts(note: str, figures: Sequence[str]) -> str:
    """The section of the curves."""
    return f'<h2>How it went</h2><p class="soft">{text(note)}</p><div class="charts">{"".join(figures)}</div>'


def _spans(rounds: Sequence[int]) -> str:
    """Rounds as spans: 1 to 4, 6."""
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in _runs(rounds)) or "none"


def _runs(rounds: Sequence[int]) -> Iterator[tuple[int, int]]:
    ordered = sorted(set(rounds))
    first = 0
    for i, number in enumerate(ordered):
        if i + 1 == len(ordered) or ordered[i + 1] != number + 1:
            yield ordered[first], number
            first = i + 1
