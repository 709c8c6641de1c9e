"""Who learned what in a vertical job, in words for people who read no code.

The facts are those at the heads of `fl_core.protocols.vertical` (each algorithm's, `alignment`, `scoring`,
`union_evaluation`) and `fl_core.protocols.psi`; a claim there and one here must not differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_core.job import Job, Party, Privacy, Psi, Vertical
from fl_core.protocols.vertical.plan import Plan

_SHOWN = ("algorithm", "protocol", "mode", "epochs", "bins", "encoding", "trees", "min_rows_open", "embedding")


def plan_shown(view: Mapping[str, Any]) -> Plan:
    """The plan of a job from its public view, as far as the report speaks of it."""
    told, psi, privacy = view.get("vertical", {}), view.get("psi", {}), view.get("privacy", {})
    chosen = {name: told[name] for name in (*_SHOWN, "gradient") if told.get(name) is not None}
    names = [str(party["name"]) for party in view.get("party", [])]
    active = str(told.get("active") or (names[0] if names else ""))
    job = Job(
        kind="vertical",
        parties=tuple(Party(name) for name in names),
        vertical=Vertical(**chosen),
        privacy=Privacy(mechanism=privacy.get("mechanism", "none")),
        psi=Psi(output=psi.get("output", "receivers"), pad_to=psi.get("pad_to")),
    )
    return Plan(job, (active, *(name for name in names if name != active)))


def algorithm_of(plan: Plan) -> str:
    """Its name for people, with how it is protected."""
    v = plan.vertical
    if v.algorithm == "gbdt":
        return "boosted trees, their sums under secret shares"
    if v.algorithm == "split-nn":
        return "a split network, its values not encrypted against the other parties"
    if v.protocol == "ckks":
        return "a logistic regression, errors under homomorphic encryption (CKKS)"
    hidden = "nobody sees a score in training" if _strict(plan) else "scores open to the active party"
    return f"a logistic regression under secret shares, {hidden}"


def learned(plan: Plan) -> list[tuple[str, str]]:
    """Who learned what, who must not act together, and what is taken for granted: rows of a table."""
    passives = ", ".join(plan.passives)
    each = f"{passives} (passive) learned" if len(plan.passives) == 1 else f"each of {passives} (passive) learned"
    rows = [
        ("every party learned", _everybody(plan)),
        (f"{plan.active} (active, has the labels) learned", _active(plan)),
        (each, _passive(plan)),
        ("the coordinator saw", _coordinator(plan)),
        ("must not act together", _collusion(plan)),
        ("taken for granted", _assumed(plan)),
    ]
    return [(name, said) for name, said in rows if said]


def _strict(plan: Plan) -> bool:
    return plan.vertical.strict or plan.union


def _everybody(plan: Plan) -> str:
    sizes = "how many rows each party has" + (" (as padded)" if plan.psi.pad_to else "")
    task = "what is learned (how many classes, or numbers) and which rows were held out"
    if plan.union:
        return (
            f"{sizes}; where its own rows stand in the union of all rows and how many rows that has, so also how many "
            f"are common, but not which; {task}"
        )
    return f"{sizes}; which of its own rows all the others have too; {task}"


# ---- the active party


def _active(plan: Plan) -> str:
    if plan.vertical.algorithm == "gbdt":
        return _active_of_union_trees() if plan.union else _active_of_trees(plan)
    if plan.vertical.algorithm == "split-nn":
        noised = "clipped and noised: see below; they are not encrypted against it"
        bare = "neither encrypted against it nor noised: they may carry much of the row"
        return (
            f"for every row, in every epoch and when it was scored, the {plan.vertical.embedding} numbers that each "
            f"passive party's network makes of its columns, {bare if plan.job.privacy.mechanism == 'none' else noised}"
        )
    if plan.vertical.protocol == "ckks":
        return (
            "for every row, in every epoch, what each passive party's columns add to its score; from about as many "
            "epochs as such a party has columns it can work out how alike any two of its rows are, that is those "
            "columns up to a rotation (a single column up to its sign)"
        )
    return _active_of_strict(plan) if _strict(plan) else _active_of_open(plan)


def _active_of_open(plan: Plan) -> str:
    binned = plan.vertical.bins is not None and plan.vertical.encoding == "one-hot"
    said = (
        "for every row and at every step what each passive party's columns add to its score; over a training that "
        "gives these columns up to an unknown mixing of them"
    )
    if binned:
        said += ", and shows which rows lie in the same bins"
    if plan.vertical.encoding == "woe":
        said += (
            "; for each of their columns, without names and in random order, how many rows and how many positive ones "
            f"lie in each bin of at least {plan.vertical.min_rows_open} training rows"
        )
    return said


def _active_of_strict(plan: Plan) -> str:
    said = "one number an epoch, the mean squared error of the training (and validation) rows; in the end its weights"
    if plan.union:
        return f"{said}, how many rows count, and the figures of this page; no row's score, and not whose rows count"
    return f"{said} and the score of each held-out row; no training row's score or error"


def _active_of_trees(plan: Plan) -> str:
    return (
        f"for groups of at least {plan.vertical.min_rows_open} training rows (nodes of a tree), how the errors add up "
        "over ranges of the passive parties' columns, which are without names and in random order (a range of few "
        "rows can show that these rows are alike in one of them); for each split at a passive party, which rows went "
        "to which side, held-out rows too"
    )


def _active_of_union_trees() -> str:
    return (
        "for each node of a tree its own split, or which rows of the union went to which side, and the gain to 3 "
        "digits; the leaves' weights to 3 decimals; three mean losses a tree; not whose rows count"
    )


# ---- passive parties


def _passive(plan: Plan) -> str:
    v = plan.vertical
    if v.algorithm == "gbdt":
        where = "rows of the union" if plan.union else "rows"
        return (
            f"which {where} lie in each node that was opened or that it split (so also how the others' splits divide "
            "them), and how often and with which gain its own splits were chosen; no label, no error, no leaf"
        )
    if v.algorithm == "split-nn":
        return _passive_of_network(v.gradient)
    best = "and which epoch was best"
    if v.protocol == "ckks":
        return (
            f"its own weights, in every batch how they should change, {best}; no label can be solved for as long as a "
            "batch has ten times as many rows as it has columns"
        )
    said = f"its own weights once training had ended, {best}; no label, no score, no error"
    if v.encoding == "woe":
        said += "; about how frequent the positive label is in each of its own bins"
    return said


def _passive_of_network(gradient: str) -> str:
    protected = "as it is: length and direction give labels away"
    if gradient != "none":
        protected = f"with noise ({gradient}) that hides labels within one batch, which is no guarantee over many"
    return (
        f"for each training row, in every epoch, the gradient that comes back, {protected}; in which epochs the "
        "validation loss fell. If it knows some labels it can learn to guess others from its own network"
    )


# ---- the coordinator, and what is relied upon


def _coordinator(plan: Plan) -> str:
    said = ["sizes and times of sealed messages, and what is on this page"]
    if plan.psi.comparer is not None:
        said.append("it compared without keys: how many ids lie in each intersection and difference of the tables")
    if plan.vertical.deals and plan.vertical.algorithm == "gbdt":
        sums = "" if plan.union else "; no value"
        said.append(f"it dealt the random numbers and saw which rows, by position, lie in each node{sums}")
        if plan.union:
            said.append(
                "it opened for each node sums of errors and counts of common rows over ranges of columns without names"
            )
    elif plan.vertical.deals:
        said.append("it dealt the random numbers and saw how many rows and columns there are; no value")
    else:
        said.append("it took no part in the training and holds no key of it")
    if plan.union:
        said.append(
            "for the held-out rows, in an order that it does not know: scores under a secret increasing map, labels "
            "and which of them are common; that is the ROC curve"
        )
    return "; ".join(said)


def _collusion(plan: Plan) -> str:
    said = []
    if plan.union:
        said.append("see which rows are common")
    elif plan.psi.comparer is not None:
        said.append("see which of its ids each other party has")
    if plan.vertical.deals:
        said.append("read the other parties' columns, or the labels")
    both = f"the coordinator and a party: they could {', and '.join(said)}" if said else ""
    if not plan.vertical.deals and len(plan.passives) > 1:
        together = "passive parties: together they know what each has seen"
        return f"{both}; {together}" if both else together
    return both


def _assumed(plan: Plan) -> str:
    said = "all keep to the protocol and are no more than curious"
    if plan.vertical.algorithm == "split-nn":
        return f"{said}; an active party that does not can make the others' networks pass on more"
    if plan.vertical.protocol == "ckks":
        return f"{said}; a passive party that does not can have single labels opened"
    return said
