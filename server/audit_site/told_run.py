"""What the page of one run shows: its course, who took part and with whose consent, its figures beside MLflow's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.audit_site.asked import Asked, Wrong
from server.audit_site.beside import Beside, Shown
from server.audit_site.checking import Checked
from server.audit_site.look import Look
from server.audit_site.runs import Run, RunIndex
from server.audit_site.told import listed, when

ROUNDS = 100
MOST_PARTIES = 1024
MOST_NAMED = 100
_REASONS = ("party", "step", "code", "status", "topics")
ROUND_COLUMNS = ("accuracy", "loss", "epsilon")  # first, where there are any


def run_page(asked: Asked, index: RunIndex, look: Look, beside: Beside, checked: Checked) -> dict[str, Any]:
    """Everything that the template takes."""
    wanted = asked.run("id")
    run = index.read(look).get(wanted)
    if run is None:
        raise Wrong(404, f"run {wanted[:40]!r}; the ledger has no entry of it" if wanted else "no run is named: id=RUN")
    shown = beside.look(run.run, run.last) if run.digest else Shown(problem="the ledger has no job of this run")
    kinds = look.count(run.run, "kind")
    report = checked.report.runs.get(run.run) if checked.report else None
    return {
        "run": run,
        "began": when(run.began),
        "kinds": kinds,
        "parties": _parties(run, look),
        "refusals": [row_facts for kind in ("refusal", "drop", "failure") for row_facts in _said(run, look, kind)],
        **_rounds(asked, run, look, shown, kinds.get("round", 0)),
        "mlflow": shown,
        "differences": [d.words for d in shown.reconciled.differences][:MOST_NAMED] if shown.reconciled else [],
        "differing": len(shown.reconciled.differences) if shown.reconciled else 0,
        "verdict": report,
        "verdict_current": checked.current,
        **listed(asked, look, "/run", {"run": run.run}, id=run.run),
    }


def _body(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    body = fields.get("body")
    return body if isinstance(body, Mapping) else {}


def _parties(run: Run, look: Look) -> list[dict[str, Any]]:
    """Each signer with its role, the consent that it named, and the ε that it said last."""
    empty = {"entries": 0, "role": "", "grant": "", "consent": "", "epsilon": ""}
    told: dict[str, dict[str, Any]] = {name: {"name": name, **empty} for name in run.parties[:MOST_PARTIES]}
    for name in list(told)[:MOST_NAMED]:
        for row in look.entries({"run": run.run, "kind": "update", "by": name}, before=run.last + 1, limit=1):
            told[name]["epsilon"] = str(_body(row.fields()).get("epsilon", ""))[:40]
    for name, entries in look.count(run.run, "by").items():
        if name in told:
            told[name]["entries"] = entries
    for row in look.entries({"run": run.run, "kind": "join"}, limit=MOST_PARTIES):
        body = _body(row.fields())
        if row.by in told:
            told[row.by]["role"] = str(body.get("role", ""))[:40]
            told[row.by]["grant"] = str(body.get("grant", ""))[:64]
            told[row.by]["consent"] = _consent(body)
    return list(told.values())


def _consent(body: Mapping[str, Any]) -> str:
    if not body.get("grant"):
        return ""
    if body.get("self_issued"):
        return "made by the job itself"
    return "standing: for whoever comes" if body.get("standing") else "granted to the submitter"


def _said(run: Run, look: Look, kind: str) -> list[dict[str, Any]]:
    found = []
    for row in look.entries({"run": run.run, "kind": kind}, limit=MOST_NAMED):
        fields = row.fields()
        body = _body(fields)
        words = ", ".join(f"{name} {str(body[name])[:60]}" for name in _REASONS if name in body)
        found.append({"seq": row.seq, "kind": kind, "by": row.by, "when": when(fields.get("t")), "words": words})
    return found


# ---- figures


def _rounds(asked: Asked, run: Run, look: Look, shown: Shown, count: int) -> dict[str, Any]:
    """The records of the rounds, a page of them, each figure beside MLflow's."""
    start = asked.number("round", 0)
    rows = look.entries({"run": run.run, "kind": "round"}, start=start, limit=ROUNDS + 1)
    records = [(row.seq, _body(row.fields())) for row in rows[:ROUNDS]]
    names = list(dict.fromkeys(str(name) for _, body in records for name in _metrics(body)))
    names.sort(key=lambda name: ROUND_COLUMNS.index(name) if name in ROUND_COLUMNS else len(ROUND_COLUMNS))
    names = names[:40]
    return {
        "columns": names,
        "rounds": [_record(seq, body, names, shown) for seq, body in records],
        "rounds_all": count,
        "next_round": rows[ROUNDS].seq if len(rows) > ROUNDS else 0,
        "first_round": start,
    }


def _metrics(body: Mapping[str, Any]) -> Mapping[str, Any]:
    held = body.get("metrics")
    return held if isinstance(held, Mapping) else {}


def _record(seq: int, body: Mapping[str, Any], names: list[str], shown: Shown) -> dict[str, Any]:
    number, metrics = body.get("round"), _metrics(body)
    missing = body.get("missing")
    return {
        "seq": seq,
        "round": str(number)[:20],
        "cells": [_cell(metrics.get(name), name, number, shown) for name in names],
        "missing": ", ".join(map(str, missing))[:200] if isinstance(missing, list) else "",
    }


def _cell(text: Any, name: str, number: Any, shown: Shown) -> dict[str, Any]:
    """A figure of the ledger, MLflow's of the same name and step, and whether they differ."""
    there = shown.reconciled is not None and bool(shown.reconciled.mlflow_run_id)
    values = shown.metrics.get((name, number), []) if type(number) is int else []
    told = "" if text is None else str(text)[:40]
    due = [] if text is None else [_number(told)]
    shows = ", ".join(values)[:80] or "nothing"
    return {"ledger": told, "mlflow": shows, "there": there, "differs": there and values != due}


def _number(text: str) -> str | None:
    try:
        return repr(float(text))
    except ValueError:
        return None
