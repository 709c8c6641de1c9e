"""The audit report of a run: one HTML file that needs nothing else, for the manager and for the auditor.

It repeats what the ledger holds, in the ledger's own decimal texts, says what checking that came to when it was
written, and how to check it again; it proves nothing itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_core.files import write_atomic
from server.report.audit import parts, stamp, traffic
from server.report.parts import COLUMNS, Facts, Told, names, row, text, words
from server.report.style import CSS

_VERDICTS = {
    "done": ("Finished", "good"),
    "stopped": ("Stopped before its end", "warn"),
    "refused": ("Refused by a party", "warn"),
    "failed": ("Failed", "bad"),
    "under way": ("Under way", "warn"),
}


def write_report(path: Path, *, facts: Mapping[str, Any]) -> None:
    """Write `render`'s page; raises `JobFailed` if the file cannot be written."""
    write_atomic(path, render(facts).encode(), mode=0o644)


def render(facts: Mapping[str, Any]) -> str:
    """Make the report.

    Parameters
    ----------
    facts : `run, name, status, job` (the public view), `metrics, rounds` (bodies of the ledger's round entries),
        `unsafe` (texts), `ledger` (`path, size, root, log, checkpoint, cosigned`), `model` (digest), `seconds`;
        of a session also `said`, the bodies of the parties' statements on their session, by party; all of them as
        `server.report.facts.gather` reads them. With `audit`, a `server.report.facts.Audit`, the audit's sections.

    Returns
    -------
    An HTML page without script that fetches nothing.
    """
    if facts.get("unreadable"):
        return _page(facts, _eyebrow(facts) + stamp(facts, facts["audit"]))
    told, audit = _told(facts), parts(facts)
    sections = (
        _head(facts, told, audit["stamp"]),
        _unsafe(facts),
        audit["members"],
        told.course,
        told.parties,
        _privacy(told) + audit["spending"],
        traffic(facts),
        audit["refusals"],
        _ledger(facts, told) + audit["witnesses"],
        audit["mlflow"],
        audit["unchecked"],
        _settings(facts),
        _records(facts, told),
    )
    return _page(facts, "\n".join(section for section in sections if section))


def _page(facts: Facts, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{text(facts['name'])}: audit report</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _told(facts: Facts) -> Told:
    kind = facts["job"].get("kind", "horizontal")
    if kind == "vertical":
        from server.report.vertical import tell
    elif kind == "predict":
        from server.report.predict import tell
    elif kind == "psi":
        from server.report.psi import tell
    else:
        from server.report.horizontal import tell
    return tell(facts)


# ---- sections, in the order of the page


def _head(facts: Facts, told: Told, verdict: str) -> str:
    word, tone = _VERDICTS.get(facts["status"], (str(facts["status"]), "warn"))
    tiles = {**told.tiles, "parties": str(len(names(facts))), "seconds in all": f"{facts['seconds']:.1f}"}
    shown = "".join(f'<div class="tile"><b>{text(v)}</b><span>{text(k)}</span></div>' for k, v in tiles.items() if v)
    return (
        f"{_eyebrow(facts)}{verdict}"
        f'<p class="verdict"><b class="{tone}">{text(word)}.</b> {text(told.sentence)}.</p>'
        f'<div class="tiles">{shown}</div>'
    )


def _eyebrow(facts: Facts) -> str:
    return f'<p class="eyebrow">fedseal audit report, run {text(facts["run"])}</p><h1>{text(facts["name"])}</h1>'


def _unsafe(facts: Facts) -> str:
    if not facts["unsafe"]:
        return '<p><b class="good">No protective setting was switched off.</b></p>'
    items = "".join(f"<li>{text(said)}</li>" for said in facts["unsafe"])
    return f'<div class="unsafe"><h2>Protection that this run gave up</h2><ul>{items}</ul></div>'


def _privacy(told: Told) -> str:
    rows = "".join(row(name, said) for name, said in told.privacy)
    return f'<h2>Privacy</h2><table class="facts">{rows}</table>'


def _settings(facts: Facts) -> str:
    job = facts["job"]
    plain = {k: v for k, v in job.items() if not isinstance(v, Mapping) and k != "party"}
    groups = {"job": plain} | {k: v for k, v in job.items() if isinstance(v, Mapping)}
    tables = []
    for name, group in groups.items():
        rows = "".join(row(k, words(v)) for k, v in group.items() if words(v))
        tables.append(f"<table><caption>{text(name)}</caption>{rows}</table>" if rows else "")
    note = "The job file as all parties saw it; data paths, columns and limits stay with their owners."
    return f'<h2>What was run</h2><p class="soft">{note}</p><div class="settings">{"".join(tables)}</div>'


def _ledger(facts: Facts, told: Told) -> str:
    ledger = facts["ledger"]
    cosigned = (
        ", ".join(ledger["cosigned"]) or "nobody yet: until a party has, only the coordinator vouches for this head"
    )
    if (size := ledger.get("cosigned_size", ledger["size"])) < ledger["size"]:
        cosigned += f" (its first {size} entries)"
    values = {
        "ledger": ledger["path"],
        "entries": str(ledger["size"]),
        "root": ledger["root"],
        "log": ledger["log"],
        "co-signed by": cosigned,
        **told.proofs,
    }
    code = {"ledger", "root", "log", *told.proofs}
    rows = "".join(row(k, v, code=k in code) for k, v in values.items())
    return (
        f'<h2>Proof</h2><p class="soft">The figures of the {text(told.heading.lower())} stand on the signed ledger. '
        "This page proves nothing; the ledger does:</p>"
        f"<pre>fedseal audit verify --ledger {text(shlex.quote(ledger['path']))}</pre>"
        f'<table class="facts">{rows}</table>'
        f"<p>Checkpoint, to be kept and compared:</p><pre>{text(ledger['checkpoint'])}</pre>"
    )


def _records(facts: Facts, told: Told) -> str:
    present = {name for r in facts["rounds"] for name in r["metrics"]}
    columns = {k: v for k, v in COLUMNS.items() if k in present} | {k: k for k in sorted(present - set(COLUMNS))}
    head = "".join(f"<th>{text(v)}</th>" for v in (told.step, *columns.values(), "missing"))
    rows = ""
    for r in facts["rounds"]:
        cells = [told.label(r["round"]), *(r["metrics"].get(k, "") for k in columns), ", ".join(r["missing"])]
        rows += "<tr>" + "".join(f"<td>{text(c)}</td>" for c in cells) + "</tr>"
    if not rows:
        return ""
    title = text(told.heading)
    return f'<h2>{title}</h2><div class="wide"><table class="rounds"><tr>{head}</tr>{rows}</table></div>'
