"""The audit report of a joint prediction: whose rows were scored by which model, and who learned what."""

from __future__ import annotations

from server.report.parts import Facts, Told, count, last, names, took_part

_SCORED = {
    "logistic": "the sum of the parties' scores of a row, under shares; of two parties it can subtract its own",
    "gbdt": "a row's score, by shares of a product, leaf weights rounded; likely paths of a row show in it",
    "gbdt-ckks": "a row's score, summed under its own key, leaf weights rounded; likely paths of a row show in it",
    "split-nn": "the embedding of each row, under the noise of the training if it had any",
}


def tell(facts: Facts) -> Told:
    """What the report says of such a job."""
    rows, predict = last(facts, "rows_aligned"), facts["job"].get("predict", {})
    whom = ", ".join(predict.get("receivers") or [])
    known = f" of {count(rows)} rows" if rows else ""
    sentence = f"{len(names(facts))} parties scored rows together; the scores{known} went to {whom}"
    tiles = {
        "rows in common": count(rows),
        "rows a second": count(last(facts, "rows_per_second")),
        "bytes of messages": count(last(facts, "bytes")),
    }
    proofs = {"run that trained the model": str(predict.get("model", "")), **_training(facts)}
    return Told(sentence, tiles, "", took_part(facts), _privacy(facts), proofs)


def _training(facts: Facts) -> dict[str, str]:
    """The digest that all parties' parts share."""
    told = {str(said["training"]) for said in facts.get("said", {}).values() if "training" in said}
    return {"model, as all parties state it": ", ".join(sorted(told))} if told else {}


def _privacy(facts: Facts) -> list[tuple[str, object]]:
    predict, parties = facts["job"].get("predict", {}), names(facts)
    algorithm = str(predict.get("algorithm", ""))
    if algorithm == "gbdt" and predict.get("protocol") == "ckks":
        algorithm = "gbdt-ckks"
    compares = "; it compared ids without keys" if len(parties) > 2 else ""
    deals = "; it dealt randomness and must not collude with a party" if algorithm == "gbdt" else ""
    return [
        ("learned by", ", ".join(predict.get("receivers") or [])),
        ("they learned", _SCORED.get(algorithm, "scores")),
        ("every party learned", "which of its rows the others have, and the sizes of the sets"),
        ("the coordinator saw", f"sizes, times and what is on this page{compares}{deals}"),
    ]
