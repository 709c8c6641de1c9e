"""A vertical job as a party program: align rows, split, make features, train, evaluate; and the coordinator's part.

Who learns what stands at the head of each step: `alignment`, `logistic_open`, `logistic_strict`, `logistic_ckks`,
`trees`, `split_nn`, `scoring`, `union_evaluation`.  Beside that all parties learn how many rows they have in common,
the task (classes or numbers, weights of classes), and which rows are held out; the coordinator learns the figures that
parties report, and how many rows are aligned.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.ring import Floats
from fl_core.errors import BadFrame, DataError
from fl_core.learning import scores
from fl_core.learning.columns import Columns
from fl_core.messages import COORDINATOR
from fl_core.protocols.psi.program import compare
from fl_core.protocols.vertical import alignment
from fl_core.protocols.vertical.alignment import Alignment, Holdout, Stand
from fl_core.protocols.vertical.course import Course, Rows
from fl_core.protocols.vertical.dealer import DEAL, OVER, PHASE, Dealer
from fl_core.protocols.vertical.methods import EVALUATE, METHODS, UNION_TREES, Method, Own, balanced
from fl_core.protocols.vertical.plan import Plan, Task
from fl_core.protocols.vertical.union_evaluation import (
    evaluate_active,
    evaluate_coordinator,
    evaluate_passive,
    share_membership,
)

_TASK = "task"
MAX_WORD = 64 << 10


@dataclass(frozen=True, eq=False)
class Table:
    """A party's rows as it read them, ids distinct.

    items : (m, 32) uint8 hashes of ids. ids : (m,) text. columns : (m rows). block : (m, …) float32, or None.
    labels : (m,) classes from 0 or numbers, at the active party. classes : their names; empty for numbers.
    objective : binary, multiclass or regression; empty at passive parties.
    test : (m,) rows to hold out, where a file names them. where : how messages begin.
    """

    items: NDArray[np.uint8]
    ids: NDArray[np.str_]
    columns: Columns
    block: NDArray[np.float32] | None
    where: str
    labels: NDArray[Any] | None = None
    classes: tuple[str, ...] = ()
    objective: str = ""
    test: NDArray[np.bool_] | None = None


class Site(ABC):
    """Where a party's program runs: what it keeps, and how it tells of its course."""

    @abstractmethod
    def stand(self) -> Stand:
        """What is kept of this run."""

    @abstractmethod
    def kept_alignment(self) -> Alignment:
        """As `keep` was given it."""

    @abstractmethod
    def keep(self, aligned: Alignment) -> None:
        """Keep an alignment, and forget the steps after an earlier one."""

    @abstractmethod
    def course(self, begun: int) -> Course:
        """The training's course, from the state kept after step `begun`."""

    @abstractmethod
    def record(self, number: int, metrics: Mapping[str, float]) -> None:
        """Report a step beside training; every party must report each."""

    @abstractmethod
    def say(self, text: str) -> None:
        """A line of progress for people."""


@dataclass(eq=False)
class Outcome:
    """What a party has in the end.

    test : rows of its table that are held out, at the active party with scores to write. predictions : of these rows.
    figures : as reported. roc : (false, true) positive rates, at the active party of a binary job.
    """

    method: Method
    task: Task
    aligned: Alignment
    test: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    predictions: Floats | None = None
    figures: dict[str, float] = field(default_factory=dict)
    roc: list[tuple[float, float]] = field(default_factory=list)


# ---- the coordinator


def coordinate(channel: Channel, plan: Plan) -> None:
    """The coordinator's part: it compares where the intersection needs it, deals, evaluates over a union."""
    start = alignment.hear_start(channel, plan.active)
    if start.aligns and plan.psi.comparer is not None:
        compare(channel, plan.psi)
    while True:
        word = bytes(channel.recv(plan.active, step=PHASE, max_bytes=MAX_WORD))
        if word == OVER:
            return
        if word == DEAL:
            Dealer(channel, plan.active, plan.parties).serve()
        elif word.startswith(UNION_TREES) and len(plan.parties) == 2:
            from fl_core.protocols.vertical.union_splits import deal_union

            task = _task(plan.active, word[len(UNION_TREES) :])
            deal_union(channel, plan.active, plan.passives[0], task.objective, plan.trees(task))
        elif word.startswith(EVALUATE) and len(plan.parties) == 2:
            shape = np.frombuffer(word[len(EVALUATE) :].ljust(16, b"\0")[:16], dtype="<u8")
            evaluate_coordinator(channel, plan.active, plan.passives[0], (int(shape[0]), int(shape[1])))
        else:
            raise BadFrame(plan.active, PHASE, "neither a deal nor an end")


