"""The audit report of a run: one HTML file that needs nothing else, for the manager and for the auditor.

It repeats what the ledger holds, in the ledger's own decimal texts, and says how to check it; it proves nothing itself.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fl_core.files import write_atomic
from server.report_chart import Series, chart
from server.report_style import CSS

_VERDICTS = {
    "done": ("Finished", "good"),
    "stopped": ("Stopped before its end", "warn"),
    "refused": ("Refused by a party", "warn"),
    "failed": ("Failed", "bad"),
}
_COLUMNS = {
    "accuracy": "accuracy",
    "loss": "loss",
    "train_loss": "training loss",
    "epsilon": "ε spent",
    "bytes_up": "bytes up",
    "bytes_down": "bytes down",
    "seconds": "seconds",
    "parties": "parties",
    "bytes": "bytes of messages",
    "intersection_size": "ids in common",
}
_CHARTS: tuple[tuple[str, tuple[str, ...], dict[str, bool]], ...] = (
    ("Accuracy, all parties' test rows", ("accuracy",), {}),
    ("Loss", ("loss", "train_loss"), {}),
    ("Privacy spent, ε (largest of the parties)", ("epsilon",), {"from_zero": True}),
    ("Bytes per party and round", ("bytes_up", "bytes_down"), {"from_zero": True}),
    ("Seconds per round", ("seconds",), {"from_zero": True}),
    ("Parties that took part", ("parties",), {"whole": True}),
)


def write_report(path: Path, *, facts: Mapping[str, Any]) -> None:
    """Write the report.

    Parameters
    ----------
    path : of the HTML file.
    facts : `run, name, status, job` (the public view), `metrics, rounds` (bodies of the ledger's round entries),
        `unsafe` (texts), `ledger` (`path, size, root, log, checkpoint, cosigned`), `model` (digest), `seconds`.

    Raises
    ------
    JobFailed
        If the file cannot be written.
    """
    sections = (_head, _unsafe, _course, _parties, _privacy, _ledger, _settings, _rounds)
    body = "\n".join(section(facts) for section in sections)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(facts['name'])}: audit report</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
    write_atomic(path, page.encode(), mode=0o644)


# ---- sections, in the order of the page


def _head(facts: Mapping[str, Any]) -> str:
    word, tone = _VERDICTS.get(facts["status"], (str(facts["status"]), "warn"))
    sentence, tiles = (_trained if _trains(facts) else _compared)(facts)
    tiles |= {"parties": str(len(_names(facts))), "seconds in all": f"{facts['seconds']:.1f}"}
    shown = "".join(f'<div class="tile"><b>{_text(v)}</b><span>{_text(k)}</span></div>' for k, v in tiles.items() if v)
    return (
        f'<p class="eyebrow">fedseal audit report, run {_text(facts["run"])}</p><h1>{_text(facts["name"])}</h1>'
        f'<p class="verdict"><b class="{tone}">{_text(word)}.</b> {_text(sentence)}.</p>'
        f'<div class="tiles">{shown}</div>'
    )


def _trains(facts: Mapping[str, Any]) -> bool:
    return bool(facts["job"].get("kind", "horizontal") == "horizontal")


def _trained(facts: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    trained = [r for r in facts["rounds"] if r["round"] > 0]
    sentence = f"{len(trained)} rounds of training among {len(_names(facts))} parties"
    accuracy = _last(facts, "accuracy")
    if accuracy and math.isfinite(float(accuracy)):
        sentence += f"; the model is right on {float(accuracy):.1%} of the rows that the parties held out"
    return sentence, {
        "accuracy": accuracy,
        "loss": _last(facts, "loss"),
        "ε spent": _last(facts, "epsilon"),
        "rounds": str(len(trained)),
    }


def _compared(facts: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    size = _last(facts, "intersection_size")
    sentence = f"{len(_names(facts))} parties compared their ids" + (f"; {size} are common to all" if size else "")
    return sentence, {"ids in common": size, "bytes of messages": _last(facts, "bytes")}


def _unsafe(facts: Mapping[str, Any]) -> str:
    if not facts["unsafe"]:
        return '<p><b class="good">No protective setting was switched off.</b></p>'
    items = "".join(f"<li>{_text(said)}</li>" for said in facts["unsafe"])
    return f'<div class="unsafe"><h2>Protection that this run gave up</h2><ul>{items}</ul></div>'


def _settings(facts: Mapping[str, Any]) -> str:
    job = facts["job"]
    plain = {k: v for k, v in job.items() if not isinstance(v, Mapping) and k != "party"}
    groups = {"job": plain} | {k: v for k, v in job.items() if isinstance(v, Mapping)}
    tables = []
    for name, group in groups.items():
        rows = "".join(_row(k, _words(v)) for k, v in group.items() if _words(v))
        tables.append(f"<table><caption>{_text(name)}</caption>{rows}</table>" if rows else "")
    note = "The job file as all parties saw it; data paths, columns and limits stay with their owners."
    return f'<h2>What was run</h2><p class="soft">{note}</p><div class="settings">{"".join(tables)}</div>'


def _parties(facts: Mapping[str, Any]) -> str:
    rows = ""
    for name in _names(facts):
        there = [r["round"] for r in facts["rounds"] if name in r["parties"] and r["round"] > 0]
        missed = [r["round"] for r in facts["rounds"] if name in r["missing"] and r["round"] > 0]
        rows += f"<tr><td>{_text(name)}</td><td>{_spans(there)}</td><td>{_spans(missed)}</td></tr>"
    receivers = facts["job"].get("train", {}).get("receivers") or []
    also = f"<p>Receive the model without giving data: {_text(', '.join(receivers))}.</p>" if receivers else ""
    head = "<tr><th>party</th><th>took part in rounds</th><th>missing in rounds</th></tr>"
    return f"<h2>Who took part</h2><table>{head}{rows}</table>{also}"


def _course(facts: Mapping[str, Any]) -> str:
    if not _trains(facts):
        return ""
    figures = [chart(title, [_series(facts, k) for k in keys], **how) for title, keys, how in _CHARTS]
    note = (
        "Pooled over all parties; round 0 is the model before training." if any(figures) else "No round was completed."
    )
    return f'<h2>How it went</h2><p class="soft">{note}</p><div class="charts">{"".join(figures)}</div>'


_COVERS = {
    "dp-sgd": "each row that a party trained on: with or without it, updates and models look alike up to (ε, δ)",
    "client-dp": "a party's whole update: with or without that party, the models look alike up to (ε, δ)",
    "none": "nothing: no differential privacy was used, and a model may remember rows it was trained on",
    "seeded": "nothing: the noise was seeded, so whoever knows the job can subtract it",
}


_RESULTS = {
    "receivers": "which of their ids the others have as well",
    "cardinality": "how many ids are common, and no id",
    "union": "where their rows stand in the union, and how many rows it has",
}


def _privacy_of_psi(facts: Mapping[str, Any]) -> str:
    psi = facts["job"].get("psi", {})
    parties, output = _names(facts), psi.get("output", "receivers")
    compares = len(parties) > 2 or output == "union"
    numbers = "; it compared without keys: how many ids lie in each intersection and difference" if compares else ""
    rows = _row("learned by", ", ".join(psi.get("receivers") or parties)) + _row("they learned", _RESULTS[output])
    rows += _row("every party learned", "the sizes of the sets" + (" as padded" if psi.get("pad_to") else ""))
    rows += _row("the coordinator saw", f"sizes and times of sealed messages, and what is on this page{numbers}")
    return f'<h2>Privacy</h2><table class="facts">{rows}</table>'


def _privacy(facts: Mapping[str, Any]) -> str:
    if not _trains(facts):
        return _privacy_of_psi(facts)
    privacy, encryption = facts["job"].get("privacy", {}), facts["job"].get("encryption", {})
    mechanism, noise = privacy.get("mechanism", "none"), privacy.get("noise", "os")
    rows = _row("mechanism", mechanism)
    if mechanism != "none":
        rows += _row("ε spent, at most", f"{_last(facts, 'epsilon') or 'not known'} (the largest of the parties)")
        rows += _row("δ", privacy.get("target_delta", ""))
        rows += _row("noise from", "the operating systems of the parties" if noise == "os" else noise)
    seeded = mechanism != "none" and noise == "seeded"
    rows += _row("covers", _COVERS.get("seeded" if seeded else mechanism, "see the job file"))
    rows += _row("does not cover", "test rows: accuracy and loss are exact sums over them, pooled over all parties")
    scheme = encryption.get("scheme", "none")
    hidden = "each party's update, as a ciphertext that it cannot decrypt, and the pooled figures above"
    sees = "each party's update in the clear: encryption was off" if scheme == "none" else hidden
    rows += _row("the coordinator saw", sees) + _row("encryption", f"{scheme} {encryption.get('profile', '')}")
    return f'<h2>Privacy</h2><table class="facts">{rows}</table>'


def _ledger(facts: Mapping[str, Any]) -> str:
    ledger = facts["ledger"]
    cosigned = (
        ", ".join(ledger["cosigned"]) or "nobody yet: until a party has, only the coordinator vouches for this head"
    )
    values = {
        "ledger": ledger["path"],
        "entries": str(ledger["size"]),
        "root": ledger["root"],
        "log": ledger["log"],
        "co-signed by": cosigned,
        **({"model, SHA-256": facts["model"] or "none"} if _trains(facts) else {}),
    }
    rows = "".join(_row(k, v, code=k in ("ledger", "root", "log", "model, SHA-256")) for k, v in values.items())
    return (
        '<h2>Proof</h2><p class="soft">The figures of the rounds stand on the signed ledger. '
        "This page proves nothing; the ledger does:</p>"
        f"<pre>fedseal audit verify --ledger {_text(shlex.quote(ledger['path']))}</pre>"
        f'<table class="facts">{rows}</table>'
        f"<p>Checkpoint, to be kept and compared:</p><pre>{_text(ledger['checkpoint'])}</pre>"
    )


def _rounds(facts: Mapping[str, Any]) -> str:
    present = {name for r in facts["rounds"] for name in r["metrics"]}
    columns = {k: v for k, v in _COLUMNS.items() if k in present} | {k: k for k in sorted(present - set(_COLUMNS))}
    head = "".join(f"<th>{_text(v)}</th>" for v in ("round", *columns.values(), "missing"))
    rows = ""
    for r in facts["rounds"]:
        cells = [str(r["round"]), *(r["metrics"].get(k, "") for k in columns), ", ".join(r["missing"])]
        rows += "<tr>" + "".join(f"<td>{_text(c)}</td>" for c in cells) + "</tr>"
    if not rows:
        return ""
    return f'<h2>Rounds</h2><div class="wide"><table class="rounds"><tr>{head}</tr>{rows}</table></div>'


# ---- pieces


def _text(value: object) -> str:
    return escape(str(value))


def _row(name: str, value: object, *, code: bool = False) -> str:
    shown = f"<code>{_text(value)}</code>" if code else _text(value)
    return f"<tr><td>{_text(name)}</td><td>{shown}</td></tr>"


def _words(value: object) -> str:
    """A setting in words; empty when it is not set."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _names(facts: Mapping[str, Any]) -> list[str]:
    """The parties: of the job file, and whoever a round names."""
    listed = [str(p["name"]) for p in facts["job"].get("party", [])]
    seen = (str(n) for r in facts["rounds"] for n in [*r["parties"], *r["missing"]])
    return list(dict.fromkeys([*listed, *sorted(set(seen))]))


def _last(facts: Mapping[str, Any], metric: str) -> str:
    """The latest recorded text of a metric; empty when there is none."""
    return next((str(r["metrics"][metric]) for r in reversed(facts["rounds"]) if metric in r["metrics"]), "")


def _series(facts: Mapping[str, Any], metric: str) -> Series:
    texts = ((r["round"], str(r["metrics"][metric])) for r in facts["rounds"] if metric in r["metrics"])
    return Series(_COLUMNS[metric], tuple((number, float(text), text) for number, text in texts))


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
