"""Vertical logistic regression under secret shares in which nobody sees a logit.

Parties: G, active, has the labels; H_1 … H_k, passive; D, the dealer, which is the coordinator.

Who learns what
- G: the sum of squared residuals over all training (and validation) rows of an epoch; at the end its own weights and
  the logits of the test rows.  No logit, residual or gradient of a training row.
- H_h: its own weights at the end, nothing before.
- D: the number of rows and of each party's columns, batch sizes; see `dealer`.
D together with a party of each of two owners reads the columns of both and the labels; without D any coalition of
parties learns no more than its members.

Everything is shared among all parties: weights, logits, residuals.  A residual must be linear in the logit, so the
probability is 1/2 + z/8, the first-order expansion halved: the model is least squares on the labels (one output a class
where there are more than two), which ranks about as the logistic loss does (on credit defaults in bins .769 both).

With `member` (hidden membership, two parties): rows are those of a union, each party has zeros where a row is none of
its own, and residuals are multiplied under shares by the product of both parties' membership bits.  Nobody learns whose
rows count; the number of rows that count is opened to G, as the total that figures refer to.

Honest but curious; shares in Z_2^64 hide perfectly.  Bits are chosen so that Σ residual² fits; a training that diverges
shows in it, and is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto import ring
from fl_core.crypto.ring import Elements, Floats
from fl_core.errors import TrainingDiverged
from fl_core.protocols.vertical.course import Course, Split, State
from fl_core.protocols.vertical.dealer import Script
from fl_core.protocols.vertical.dealt import Dealt, OwnMatrix, PeerMatrix, Weights
from fl_core.protocols.vertical.exchange import open_to_all, recv_elements, send_elements
from fl_core.protocols.vertical.logistic import (
    COLUMN_BITS,
    Columns,
    Layout,
    LogisticSettings,
    Patience,
    Step,
    encode_columns,
    hear_verdict,
    row_weights,
    targets,
    tell_verdict,
    update,
)

SLOPE_BITS = 3  # probability = 1/2 + z / 2^3
CLASS_WEIGHT_BITS = 4
RESIDUAL_REACH = 4.0  # of a residual that is not yet a divergence
MOST_RESIDUAL_BITS = 24
MOST_LOSS = 1.0  # mean squared residual; the trivial model has 1/4


@dataclass(frozen=True)
class Bits:
    """Fractional bits. columns : of every party's. weights : of W and V. residuals : of R before class weights."""

    columns: int
    weights: int
    residuals: int

    @classmethod
    def of(cls, rows: int, *, whole: bool, weighted: bool) -> Bits:
        """For a training over `rows` rows; `whole`: all columns are whole numbers, as bins are."""
        most = min(MOST_RESIDUAL_BITS, (62 - max(rows, 2).bit_length()) // 2) - (CLASS_WEIGHT_BITS if weighted else 0)
        columns = 0 if whole else (most - SLOPE_BITS) * 2 // 5
        return cls(columns, most - SLOPE_BITS - columns, most)


@dataclass
class Setup:
    """What a party brings.

    member : (n,) bool, with hidden membership; None: every row counts.
    labels : at the active party, (n,) classes from 0.
    """

    x: Floats
    outputs: int
    split: Split
    settings: LogisticSettings
    member: NDArray[np.bool_] | None = None
    labels: NDArray[np.int64] | None = None


@dataclass
class _Shares:
    """One party's shares of everybody's weights, by owner."""

    w: dict[str, Elements]
    v: dict[str, Elements]
    best: dict[str, Elements] = field(default_factory=dict)

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, int]], state: State) -> _Shares:
        zero = {name: np.zeros(shape, np.uint64) for name, shape in shapes.items()}
        made = [{name: state.get(f"{key}.{name}", zero[name]) for name in shapes} for key in ("w", "v", "best")]
        return cls(*made)

    def state(self) -> State:
        parts = {"w": self.w, "v": self.v, "best": self.best}
        return {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}