# ---- parties


def run(channel: Channel, plan: Plan, table: Table, site: Site, *, threads: int) -> Outcome:
    """One party's part, active or passive."""
    active = channel.me == plan.active
    if active:
        start = alignment.start_active(channel, plan.passives, site.stand(), coordinator=plan.coordinator)
    else:
        start = alignment.start_passive(channel, plan.active, site.stand())
    if start.aligns:
        site.say(f"aligning {len(plan.parties)} tables, {len(table.items):,} ids here")
        aligned = _align(channel, plan, table, threads)
        site.keep(aligned)
    else:
        aligned = site.kept_alignment()
        site.say(f"going on after {plan.unit} {start.begun}")
    task = _tell_task(channel, plan, table, aligned) if active else _hear_task(channel, plan)
    own = _own(table, aligned)
    method = METHODS[plan.vertical.algorithm](channel, plan, own, task, aligned.split)
    if method.notes:  # they name columns, which stay at their owner
        site.say(f"columns left out or simplified here: {len(method.notes)}; the card of this party's model names them")
    if start.aligns:
        site.record(0, {"rows_aligned": len(aligned.rows)} if active else {})
    course = _Timed(site.course(start.begun))
    method.train(course)
    outcome = Outcome(method, task, aligned)
    _evaluate(channel, plan, table, outcome)
    if active:
        outcome.figures |= {"rows_aligned": float(len(aligned.rows))} | course.figures(plan.unit)
        if plan.coordinator is not None:
            channel.send(COORDINATOR, OVER, step=PHASE)
    site.record(plan.steps + 1, outcome.figures)
    return outcome


def _align(channel: Channel, plan: Plan, table: Table, threads: int) -> Alignment:
    if channel.me != plan.active:
        return alignment.align_passive(channel, table.items, plan.psi, plan.active, threads=threads)

    def classes(rows: Rows) -> NDArray[np.int64]:
        assert table.labels is not None
        if table.objective == "regression":
            return np.zeros(len(rows), np.int64)
        labels = table.labels[rows].astype(np.int64)
        _check_classes(table, labels)
        return labels

    job = plan.job
    how = Holdout(job.seed, job.evaluate.test_fraction, plan.vertical.early_stopping > 0, table.test)
    return alignment.align_active(
        channel, table.items, plan.psi, plan.passives, table.ids, classes, how, threads=threads
    )


def _check_classes(table: Table, labels: NDArray[np.int64]) -> None:
    counts = np.bincount(labels, minlength=len(table.classes))
    if np.count_nonzero(counts) < 2:
        raise DataError(f"{table.where}, common rows", "one class only", allowed="two or more")
    if (counts == 0).any():
        name = table.classes[int(np.argmin(counts))]
        raise DataError(f"{table.where}, common rows", f"no row of class {name!r}", allowed="rows of every class")


def _tell_task(channel: Channel, plan: Plan, table: Table, aligned: Alignment) -> Task:
    assert table.labels is not None
    if plan.vertical.algorithm == "logistic" and table.objective == "regression":
        allowed = "classes (objective = multiclass), or algorithm gbdt or split-nn"
        raise DataError(f"{table.where}, labels", "numbers, which logistic regression does not learn", allowed=allowed)
    if plan.union and table.objective == "regression":
        raise DataError(f"{table.where}, labels", "numbers, over a union", allowed="classes (objective = multiclass)")
    outputs = len(table.classes) if table.objective == "multiclass" else 1
    weights: tuple[float, ...] = ()
    if plan.vertical.class_weight == "balanced" and table.classes:
        rows = aligned.rows[aligned.split.train]
        labels = table.labels[rows[rows >= 0]].astype(np.int64)
        _check_classes(table, labels)
        weights = balanced(labels, len(table.classes))
    task = Task(table.objective, outputs, weights)
    for peer in plan.passives:
        channel.send(peer, task.encode(), step=_TASK)
    return task


