"""The audit report of a vertical job: its figures, its curves, who learned what, and what noise at the cut covers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fl_core.protocols.vertical.plan import Plan
from server.report.chart import Chart, Guide, Series, figure
from server.report.learned import algorithm_of, learned, plan_shown
from server.report.parts import COLUMNS, Facts, Told, charts, count, names, series, text

_NOUNS = {"logistic": "a logistic regression", "gbdt": "boosted trees", "split-nn": "a split network"}
_FIGURES = {"auc": "AUC", "accuracy": "accuracy", "rmse": "RMSE"}
_MAX_POINTS = 1001  # of a ROC curve
ROC_HEIGHT = 460


def tell(facts: Facts) -> Told:
    """What the report says of such a job."""
    plan = plan_shown(facts["job"])
    return Told(
        sentence=_sentence(facts, plan),
        tiles=_tiles(facts, plan),
        course=_course(facts, plan),
        parties=_parties(facts, plan),
        privacy=_privacy(facts, plan),
        heading=f"{plan.unit.capitalize()}s",
        step=plan.unit,
        label=partial(_label, plan),
    )


def steps_of(facts: Facts, plan: Plan) -> list[Mapping[str, Any]]:
    """The records of epochs or trees, without the alignment before and the result after them."""
    return [r for r in facts["rounds"] if 0 < r["round"] <= plan.steps]


def result_of(facts: Facts, plan: Plan) -> Mapping[str, str]:
    """The figures of the last record; empty where training did not end."""
    return next((r["metrics"] for r in facts["rounds"] if r["round"] == plan.steps + 1), {})


def rows_of(facts: Facts) -> str:
    """How many rows were aligned, as a text; empty where it was not told."""
    told = next((r["metrics"]["rows_aligned"] for r in facts["rounds"] if "rows_aligned" in r["metrics"]), "")
    return count(str(told)) if told else ""


def quality(facts: Facts, plan: Plan) -> tuple[str, str]:
    """The figure that counts most and its value to 3 digits, such as AUC and 0.776; empty without one."""
    result = result_of(facts, plan)
    for name, shown in _FIGURES.items():
        if name in result and math.isfinite(value := float(result[name])):
            return shown, f"{value:.3g}" if name == "rmse" else f"{value:.3f}"
    return "", ""


# ---- the head


def _sentence(facts: Facts, plan: Plan) -> str:
    rows, (name, value) = rows_of(facts), quality(facts, plan)
    said = f"{len(names(facts))} parties trained {_NOUNS.get(plan.vertical.algorithm, 'a model')}"
    if rows:
        said += f" on the {rows} rows of their union" if plan.union else f" on {rows} common rows"
    tested = result_of(facts, plan).get("test_rows")
    on = f"{count(tested)} held-out rows that both have" if tested else "the held-out rows"
    return f"{said}; {name} {value} on {on}" if name else said


def _tiles(facts: Facts, plan: Plan) -> dict[str, str]:
    result, unit = result_of(facts, plan), plan.unit
    done = len(steps_of(facts, plan))
    seconds = result.get(f"seconds_per_{unit}", "")
    return {
        "AUC": result.get("auc", ""),
        "KS": result.get("ks", ""),
        "accuracy": result.get("accuracy", ""),
        "RMSE": result.get("rmse", ""),
        "R²": result.get("r2", ""),
        "loss, held-out rows": result.get("loss", ""),
        "rows in the union" if plan.union else "rows in common": rows_of(facts),
        f"{unit}s": str(done) if done == plan.steps else f"{done} of {plan.steps}",
        COLUMNS[f"seconds_per_{unit}"]: f"{float(seconds):.3g}" if seconds else "",
    }


# ---- curves


def _course(facts: Facts, plan: Plan) -> str:
    steps = steps_of(facts, plan)
    shown = [*learning_charts(facts, plan), *([curve] if (curve := roc_chart(facts, plan)) else [])]
    more = partial(Chart, across=plan.unit, from_zero=True)
    shown += [
        more(f"Seconds per {plan.unit}", [series(steps, "seconds")]),
        more(f"Bytes of messages per {plan.unit}, all parties", [series(steps, "bytes")]),
    ]
    figures = [figure(one) for one in shown]
    note = f"By {plan.unit}, as training went. The figures at the head are those of the model that was kept."
    return charts(note if any(figures) else f"No {plan.unit} was completed.", figures)


def learning_charts(facts: Facts, plan: Plan) -> list[Chart]:
    """Loss by step, and the figure that counts on held-out rows where it is known by step."""
    steps, unit = steps_of(facts, plan), plan.unit
    linear = plan.vertical.algorithm == "logistic" and (plan.vertical.strict or plan.union)
    loss = "Mean squared error" if linear else "Loss"
    names = {"loss": "training rows", "valid_loss": "validation rows", "test_loss": "held-out rows"}
    lines = [series(steps, name, rows) for name, rows in names.items()]
    title = loss if any(line.points for line in lines[1:]) else f"{loss}, training rows"
    shown = [Chart(title, lines, across=unit)]
    for name, words in _FIGURES.items():
        shown.append(Chart(f"{words[0].upper()}{words[1:]}, held-out rows", [series(steps, name)], across=unit))
    return [chart for chart in shown if chart.shown]


def roc_chart(facts: Facts, plan: Plan, *, height: int = 0) -> Chart | None:
    """The ROC curve that the active party signed, with chance and KS; None without one."""
    curve = roc_of(facts, plan)
    if not curve:
        return None
    result = result_of(facts, plan)
    x, y = max(curve, key=lambda point: abs(point[1] - point[0]))
    ks = f"KS {result['ks']}" if "ks" in result else "KS"
    auc = f", AUC {result['auc']}" if "auc" in result else ""
    points = tuple((a, b, f"{b:g}") for a, b in curve)
    beside = min(x, 0.75)  # the words stay within the drawing
    guides = [
        Guide(((0.0, 0.0), (1.0, 1.0)), "chance", at=(0.8, 0.8) if x < 0.6 else (0.2, 0.2)),
        Guide(((x, x), (x, y)), ks, at=(beside, beside)),
    ]
    return Chart(
        f"ROC of the held-out rows{auc}",
        [Series("true positive rate", points)],
        guides,
        across="false positive rate",
        rates=True,
        height=height or ROC_HEIGHT,
    )


def roc_of(facts: Facts, plan: Plan) -> list[tuple[float, float]]:
    """(false, true) positive rates as the active party stated them; empty unless all are rates in order."""
    told = facts.get("said", {}).get(plan.active, {}).get("roc")
    if not isinstance(told, Sequence) or not 2 <= len(told) <= _MAX_POINTS:
        return []
    try:
        points = [(float(a), float(b)) for a, b in (str(said).split() for said in told)]
    except ValueError:
        return []
    rates = all(0.0 <= value <= 1.0 for point in points for value in point)
    return points if rates and points == sorted(points) else []


def _label(plan: Plan, number: int) -> str:
    if number == 0:
        return "alignment"
    return "result" if number == plan.steps + 1 else str(number)


# ---- parties and privacy


def _parties(facts: Facts, plan: Plan) -> str:
    rows = ""
    for name in names(facts):
        part = "active: has the labels" if name == plan.active else "passive"
        held = facts.get("said", {}).get(name, {}).get("model", "")
        rows += f"<tr><td>{text(name)}</td><td>{part}</td><td><code>{text(held)}</code></td></tr>"
    head = "<tr><th>party</th><th>role</th><th>commitment to its part of the model</th></tr>"
    note = (
        "Each party holds its own part; only all parts together predict. A commitment is an HMAC-SHA-256 under a key "
        "of the party, who can open it to an auditor."
    )
    return f'<h2>Who took part</h2><table>{head}{rows}</table><p class="soft">{note}</p>'


def _privacy(facts: Facts, plan: Plan) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("method", algorithm_of(plan)), *learned(plan)]
    privacy = facts["job"].get("privacy", {})
    if privacy.get("mechanism", "none") == "none":
        covers = "nothing: no differential privacy was used, and a model may remember rows it was trained on"
        rows += [("differential privacy", "none"), ("covers", covers)]
    else:
        rows += _cut_layer(privacy)
    exact = "the figures" + (" and the ROC curve" if roc_of(facts, plan) else "")
    return [*rows, ("not noised", f"{exact}, which are exact over the held-out rows")]


def _cut_layer(privacy: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [
        ("differential privacy", "cut-layer: what a passive party's network sends of a row is clipped and noised"),
        ("ε, at most", privacy.get("target_epsilon", "")),
        ("δ", privacy.get("target_delta", "")),
        ("noise from", "the operating systems of the passive parties"),
        (
            "covers",
            "a passive party's row that its network was not trained on (held-out rows): with or without it, all that "
            "the active party gets of it looks alike up to (ε, δ)",
        ),
        (
            "does not cover",
            "what a training row did to the weights, and through them to numbers sent later: for training rows ε "
            "bounds their own numbers only, given the weights; labels; several rows of one person count together",
        ),
    ]
