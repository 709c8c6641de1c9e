"""The audit report of a private set intersection: who compared ids, and who learned what."""

from __future__ import annotations

from server.report.parts import Facts, Told, last, names, took_part

_RESULTS = {
    "receivers": "which of their ids the others have as well",
    "cardinality": "how many ids are common, and no id",
    "union": "where their rows stand in the union, and how many rows it has",
}


def tell(facts: Facts) -> Told:
    """What the report says of such a job."""
    size = last(facts, "intersection_size")
    sentence = f"{len(names(facts))} parties compared their ids" + (f"; {size} are common to all" if size else "")
    tiles = {"ids in common": size, "bytes of messages": last(facts, "bytes")}
    return Told(sentence, tiles, "", took_part(facts), _privacy(facts))


def _privacy(facts: Facts) -> list[tuple[str, object]]:
    psi = facts["job"].get("psi", {})
    parties, output = names(facts), psi.get("output", "receivers")
    compares = len(parties) > 2 or output == "union"
    numbers = "; it compared without keys: how many ids lie in each intersection and difference" if compares else ""
    return [
        ("learned by", ", ".join(psi.get("receivers") or parties)),
        ("they learned", _RESULTS[output]),
        ("every party learned", "the sizes of the sets" + (" as padded" if psi.get("pad_to") else "")),
        ("the coordinator saw", f"sizes and times of sealed messages, and what is on this page{numbers}"),
    ]