class Strict:
    """One party's part; `active` says whether it is G.

    Parameters
    ----------
    dealer : its name in the session. parties : G first, then the passive ones, the same order at all.
    """

    def __init__(self, channel: Channel, dealer: str, parties: Sequence[str], setup: Setup, course: Course) -> None:
        self.channel, self.parties, self.setup, self.course = channel, tuple(parties), setup, course
        self.me, self.active = channel.me, channel.me == parties[0]
        self.others = [name for name in parties if name != self.me]
        self.layout = Layout.of(setup.split, setup.settings)
        self.dealt = Dealt(channel, dealer)
        self.patience = Patience(setup.settings.early_stopping)
        self.weighted = bool(setup.settings.class_weight)
        self.scaled = self.weighted or setup.member is not None
        self._columns = self._agree()
        self.shapes = {name: (c.count, setup.outputs) for name, c in self._columns.items()}
        whole = all(c.fraction == 0 for c in self._columns.values())
        self.bits = Bits.of(self.layout.valid.stop, whole=whole, weighted=self.weighted)
        self.step = self._step()
        self.shares = _Shares.of(self.shapes, course.state)
        if "patience" in course.state:
            self.patience.restore(course.state["patience"])
        self._mask_columns()
        self.rows = float(self.layout.valid.start)
        if self.scaled:
            self._begin_weights()
        self._targets = self._encode_targets()

    # ---- before the first epoch

    def _agree(self) -> dict[str, Columns]:
        x = self._own_columns()
        mine = Columns.of(x, f"party {self.me}", COLUMN_BITS)
        mine.tell(self.channel, self.others)
        told = {name: Columns.hear(self.channel, name) for name in self.others}
        return {name: mine if name == self.me else told[name] for name in self.parties}

    def _own_columns(self) -> Floats:
        x = self.setup.x
        return np.concatenate([x, np.ones((len(x), 1))], axis=1) if self.active else x

    def _step(self) -> Step:
        settings, rows, bits = self.setup.settings, self.layout.rows, self.bits
        bound = max(c.bound for c in self._columns.values())
        reach = RESIDUAL_REACH * max([1.0, *settings.class_weight])
        velocity = settings.learning_rate * bound * reach / (1.0 - settings.momentum)
        extra = CLASS_WEIGHT_BITS if self.weighted else 0
        return Step.of(
            settings, rows=rows, gradient_bits=bits.columns + bits.residuals + extra, weight_bits=bits.weights,
            gradient_bound=rows * bound * reach, velocity_bound=velocity, weights_bound=100.0 * velocity,
        )  # fmt: skip

    def _mask_columns(self) -> None:
        """Every owner's columns, masked, to all others; one after the other."""
        rows = len(self.layout.order)
        if self.active:
            script = Script()
            for name in self.parties:
                script.matrix(name, rows, self._columns[name].count, 64)
            self.dealt.order(script)
        self.matrices: dict[str, PeerMatrix] = {}
        for name in self.parties:
            shape = (rows, self._columns[name].count)
            if name == self.me:
                self.x = encode_columns(self._own_columns(), self.bits.columns, self.layout.order)
                self.own: OwnMatrix = self.dealt.own_matrix(self.others, lambda a, b: self.x[a:b], shape)
            else:
                self.matrices[name] = self.dealt.peer_matrix(name, shape)

    def _begin_weights(self) -> None:
        """The weights of rows under shares: a class's weight at G, times both parties' membership bits."""
        n, setup, member = len(self.layout.order), self.setup, self.setup.member
        mine = np.zeros(n, np.uint64)
        if self.active:
            assert setup.labels is not None
            factor = row_weights(setup.labels, setup.settings) * (1.0 if member is None else member)
            mine = ring.encode(factor[self.layout.order], CLASS_WEIGHT_BITS if self.weighted else 0)
        self._weights = self._new_weights(mine)
        if member is not None:
            theirs = np.zeros(n, np.uint64) if self.active else member[self.layout.order].astype(np.uint64)
            if self.active:
                script = Script()
                script.scale(0, n, 1)
                self.dealt.order(script)
            both = self._scale(theirs[:, None], 0)[:, 0]
            self.weight_shares = both
            self._weights = self._new_weights(both)
            count = both[: self.layout.valid.start].sum(keepdims=True, dtype=np.uint64)
            bits = CLASS_WEIGHT_BITS if self.weighted else 0
            opened = self._open_to_active(count)
            self.rows = max(1.0, float(ring.decode(opened, bits)[0])) if opened is not None else self.rows
        elif self.active:
            assert setup.labels is not None
            self.rows = float(row_weights(setup.labels, setup.settings)[self.layout.order][: int(self.rows)].sum())

    def _new_weights(self, mine: Elements) -> Weights:
        if self.active:
            script = Script()
            script.weights(self.parties, len(mine))
            self.dealt.order(script)
        weights = self.dealt.weights(self.parties, len(mine))
        weights.opened = open_to_all(self.channel, self.others, weights.mask(mine), step="weights of rows")
        return weights

    def _scale(self, share: Elements, start: int) -> Elements:
        opened = open_to_all(self.channel, self.others, self._weights.begin(share), step="scaled residuals")
        return self._weights.share(opened, start)

    def _encode_targets(self) -> Elements | None:
        """At G, 1/2 - y in the order of the training."""
        if self.setup.labels is None:
            return None
        y = targets(self.setup.labels[self.layout.order], self.setup.outputs)
        return ring.encode(0.5 - y, self.bits.residuals)

    # ---- epochs

    def run(self) -> Floats:
        """Train; returns this party's weights, (columns, outputs) float64, G's with the intercept last."""
        begun, last = self.course.begun, self.setup.settings.epochs
        ahead, dealt = 0 if self.setup.settings.early_stopping else 1, begun
        for number in range(begun + 1, last + 1):
            while self.active and dealt < min(number + ahead, last):
                if dealt == begun:
                    self.dealt.order(self._script())
                else:
                    self.dealt.again()
                dealt += 1
            if self._epoch(number):
                break
        if self.active:
            self.dealt.end()
        return self._reveal()

    def _script(self) -> Script:
        script, outputs = Script(), self.setup.outputs
        validates = self.layout.valid.stop > self.layout.valid.start
        for rows in [*self.layout.batches, *([self.layout.valid] if validates else [])]:
            for transposed in (False, True):
                if transposed and self.scaled:
                    script.scale(rows.start, rows.stop, outputs)
                for i, owner in enumerate(self.parties):
                    for to in self.parties:
                        if to != owner:
                            script.product(i, to, rows, outputs, transposed=transposed)
            for i, left in enumerate(self.parties):
                for right in self.parties[i + 1 :]:
                    script.dot(left, right)
            if rows != self.layout.valid or not validates:
                script.truncate(self.parties, sum(d * c for d, c in self.shapes.values()), self.step.shift)
        return script

    def _epoch(self, number: int) -> bool:
        losses = np.sum([self._batch(rows, learn=True) for rows in self.layout.batches], axis=0, dtype=np.uint64)
        valid = np.zeros_like(losses)
        if self.layout.valid.stop > self.layout.valid.start:
            valid = self._batch(self.layout.valid, learn=False)
        opened = self._open_to_active(np.concatenate([losses, valid]))
        metrics: dict[str, float] = {}
        if opened is not None:
            loss, held = self._means(opened, number)
            metrics = {"loss": loss}
            better = self.patience.better(number, held)
            stop = self.patience.over(number)
            tell_verdict(self.channel, self.others, better=better, stop=stop)
        else:
            better, stop = hear_verdict(self.channel, self.parties[0])
        if better:
            self.shares.best = dict(self.shares.w)
        self.course.done(number, self.shares.state() | {"patience": self.patience.state()}, metrics)
        return stop

    def _means(self, opened: Elements, number: int) -> tuple[float, float]:
        """Mean squared residuals of training and validation rows.

        Class weights enter squared; the means are of weighted residuals and serve comparison only.
        """
        bits = 2 * (self.bits.residuals + (CLASS_WEIGHT_BITS if self.weighted else 0))
        sums = ring.decode(opened, bits).reshape(2, -1).sum(axis=1)
        train, valid = float(sums[0] / self.rows), float(sums[1] / self.rows)
        most = MOST_LOSS * self.setup.outputs * max([1.0, *self.setup.settings.class_weight]) ** 2
        if not 0 <= train <= most:
            raise TrainingDiverged(
                f"the mean squared residual of epoch {number} is {train:.3g}; allowed: 0 to {most:g}; "
                "a smaller learning_rate helps"
            )
        return train, valid

    def _batch(self, rows: slice, *, learn: bool) -> Elements:
        """One batch; returns this party's share of Σ R² by output."""
        z = self._products(self.shares.w, rows, transposed=False)
        r = z if self._targets is None else z + self._targets[rows]
        if self.scaled:
            r = self._scale(r, rows.start)
        gradients = self._gradients(r, rows)
        loss = self._squares(r)
        if learn:
            self._learn(gradients)
        return loss

    def _products(self, w: dict[str, Elements], rows: slice, *, transposed: bool) -> Elements:
        """This party's share of all logits of these rows."""
        outputs = self.setup.outputs
        for owner in self.parties:
            if owner == self.me:
                for _ in self.others:
                    self.own.begin(rows, outputs, transposed=False)
            else:
                send_elements(self.channel, owner, self.matrices[owner].mask(w[owner]), step="weights")
        z = ring.product(self.x[rows], w[self.me])
        for owner in self.others:
            z += self.matrices[owner].share(w[owner], rows, transposed=False)
        for peer in self.others:
            masked = recv_elements(self.channel, peer, *w[self.me].shape, step="weights")
            z += self.own.share(masked, rows, transposed=False)
        return z

    def _gradients(self, r: Elements, rows: slice) -> dict[str, Elements]:
        """This party's shares of everybody's Xᵀ R."""
        for owner in self.parties:
            if owner == self.me:
                for _ in self.others:
                    self.own.begin(rows, r.shape[1], transposed=True)
            else:
                send_elements(self.channel, owner, self.matrices[owner].mask(r), step="residuals")
        mine = ring.product_t(self.x[rows], r)
        made = {owner: self.matrices[owner].share(r, rows, transposed=True) for owner in self.others}
        self._masked = {peer: recv_elements(self.channel, peer, *r.shape, step="residuals") for peer in self.others}
        for peer in self.others:
            mine = mine + self.own.share(self._masked[peer], rows, transposed=True)
        return made | {self.me: mine}

    def _squares(self, r: Elements) -> Elements:
        """This party's share of Σ R²: the pairs' masked residuals are those that the gradients needed."""
        total = (r * r).sum(axis=0, dtype=np.uint64)
        at = self.parties.index(self.me)
        for i, left in enumerate(self.parties):
            for right in self.parties[i + 1 :]:
                if i == at:
                    cross = (r * self._masked[right]).sum(axis=0, dtype=np.uint64) + self.dealt.stream.draw(r.shape[1])
                elif right == self.me:
                    mask = self.matrices[left].last
                    cross = (self._masked[left] * mask).sum(axis=0, dtype=np.uint64) + self.dealt.explicit(r.shape[1])
                else:
                    continue
                total = total + cross + cross
        return total

    def _learn(self, gradients: dict[str, Elements]) -> None:
        shares, flat = self.shares, []
        for owner in self.parties:
            flat.append(update(gradients[owner], shares.v[owner], shares.w[owner], self.step).reshape(-1))
        parts = np.concatenate(flat)
        work = self.dealt.truncation(self.parties, len(parts), self.step.shift)
        moved = work.share(open_to_all(self.channel, self.others, work.mask(parts), step="update"))
        at = 0
        for owner in self.parties:
            shape = self.shapes[owner]
            size = shape[0] * shape[1]
            shares.v[owner] = moved[at : at + size].reshape(shape)
            shares.w[owner] = shares.w[owner] - shares.v[owner]
            at += size

    # ---- what is opened

    def _open_to_active(self, mine: Elements) -> Elements | None:
        """The sum of all shares at G; None at the others."""
        if not self.active:
            send_elements(self.channel, self.parties[0], mine, step="opened")
            return None
        total = mine.copy()
        for peer in self.others:
            total += recv_elements(self.channel, peer, *mine.shape, step="opened")
        return total

    def _reveal(self) -> Floats:
        """Each owner gets the others' shares of its weights."""
        for owner in self.others:
            send_elements(self.channel, owner, self.shares.best[owner], step="share of the weights")
        total = self.shares.best[self.me]
        for peer in self.others:
            total = total + recv_elements(self.channel, peer, *total.shape, step="share of the weights")
        return ring.decode(total, self.bits.weights)
