"""What an entry says, in one line for people; whatever its body holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST = 240
_SHOWN = ("round", "act", "party", "name", "step", "code", "status", "epsilon", "job", "role", "grant", "model", "sum")
_KINDS = {
    "log": "the log begins",
    "card": "shows its card",
    "profile": "says what it is beside its card",
    "rotate": "changes its key",
    "job": "a job is submitted",
    "resume": "the run goes on",
    "join": "joins the run",
    "roster": "who takes part",
    "key": "the group key is made",
    "update": "a part of a sum",
    "aggregate": "a sum",
    "round": "a round's record",
    "metrics": "own figures",
    "session": "a session between parties",
    "publish": "a model is given out",
    "close": "has what the run gave",
    "receipt": "received",
    "end": "the run ended",
    "failure": "the run failed",
    "refusal": "refuses",
    "drop": "a party is left out",
    "stop": "somebody stops the run",
    "node": "about a node",
    "person": "about a person",
    "served": "a prediction was served",
    "dataset": "about a dataset",
    "grant-request": "asks for a grant",
    "grant": "approves a grant",
    "grant-end": "ends or denies a grant",
    "use": "uses a grant",
    "revoke": "ends a card",
}


def kind_words(kind: str) -> str:
    """What a kind of entry is."""
    return _KINDS.get(kind, "")


def say(kind: str, body: Any) -> str:
    """One line about an entry, of at most `LONGEST` characters."""
    if not isinstance(body, Mapping):
        return "(no entry of this format)"
    if kind == "round" and isinstance(body.get("metrics"), Mapping):
        parts = [f"round {body.get('round')}:", *(f"{name}={value}" for name, value in body["metrics"].items())]
    elif kind == "dataset":
        card = body.get("card")
        name = card.get("name") if isinstance(card, Mapping) else body.get("name")
        parts = [f"{body.get('act')} {name}"]
    elif kind in ("grant", "grant-request"):
        parts = [_terms(body)]
    else:
        parts = [kind_words(kind)] if kind_words(kind) else []
        parts += [f"{name}={str(body[name])[:24]}" for name in _SHOWN if name in body]
        if isinstance(body.get("parties"), list):
            parts.append("parties=" + ",".join(map(str, body["parties"][:40])))
    return " ".join(parts)[:LONGEST]


def _terms(body: Mapping[str, Any]) -> str:
    held = body.get("grant")
    terms = held.get("terms") if isinstance(held, Mapping) else body.get("terms")
    if not isinstance(terms, Mapping):
        return ""
    grantee = terms.get("grantee")
    name = grantee.get("name") if isinstance(grantee, Mapping) else ""
    whose = "anybody" if name == "*" else name
    return f"{terms.get('owner')}/{terms.get('dataset')} for {whose}: {terms.get('purpose')}"
