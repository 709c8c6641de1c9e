"""The audit report of a horizontal job: rounds of training, and differential privacy."""

from __future__ import annotations

import math

from server.report.chart import chart
from server.report.parts import Facts, Told, charts, last, names, series, took_part

_CHARTS = (
    ("Accuracy, all parties' test rows", ("accuracy",), ""),
    ("Loss", ("loss", "train_loss"), ""),
    ("Privacy spent, ε (largest of the parties)", ("epsilon",), "from zero"),
    ("Bytes per party and round", ("bytes_up", "bytes_down"), "from zero"),
    ("Seconds per round", ("seconds",), "from zero"),
    ("Parties that took part", ("parties",), "whole"),
)

_COVERS = {
    "dp-sgd": "each row that a party trained on: with or without it, updates and models look alike up to (ε, δ)",
    "client-dp": "a party's whole update: with or without that party, the models look alike up to (ε, δ)",
    "none": "nothing: no differential privacy was used, and a model may remember rows it was trained on",
    "seeded": "nothing: the noise was seeded, so whoever knows the job can subtract it",
}


def tell(facts: Facts) -> Told:
    """What the report says of such a job."""
    trained = [r for r in facts["rounds"] if r["round"] > 0]
    sentence = f"{len(trained)} rounds of training among {len(names(facts))} parties"
    accuracy = last(facts, "accuracy")
    if accuracy and math.isfinite(float(accuracy)):
        sentence += f"; the model is right on {float(accuracy):.1%} of the rows that the parties held out"
    tiles = {
        "accuracy": accuracy,
        "loss": last(facts, "loss"),
        "ε spent": last(facts, "epsilon"),
        "rounds": str(len(trained)),
    }
    proofs = {"model, SHA-256": facts["model"] or "none"}
    return Told(sentence, tiles, _course(facts), took_part(facts), _privacy(facts), proofs)


def _course(facts: Facts) -> str:
    figures = [
        chart(title, [series(facts["rounds"], k) for k in keys], from_zero=how == "from zero", whole=how == "whole")
        for title, keys, how in _CHARTS
    ]
    some = any(figures)
    note = "Pooled over all parties; round 0 is the model before training." if some else "No round was completed."
    return charts(note, figures)


def _privacy(facts: Facts) -> list[tuple[str, object]]:
    privacy, encryption = facts["job"].get("privacy", {}), facts["job"].get("encryption", {})
    mechanism, noise = privacy.get("mechanism", "none"), privacy.get("noise", "os")
    rows: list[tuple[str, object]] = [("mechanism", mechanism)]
    if mechanism != "none":
        rows.append(("ε spent, at most", f"{last(facts, 'epsilon') or 'not known'} (the largest of the parties)"))
        rows.append(("δ", privacy.get("target_delta", "")))
        rows.append(("noise from", "the operating systems of the parties" if noise == "os" else noise))
    seeded = mechanism != "none" and noise == "seeded"
    rows.append(("covers", _COVERS.get("seeded" if seeded else mechanism, "see the job file")))
    rows.append(("does not cover", "test rows: accuracy and loss are exact sums over them, pooled over all parties"))
    scheme = encryption.get("scheme", "none")
    hidden = "each party's update, as a ciphertext that it cannot decrypt, and the pooled figures above"
    sees = "each party's update in the clear: encryption was off" if scheme == "none" else hidden
    return [*rows, ("the coordinator saw", sees), ("encryption", f"{scheme} {encryption.get('profile', '')}")]
