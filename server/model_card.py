"""The model card of a vertical run: what was trained, by whom, how good it is, who holds which part.

It is for everybody who may browse runs: no column, no party's own count, no path; figures are those of the ledger.
"""

from __future__ import annotations

import re
from html import escape

from fl_core.protocols.vertical.plan import Plan
from fl_core.text import printable
from server.report.learned import algorithm_of, learned, plan_shown
from server.report.parts import COLUMNS, Facts, names
from server.report.vertical import result_of, rows_of, steps_of

_MARKED = re.compile(r"([\\`*_\[\]|#!~])")
_LEFT_OUT = ("bytes", "seconds", "rows_aligned")


def model_card(facts: Facts) -> str:
    """The card as Markdown; `facts` as for `server.report.page.write_report`."""
    plan = plan_shown(facts["job"])
    parts = (
        [f"# {_text(facts['name'])}", "", _summary(facts, plan), ""],
        ["## Figures", "", *_figures(facts, plan), ""],
        ["## Who holds what", "", *_parts(facts, plan), ""],
        ["## Who learned what in training", "", *(f"- {_text(who)}: {_text(what)}" for who, what in learned(plan)), ""],
        ["## Limits", "", *_limits(facts, plan), ""],
        ["## Use", "", *_use(), ""],
        ["## Record", "", *_record(facts)],
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def _summary(facts: Facts, plan: Plan) -> str:
    rows, done = rows_of(facts), len(steps_of(facts, plan))
    over = "the union of their rows" if plan.union else "the rows that they have in common"
    said = f"{len(names(facts))} parties trained {_text(algorithm_of(plan))}, over {over}"
    return f"{said}{f' ({rows})' if rows else ''}; {done} of {plan.steps} {plan.unit}s."


def _figures(facts: Facts, plan: Plan) -> list[str]:
    """Those of the kept model; which there are says what was learned."""
    result = result_of(facts, plan)
    learns = {"auc": "two classes", "accuracy": "several classes", "rmse": "numbers"}
    lines = [f"- learned: {words}" for name, words in learns.items() if name in result]
    lines += [f"- {COLUMNS[name]}: {_text(result[name])}" for name in COLUMNS if name in result.keys() - set(_LEFT_OUT)]
    return [*lines, "", "All but the seconds are of rows held out of the training."] if lines else ["none"]


def _parts(facts: Facts, plan: Plan) -> list[str]:
    about = {
        "logistic": ("the intercept and the weights of its own columns", "the weights of its own columns"),
        "gbdt": ("the trees' shapes, leaves and its own splits", "its own splits"),
        "split-nn": ("the top network, and a network for its own columns if it has some", "a network for its columns"),
    }
    active, passive = about.get(plan.vertical.algorithm, ("its own part", "its own part"))
    lines = [f"- **{_text(plan.active)}** (active, has the labels): {active}"]
    lines += [f"- **{_text(name)}** (passive): {passive}" for name in plan.passives]
    said = facts.get("said", {})
    held = [f"- commitment of {_text(name)}: `{_code(said[name]['model'])}`" for name in said if "model" in said[name]]
    return [*lines, "", "The coordinator and MLflow hold no part.", "", *held]


def _limits(facts: Facts, plan: Plan) -> list[str]:
    lines = [f"- ⚠ {_text(said)}" for said in facts["unsafe"]] or ["- No protective setting was switched off."]
    privacy = facts["job"].get("privacy", {})
    if privacy.get("mechanism", "none") == "none":
        return [*lines, "- No differential privacy: the model may remember rows it was trained on."]
    epsilon, delta = _text(privacy.get("target_epsilon", "")), _text(privacy.get("target_delta", ""))
    covered = "passive parties' rows outside the training; for training rows not what they did to the weights"
    return [*lines, f"- Differential privacy at the cut layer, ε at most {epsilon}, δ {delta}: covers {covered}."]


def _use() -> list[str]:
    return [
        "A prediction needs every part: each party keeps its own, the folder `model` among its outputs, whose",
        "`card.md` names its columns. The scores of the held-out rows went to the active party, unless rows were those",
        'of a union. New rows are scored by a job of `kind = "predict"`, which names this run.',
    ]


def _record(facts: Facts) -> list[str]:
    ledger = facts["ledger"]
    return [
        f"- run `{_code(facts['run'])}`, job digest `{_code(facts['digest'])}`",
        f"- ledger `{_code(ledger['log'])}`, {ledger['size']} entries, root `{_code(ledger['root'])}`",
        "- to verify: `fedseal audit verify`; the report lies under Artifacts, `audit/report.html`",
    ]


def _text(value: object) -> str:
    """As text of a line of Markdown."""
    return _MARKED.sub(r"\\\1", escape(printable(value), quote=False))


def _code(value: object) -> str:
    return escape(printable(value), quote=False).replace("`", "'")
