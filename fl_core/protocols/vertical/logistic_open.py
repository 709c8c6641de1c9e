"""Vertical logistic regression under secret shares, logits open to the active party.

Parties: G, active, has the labels; H_1 … H_k, passive; D, the dealer, which is the coordinator.

Who learns what
- G: each passive party's X_h·W_h at every step, over training, validation and test rows.  These span the space of the
  columns of X_h: with bins one-hot, rows of equal logits are rows of equal bins.  So this mode is not for bins.
- H_h: nothing but the sizes of G's questions and, at the end, its own weights.  Gradient and weights are shared
  between G and H_h until then; G's share is uniform.
- other passive parties: nothing of each other.
- D: the number of rows and of each party's columns, batch sizes; see `dealer`.
G and D together read X_h; H_h and D together read G's residuals.  No other coalition learns more than its members.

Honest but curious; shares in Z_2^64 hide perfectly.  Columns have 16 fractional bits, weights 20; the update is divided
by the dealer's truncation, which rounds without bias.  That nothing overflows is shown before the training, from the
range of columns and residuals; logits are checked as they come.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import Elements, Floats
from fl_core.errors import TrainingDiverged
from fl_core.learning import scores
from fl_core.protocols.vertical.course import Course, Split, State
from fl_core.protocols.vertical.dealer import Script
from fl_core.protocols.vertical.dealt import Dealt, PeerMatrix
from fl_core.protocols.vertical.exchange import recv_elements, send_elements
from fl_core.protocols.vertical.logistic import (
    WEIGHT_BITS,
    Columns,
    Layout,
    LogisticSettings,
    Patience,
    Step,
    encode_columns,
    hear_verdict,
    probabilities,
    row_losses,
    row_weights,
    targets,
    tell_verdict,
    update,
)

RESIDUAL_BITS = 16
LOGIT_BOUND = 2.0**20


def step_of(columns: Columns, layout: Layout, settings: LogisticSettings, outputs: int) -> Step:
    """The constants of an update; both sides work them out alike."""
    rows = layout.rows
    most = max([1.0, *settings.class_weight])
    velocity = settings.learning_rate * columns.bound * most / (1.0 - settings.momentum)
    return Step.of(
        settings, rows=rows, gradient_bits=columns.fraction + RESIDUAL_BITS, weight_bits=WEIGHT_BITS,
        gradient_bound=rows * columns.bound * most, velocity_bound=velocity,
        weights_bound=settings.epochs * len(layout.batches) * velocity,
    )  # fmt: skip


def epoch_script(
    layout: Layout, columns: Sequence[Columns], names: Sequence[str], active: str, outputs: int, shifts: Sequence[int]
) -> Script:
    """What an epoch needs of the dealer; matrix i is that of passive party i."""
    script, parties = Script(), list(enumerate(names))
    for rows in layout.batches:
        for i, _ in parties:
            script.product(i, active, rows, outputs, transposed=False)
        for i, _ in parties:
            script.product(i, active, rows, outputs, transposed=True)
        for i, name in parties:
            script.truncate([active, name], columns[i].count * outputs, shifts[i])
    for i, _ in parties:
        script.product(i, active, layout.held, outputs, transposed=False)
    return script


class _Pair:
    """G's side of one passive party: its share of that party's weights."""

    def __init__(
        self, dealt: Dealt, name: str, matrix: PeerMatrix, columns: Columns, step: Step, outputs: int, state: State
    ) -> None:
        self.dealt, self.channel = dealt, dealt.channel
        self.name, self.matrix, self.columns, self.step = name, matrix, columns, step
        shape = (columns.count, outputs)
        self.w: Elements = state.get(f"w.{name}", np.zeros(shape, np.uint64))
        self.v: Elements = state.get(f"v.{name}", np.zeros(shape, np.uint64))
        self.best: Elements = state.get(f"best.{name}", self.w)

    def ask(self) -> None:
        send_elements(self.channel, self.name, self.matrix.mask(self.w), step="weights")

    def logits(self, rows: slice) -> Floats:
        theirs = recv_elements(self.channel, self.name, rows.stop - rows.start, self.w.shape[1], step="logits")
        whole = theirs + self.matrix.share(self.w, rows, transposed=False)
        z = ring.decode(whole, self.columns.fraction + WEIGHT_BITS)
        if z.size and not np.abs(z).max() < LOGIT_BOUND:
            raise TrainingDiverged(f"a logit of {np.abs(z).max():.3g}; allowed: under {LOGIT_BOUND:g}")
        return z

    def residuals(self, r: Elements) -> None:
        send_elements(self.channel, self.name, self.matrix.mask(r), step="residuals")

    def propose(self, r: Elements, rows: slice) -> None:
        part = update(self.matrix.share(r, rows, transposed=True), self.v, self.w, self.step)
        self._work = self.dealt.truncation([self.channel.me, self.name], self.w.size, self.step.shift)
        self._mine = self._work.mask(part)
        send_elements(self.channel, self.name, self._mine, step="update")

    def finish(self) -> None:
        opened = self._mine + recv_elements(self.channel, self.name, self._mine.size, step="update")
        self.v = self._work.share(opened).reshape(self.v.shape)
        self.w = self.w - self.v

    def state(self) -> State:
        return {f"w.{self.name}": self.w, f"v.{self.name}": self.v, f"best.{self.name}": self.best}


def train_active(
    channel: Channel, dealer: str, passives: Sequence[str], x: Floats, y: NDArray[np.int64], outputs: int,
    split: Split, settings: LogisticSettings, *, course: Course,
) -> Floats:  # fmt: skip
    """G's part.

    Parameters
    ----------
    x : (n, d) float64, G's columns of all rows in the common order. y : (n,) classes from 0.
    outputs : 1 for two classes.

    Returns
    -------
    (d + 1, outputs) float64: G's weights, the intercept last.

    Raises
    ------
    TrainingDiverged : what does not fit. BadFrame, PeerLost, PeerTimeout : a passive party or the dealer.
    """
    return _Active(channel, dealer, tuple(passives), x, y, outputs, split, settings, course).run()


class _Active:
    def __init__(
        self, channel: Channel, dealer: str, passives: tuple[str, ...], x: Floats, y: NDArray[np.int64], outputs: int,
        split: Split, settings: LogisticSettings, course: Course,
    ) -> None:  # fmt: skip
        self.channel, self.passives, self.settings, self.course = channel, passives, settings, course
        self.layout, self.outputs = Layout.of(split, settings), outputs
        order = self.layout.order
        self.x = np.concatenate([x[order], np.ones((len(order), 1))], axis=1)
        self.labels, self.y = y[order], targets(y[order], outputs)
        self.row_weight = row_weights(self.labels, settings)
        state, self.dealt = course.state, Dealt(channel, dealer)
        self.w: Floats = state.get("w", np.zeros((self.x.shape[1], outputs)))
        self.v: Floats = state.get("v", np.zeros_like(self.w))
        self.best: Floats = state.get("best", self.w)
        self.patience = Patience(settings.early_stopping)
        if "patience" in state:
            self.patience.restore(state["patience"])
        columns = [Columns.hear(channel, name) for name in passives]
        steps = [step_of(c, self.layout, settings, outputs) for c in columns]
        setup = Script()
        for name, c in zip(passives, columns, strict=True):
            setup.matrix(name, len(order), c.count, 64)
        self.dealt.order(setup)
        shifts = [step.shift for step in steps]
        self.script = epoch_script(self.layout, columns, passives, channel.me, outputs, shifts)
        self.pairs = []
        for name, c, step in zip(passives, columns, steps, strict=True):
            matrix = self.dealt.peer_matrix(name, (len(order), c.count))
            self.pairs.append(_Pair(self.dealt, name, matrix, c, step, outputs, state))

    def run(self) -> Floats:
        course, ahead = self.course, 0 if self.settings.early_stopping else 1
        last, dealt = self.settings.epochs, course.begun
        for number in range(course.begun + 1, last + 1):
            while dealt < min(number + ahead, last):  # the dealer works on the next epoch meanwhile
                self._order(first=dealt == course.begun)
                dealt += 1
            if self._epoch(number):
                break
        self.dealt.end()
        for pair in self.pairs:
            send_elements(self.channel, pair.name, pair.best, step="share of the weights")
        return self.best

    def _order(self, *, first: bool) -> None:
        if first:
            self.dealt.order(self.script)
        else:
            self.dealt.again()

    def _epoch(self, number: int) -> bool:
        losses = [self._batch(rows) for rows in self.layout.batches]
        valid, test = np.split(self._logits(self.layout.held), [self.layout.test.start - self.layout.held.start])
        better = self.patience.better(number, self._loss(valid, self.layout.valid))
        if better:
            self.best = self.w
            for pair in self.pairs:
                pair.best = pair.w
        stop = self.patience.over(number)
        tell_verdict(self.channel, self.passives, better=better, stop=stop or number == self.settings.epochs)
        loss = float(np.sum(losses) / self.row_weight[: self.layout.valid.start].sum())
        if not np.isfinite(loss):
            raise TrainingDiverged(f"the loss of epoch {number} is {loss}; a smaller learning_rate helps")
        state: State = {"w": self.w, "v": self.v, "best": self.best, "patience": self.patience.state()}
        for pair in self.pairs:
            state |= pair.state()
        self.course.done(number, state, {"loss": loss} | self._score(test))
        return stop

    def _logits(self, rows: slice) -> Floats:
        for pair in self.pairs:
            pair.ask()
        z = self.x[rows] @ self.w
        for pair in self.pairs:
            z += pair.logits(rows)
        return z

    def _batch(self, rows: slice) -> float:
        z = self._logits(rows)
        weight = self.row_weight[rows, None]
        r = (probabilities(z) - self.y[rows]) * weight
        shared = ring.encode(r, RESIDUAL_BITS)
        for pair in self.pairs:
            pair.residuals(shared)
        gradient = self.x[rows].T @ r / self.layout.rows + self.settings.l2 * self._decayed()
        self.v = self.settings.momentum * self.v + self.settings.learning_rate * gradient
        self.w = self.w - self.v
        for pair in self.pairs:
            pair.propose(shared, rows)
        for pair in self.pairs:
            pair.finish()
        return float(row_losses(z, self.labels[rows]) @ weight[:, 0])

    def _decayed(self) -> Floats:
        """The weights that L2 pulls to zero: all but the intercept."""
        return np.concatenate([self.w[:-1], np.zeros((1, self.outputs))])

    def _loss(self, z: Floats, rows: slice) -> float:
        return float(np.mean(row_losses(z, self.labels[rows]))) if rows.stop > rows.start else 0.0

    def _score(self, z: Floats) -> dict[str, float]:
        labels = self.labels[self.layout.test]
        if not len(labels):
            return {}
        if self.outputs == 1:
            return {"auc": scores.auc(labels, z[:, 0])}
        return {"accuracy": scores.accuracy(labels, z.argmax(axis=1))}


def train_passive(
    channel: Channel, dealer: str, active: str, x: Floats, outputs: int, split: Split, settings: LogisticSettings,
    *, course: Course,
) -> Floats:  # fmt: skip
    """A passive party's part.

    Parameters
    ----------
    x : (n, d) float64 of at most `BOUND`, its columns of all rows in the common order.

    Returns
    -------
    (d, outputs) float64: its weights, which G does not learn.
    """
    layout, dealt = Layout.of(split, settings), Dealt(channel, dealer)
    columns = Columns.of(x, f"party {channel.me}")
    columns.tell(channel, [active])
    encoded = encode_columns(x, columns.fraction, layout.order)
    matrix = dealt.own_matrix([active], lambda a, b: encoded[a:b], encoded.shape)
    step = step_of(columns, layout, settings, outputs)
    state, shape = course.state, (columns.count, outputs)
    w: Elements = state.get("w", np.zeros(shape, np.uint64))
    v: Elements = state.get("v", np.zeros(shape, np.uint64))
    best: Elements = state.get("best", w)

    def answer(rows: slice) -> None:
        masked = recv_elements(channel, active, *shape, step="weights")
        part = ring.product(encoded[rows], w) + matrix.share(masked, rows, transposed=False)
        send_elements(channel, active, part, step="logits")

    for number in range(course.begun + 1, settings.epochs + 1):
        for rows in layout.batches:
            answer(rows)
            masked = recv_elements(channel, active, rows.stop - rows.start, outputs, step="residuals")
            part = update(matrix.share(masked, rows, transposed=True), v, w, step)
            work = dealt.truncation([active, channel.me], w.size, step.shift)
            mine = work.mask(part)
            send_elements(channel, active, mine, step="update")
            v = work.share(mine + recv_elements(channel, active, w.size, step="update")).reshape(shape)
            w = w - v
        answer(layout.held)
        better, stop = hear_verdict(channel, active)
        best = w if better else best
        course.done(number, {"w": w, "v": v, "best": best}, {})
        if stop:
            break
    return ring.decode(best + recv_elements(channel, active, *shape, step="share of the weights"), WEIGHT_BITS)
