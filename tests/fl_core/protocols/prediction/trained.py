"""Small vertical models trained over channels in memory, and predictions with their parts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from fl_core.config import load_job
from fl_core.learning.columns import Column, Columns
from fl_core.learning.tree_parts import allowed_leaves, joint_scores
from fl_core.messages import COORDINATOR
from fl_core.protocols.prediction.forest import Layout, WholeLeaves
from fl_core.protocols.prediction.plan import Plan, plan_of
from fl_core.protocols.prediction.program import NewTable, coordinate, run
from fl_core.protocols.prediction.reading import part_of
from fl_core.protocols.vertical import plan as vertical
from fl_core.protocols.vertical import program as training
from tests.fl_core.protocols.parties import converse, hashed
from tests.fl_core.protocols.vertical.test_program import MemorySite

RUN, JOB = "0123456789abcdef", "ab" * 32
ROWS, FEATURES = 900, 6
COLUMNS = {2: {"bank": (0, 1, 2), "lab": (3, 4, 5)}, 3: {"bank": (0, 1), "lab": (2, 3), "shop": (4, 5)}}


def world(classes: int = 2) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * ROWS, FEATURES))
    score = x @ rng.normal(size=(FEATURES, classes)) * 1.5 + rng.gumbel(size=(len(x), classes))
    return x, score.argmax(axis=1)


def columns_of(x: Any, rows: Any, chosen: tuple[int, ...], *, strange: bool = False) -> Columns:
    """Numbers with some missing, and one column of categories; `strange` rows have categories never seen."""
    made = []
    for j in chosen:
        numbers = x[rows, j].copy()
        numbers[(rows * 7 + j) % 31 == 0] = np.nan
        made.append(Column(f"c{j}", numbers=numbers))
    categories = ("blue", "green", "red", "teal") if strange else ("blue", "green", "red")
    codes = (rows % len(categories)).astype(np.int32)
    codes[rows % 17 == 0] = -1
    made.append(Column(f"kind{chosen[0]}", codes=codes, categories=categories))
    return Columns(tuple(made), len(rows))


class Model:
    """A trained model.

    told, arrays : what each party kept, by party. outcomes : of the training, by party.
    """

    def __init__(self, settings: dict[str, Any], *, parties: int = 2, classes: int = 2, objective: str = "", **tables: Any) -> None:
        self.chosen = COLUMNS[parties]
        self.x, self.y = world(max(classes, 2))
        names = [{"name": name, "data": "x.csv", "id": "id"} for name in sorted(self.chosen, reverse=True)]
        next(p for p in names if p["name"] == "bank")["label"] = "y"
        job = load_job({"kind": "vertical", "seed": 4, "party": names, "vertical": settings, **tables})
        self.objective = objective or ("binary" if classes == 2 else "multiclass")
        tables_ = {name: self._training_table(name, classes) for name in self.chosen}
        plan = vertical.plan_of(job)
        programs = {n: lambda c: training.run(c, plan, tables_[c.me], MemorySite(), threads=1) for n in tables_}
        if plan.coordinator is not None:
            programs[COORDINATOR] = lambda c: training.coordinate(c, plan)
        done = converse(programs)
        self.outcomes = {name: done.result(name) for name in tables_}
        self.told, self.arrays = {}, {}
        for name, outcome in self.outcomes.items():
            about = {
                "party": name, "parties": list(plan.parties), "algorithm": job.vertical.algorithm, "job": JOB,
                "run": RUN, "objective": outcome.task.objective, "outputs": outcome.task.outputs,
                "classes": list(tables_[name].classes), **outcome.method.describe(),
            }  # fmt: skip
            self.told[name] = json.loads(json.dumps(about))
            self.arrays[name] = outcome.method.arrays()

    def _training_table(self, name: str, classes: int) -> training.Table:
        rows = np.random.default_rng(ord(name[0])).permutation(ROWS)
        ids = np.array([f"{i:05d}" for i in rows])
        more: dict[str, Any] = {}
        if name == "bank" and self.objective == "regression":
            more = {"labels": self.x[rows, 0] * 20 + self.x[rows, 3] * 30 + 1000, "objective": "regression"}
        elif name == "bank":
            more = {"labels": self.y[rows], "classes": tuple("abc"[:classes]), "objective": self.objective}
        return training.Table(hashed(rows.tolist()), ids, columns_of(self.x, rows, self.chosen[name]), None, name, **more)

    def part(self, name: str, **changes: Any) -> Any:
        return part_of(self.told[name] | changes, self.arrays[name], party=name, where=f"party {name}")

    def plan(self, *receivers: str, **more: Any) -> Plan:
        names = [{"name": name, "data": "x.csv", "id": "id"} for name in sorted(self.chosen)]
        told = {"model": RUN, "receivers": list(receivers or ("bank",)), "active": "bank", "min_trees": 1}
        algorithm = self.told["bank"]["algorithm"]
        job = load_job({"kind": "predict", "party": names, "predict": told | {"algorithm": algorithm} | more})
        return plan_of(job)

    def new_rows(self, name: str, *, strange: bool = True) -> tuple[NewTable, Any]:
        """Rows 800 to 1600 or so: some seen in training, some new; each party lacks some."""
        rng = np.random.default_rng(1000 + ord(name[0]))
        rows = rng.permutation(np.arange(800, 1600)[rng.random(800) < 0.9])
        ids = np.array([f"{i:05d}" for i in rows])
        made = columns_of(self.x, rows, self.chosen[name], strange=strange)
        return NewTable(hashed(rows.tolist()), ids, made, None, f"party {name}"), rows

    def predict(self, plan: Plan, *, parts: dict[str, Any] | None = None, fault: Any = None) -> tuple[Any, Any]:
        """The session, and the common rows in order."""
        held = {name: self.part(name) for name in self.chosen} | (parts or {})
        tables = {name: self.new_rows(name)[0] for name in self.chosen}

        def party(channel: Any) -> Any:
            return run(channel, plan, held[channel.me], tables[channel.me], say=lambda _: None, threads=1)

        programs = dict.fromkeys(self.chosen, party) | {COORDINATOR: lambda c: coordinate(c, plan)}
        common = None
        for name in self.chosen:
            rows = self.new_rows(name)[1]
            common = rows if common is None else np.intersect1d(common, rows)
        return converse(programs, fault=fault), np.sort(common)

    def plain(self, rows: Any) -> dict[str, Columns]:
        """The parties' columns of some rows, in one place."""
        return {n: columns_of(self.x, rows, chosen, strange=True) for n, chosen in self.chosen.items()}


def whole_scores(trees, objective, codes, others):
    """What parties should get but for one rounding to the unit: leaves that are asked for rounded, and what that took
    given back as its mean over the leaves that the active party's own splits leave."""
    whole = WholeLeaves.of(trees, objective)
    layout = Layout(others[0][0].feature >= 0 if len(others) == 1 else None, trees.leaves.shape, trees.outputs)
    asked = np.array([len(leaders) > 1 for leaders in layout.leaders])
    leaves = np.where(asked[:, None], whole.leaves * whole.unit, trees.leaves)
    scores = joint_scores(dataclasses.replace(trees, leaves=leaves), codes, others)
    for tree in np.flatnonzero(asked):
        allowed = allowed_leaves(trees, tree, codes)
        for row in range(len(codes)):
            scores[row, tree % trees.outputs] += (trees.leaves[tree] - leaves[tree])[allowed[row]].mean()
    return scores