def _hear_task(channel: Channel, plan: Plan) -> Task:
    return _task(plan.active, bytes(channel.recv(plan.active, step=_TASK, max_bytes=MAX_WORD)))


def _task(active: str, data: bytes) -> Task:
    try:
        return Task.decode(data)
    except ValueError as error:
        raise BadFrame(active, _TASK, str(error)) from None


def _own(table: Table, aligned: Alignment) -> Own:
    labels = None if table.labels is None else table.labels[aligned.filled]
    block = None if table.block is None else table.block[aligned.filled]
    return Own(table.columns.take(aligned.filled), block, aligned.rows >= 0, labels, table.where)


def _evaluate(channel: Channel, plan: Plan, table: Table, outcome: Outcome) -> None:
    test = outcome.aligned.split.test
    if not len(test):
        return
    if plan.union:
        _evaluate_union(channel, plan, outcome)
        return
    z = outcome.method.scores(test)
    if z is None or table.labels is None:
        return
    outcome.test = outcome.aligned.rows[test]
    outcome.predictions = outcome.method.predictions(z)
    labels = table.labels[outcome.test]
    outcome.figures, outcome.roc = figures(outcome.task, labels, z, outcome.predictions)


def _evaluate_union(channel: Channel, plan: Plan, outcome: Outcome) -> None:
    method, test = outcome.method, outcome.aligned.split.test
    method.dealing()
    weights = share_membership(channel, COORDINATOR, (plan.active, plan.passives[0]), method.own.member[test])
    part = method.union_part(test)
    if channel.me != plan.active:
        evaluate_passive(channel, plan.active, COORDINATOR, part, weights)
        return
    assert method.own.labels is not None
    channel.send(COORDINATOR, EVALUATE + np.array(part.shape, dtype="<u8").tobytes(), step=PHASE)
    labels = method.own.labels[test].astype(np.int64)
    outcome.figures, outcome.roc = evaluate_active(channel, plan.passives[0], COORDINATOR, part, labels, weights)


def figures(
    task: Task, labels: NDArray[Any], z: Floats, predicted: Floats
) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """How good scores (n, outputs) are, and the ROC curve where there are two classes."""
    if task.objective == "regression":
        error = scores.rmse(labels, predicted)
        return {"rmse": error, "r2": scores.r2(labels, predicted), "loss": error**2}, []
    classes = labels.astype(np.int64)
    if task.outputs == 1:
        chosen = np.clip(np.where(classes > 0, predicted, 1.0 - predicted), 1e-15, 1.0)
        found = {"auc": scores.auc(classes, z[:, 0]), "ks": scores.ks(classes, z[:, 0])}
        return found | {"loss": float(-np.log(chosen).mean())}, scores.roc(classes, z[:, 0])
    chosen = np.clip(np.take_along_axis(predicted, classes[:, None], axis=1), 1e-15, 1.0)
    return {"accuracy": scores.accuracy(classes, z.argmax(axis=1)), "loss": float(-np.log(chosen).mean())}, []


class _Timed(Course):
    """A course that remembers how long its steps took."""

    def __init__(self, inner: Course) -> None:
        self.inner, self.begun, self.state = inner, inner.begun, inner.state
        self._last, self._seconds = time.monotonic(), list[float]()

    def done(self, number: int, state: Mapping[str, NDArray[Any]], metrics: Mapping[str, float]) -> None:
        """As `Course.done`."""
        self.inner.done(number, state, metrics)
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._last = now

    def figures(self, unit: str) -> dict[str, float]:
        """The median step, the first one of several left out: it waits for the masked columns."""
        taken = self._seconds[1:] or self._seconds
        return {f"seconds_per_{unit}": statistics.median(taken)} if taken else {}
