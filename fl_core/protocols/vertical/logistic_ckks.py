"""Logistic regression over the parties' columns under homomorphic encryption, without a dealer.

Minibatch gradient descent on the logistic loss, or on that of softmax, with L2.  The active party has the labels, each
passive party keeps its columns and its weights.  Batch by batch a passive party sends its partial scores u = X_h w_h,
the active party computes the residuals r = p − y, sends them encrypted under a key made in this session, and gets back
X_hᵀ r encrypted and masked; it opens that and returns the masked numbers, from which the passive party takes its
gradient.  The cipher, its noise and its masks: `fl_core.crypto.residuals`.

Who learns what
---------------
Active party: u of every batch in every epoch, and of the rows that are scored; nothing of the replies, which it opens
to uniform numbers.  But u alone is much: from about as many epochs as a passive party has columns the active party, who
knows the residuals between, can compute the inner products of that party's rows, that is its columns up to a rotation
(a single column up to its sign).  Where that gives too much away, as with binned columns that are 0 or 1, take
`protocol = "shared"` in its strict form.

Passive party: its weights, which are its own part of the model, its gradient in every batch with an error of
`fl_core.crypto.residuals.FLOOD` on the mean, and which epoch was best.  Features times ten is the least a batch may
have: with as many columns as rows it could solve for the residuals.  Rows are dealt to batches once, so that further
epochs add no equations on the labels.  Of another passive party it learns nothing; colluding ones add up their columns,
and should be kept to a tenth of the batch together.

Exchange and coordinator: sizes, that is rows, batches, columns, outputs, epochs.  They take no part and hold no key.

Honest-but-curious parties, 128 bits (Ring-LWE, `CKKS_RESIDUALS`).  A passive party that deviates can have single
residuals opened, hence labels; an active party that deviates can choose residuals that move the weights to single rows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.residuals import ColumnSide, ResidualKey, check_features
from fl_core.errors import BadFrame, BadMessage, DataError, JobFileError, TrainingDiverged
from fl_core.protocols.stream import recv_bytes, send_bytes
from fl_core.protocols.vertical.course import Course, Rows, Split
from fl_core.protocols.vertical.logistic_ckks_party import CkksSettings, Labels, Party

Floats = NDArray[np.float64]

MAX_OUTPUTS = 1000
CACHE_BYTES = 512 << 20  # of encoded columns; without room for all of them none is kept
_REPLIES = 64  # in one message, 0.9 MB
_COLUMNS, _KEY, _SCORES, _RESIDUALS = "ckks columns", "ckks public key", "ckks scores", "ckks residuals"
_REPLY, _GRADIENT, _VERDICT = "ckks replies", "ckks gradient", "ckks verdict"
_VERDICT_FORM = struct.Struct(">?I")  # whether to stop, and the best epoch so far


def train_active(
    channel: Channel,
    passives: Sequence[str],
    x: Floats,
    y: NDArray[Any],
    outputs: int,
    split: Split,
    settings: CkksSettings,
    *,
    course: Course,
) -> Floats:
    """The part of the party that has the labels.

    Parameters
    ----------
    passives : the others, in the job's order, at least one.
    x : (n, d) float64, finite; d may be 0.
    y : (n,) whole numbers, 0 or 1 for one output, else below `outputs`.
    outputs : C, 1 for binary labels, at most `MAX_OUTPUTS`.
    course : is told `loss`, the mean over the epoch's batches without class weights, and of the test rows `auc` or,
        with more outputs, `accuracy`.

    Returns
    -------
    (d + 1, C) float64, the intercept last.

    Raises
    ------
    DataError, JobFileError : the data or the settings do not fit. BadFrame : a message that is not allowed.
    TrainingDiverged : weights or scores are no longer finite.
    """
    if not 1 <= outputs <= MAX_OUTPUTS:
        raise JobFileError("vertical.outputs", f"{outputs}", allowed=f"1 to {MAX_OUTPUTS}")
    labels = Labels(y, outputs, settings.class_weight)
    if x.ndim != 2 or len(x) != len(y) or not np.isfinite(x).all():
        raise DataError("features", f"an array of shape {x.shape}", allowed=f"finite, {len(y)} rows")
    return _Active(channel, passives, x, labels, split, settings, course).train()


def train_passive(
    channel: Channel, active: str, x: Floats, split: Split, settings: CkksSettings, *, course: Course
) -> Floats:
    """The part of a party that has features only; what is not said here is as for `train_active`.

    Parameters
    ----------
    x : (n, d ≥ 1) float64 within ±`fl_core.crypto.residual_ring.FEATURE_LIMIT`.
    course : is told no metrics.

    Returns
    -------
    (d, C) float64.
    """
    if x.ndim != 2 or x.shape[1] == 0:
        raise DataError("features", f"an array of shape {x.shape}", allowed="rows × columns, at least one column")
    check_features(x)
    return _Passive(channel, active, x, split, settings, course).train()


def score_active(channel: Channel, passives: Sequence[str], x: Floats, weights: Floats, rows: Rows) -> Floats:
    """(rows, C) float64 scores before sigmoid or softmax, while all passive parties are in `score_passive`."""
    scores = x[rows] @ weights[:-1] + weights[-1]
    for peer in passives:
        scores += _recv_scores(channel, peer, scores.shape)
    return scores


def score_passive(channel: Channel, active: str, x: Floats, weights: Floats, rows: Rows) -> None:
    """Send this party's part of the scores of `rows`; the active party learns it row by row."""
    scores = np.ascontiguousarray(x[rows] @ weights, dtype="<f8")
    if not np.isfinite(scores).all():
        raise TrainingDiverged("partial scores are not finite; a smaller learning rate or l2 may help")
    send_bytes(channel, active, scores.view(np.uint8), step=_SCORES)


def _recv_scores(channel: Channel, peer: str, shape: tuple[int, ...]) -> Floats:
    scores = recv_bytes(channel, peer, *shape, 8, step=_SCORES).view("<f8")[..., 0]
    if not np.isfinite(scores).all():
        raise BadFrame(peer, _SCORES, "scores that are not finite")
    return scores


class _Active(Party):
    def __init__(
        self,
        channel: Channel,
        passives: Sequence[str],
        x: Floats,
        labels: Labels,
        split: Split,
        settings: CkksSettings,
        course: Course,
    ) -> None:
        super().__init__(channel, (x.shape[1] + 1, labels.outputs), split, settings, course)
        self._passives, self._x, self._labels = passives, x, labels

    def prepare(self) -> None:
        """As `Party.prepare`: the only secret key of the session is made here."""
        self._key = ResidualKey(self.ring)
        self._columns: dict[str, int] = {}
        for peer in self._passives:
            (columns,) = struct.unpack(">I", self.channel.recv_exactly(peer, step=_COLUMNS, size=4))
            if columns == 0:
                raise BadFrame(peer, _COLUMNS, "no columns")
            self.check_batch(columns, peer)
            self._columns[peer] = columns
        for peer in self._passives:
            self.channel.send(peer, struct.pack(">I", self._labels.outputs), self._key.public, step=_KEY)

    def epoch(self, number: int) -> dict[str, float]:
        """As `Party.epoch`."""
        loss = sum(self._batch(rows) * len(rows) for rows in self.batches) / len(self.split.train)
        scores = score_active(self.channel, self._passives, self._x, self.weights, self.held)
        valid, test = np.split(scores, [len(self.split.valid)])
        metrics = {"loss": loss, **self._labels.figures(test, self.split.test)}
        self._judge(number, valid)
        for peer in self._passives:
            self.channel.send(peer, _VERDICT_FORM.pack(self.stopped, self.best_epoch), step=_VERDICT)
        return metrics

    def _judge(self, epoch: int, scores: Floats) -> None:
        patience = self.settings.early_stopping
        if not patience:
            self.best_epoch = epoch
            return
        loss = self._labels.loss(scores, self.split.valid)
        if loss < self.best_loss:
            self.best_epoch, self.best_loss = epoch, loss
        self.stopped = epoch - self.best_epoch >= patience

    def _batch(self, rows: Rows) -> float:
        scores = score_active(self.channel, self._passives, self._x, self.weights, rows)
        residuals = self._labels.residuals(scores, rows)
        encrypted = b"".join(self._key.encrypt(residuals[:, c]) for c in range(self._labels.outputs))
        for peer in self._passives:
            send_bytes(self.channel, peer, np.frombuffer(encrypted, dtype=np.uint8), step=_RESIDUALS)
        own = np.vstack([self._x[rows].T @ residuals, residuals.sum(axis=0)])
        self.descend(own / len(rows), slice(0, -1))
        for peer in self._passives:
            self._serve(peer)
        return self._labels.loss(scores, rows)

    def _serve(self, peer: str) -> None:
        """Open a peer's replies."""
        opened, left = [], self._columns[peer] * self._labels.outputs
        while left:
            count = min(left, _REPLIES)
            replies = self.channel.recv_exactly(peer, step=_REPLY, size=count * self.ring.reply_bytes)
            opened.append(_checked(peer, _REPLY, self._key.answer, replies))
            left -= count
        self.channel.send(peer, np.concatenate(opened), step=_GRADIENT)


class _Passive(Party):
    def __init__(
        self,
        channel: Channel,
        active: str,
        x: Floats,
        split: Split,
        settings: CkksSettings,
        course: Course,
    ) -> None:
        outputs = course.state["weights"].shape[1] if course.begun else 0  # 0 until the active party says it
        super().__init__(channel, (x.shape[1], outputs), split, settings, course)
        self._active, self._x, self._outputs = active, x, outputs
        self.check_batch(x.shape[1], channel.me)
        blocks = sum(self.ring.blocks(len(rows)) for rows in self.batches)
        self._keep = blocks * x.shape[1] * 8 * self.ring.degree <= CACHE_BYTES
        self._kept: dict[tuple[int, int], list[Any]] = {}

    def prepare(self) -> None:
        """As `Party.prepare`."""
        self.channel.send(self._active, struct.pack(">I", self._x.shape[1]), step=_COLUMNS)
        message = self.channel.recv_exactly(self._active, step=_KEY, size=4 + self.ring.public_bytes)
        (outputs,) = struct.unpack_from(">I", message)
        if not 1 <= outputs <= MAX_OUTPUTS or self._outputs not in (0, outputs):
            raise BadFrame(self._active, _KEY, f"{outputs} outputs")
        if not self.course.begun:
            self._outputs, self.weights = outputs, np.zeros((self._x.shape[1], outputs))
        self._side: ColumnSide = _checked(self._active, _KEY, ColumnSide, self.ring, message[4:])

    def epoch(self, number: int) -> dict[str, float]:
        """As `Party.epoch`."""
        for batch in range(len(self.batches)):
            self._batch(batch)
        score_passive(self.channel, self._active, self._x, self.weights, self.held)
        verdict = self.channel.recv_exactly(self._active, step=_VERDICT, size=_VERDICT_FORM.size)
        self.stopped, best = _VERDICT_FORM.unpack(verdict)
        if best not in (number, self.best_epoch):
            raise BadFrame(self._active, _VERDICT, f"epoch {best} as the best after epoch {number}")
        self.best_epoch = best
        return {}

    def _batch(self, batch: int) -> None:
        rows = self.batches[batch]
        score_passive(self.channel, self._active, self._x, self.weights, rows)
        size, columns = self.ring.blocks(len(rows)) * self.ring.block_bytes, self._x.shape[1]
        data = recv_bytes(self.channel, self._active, self._outputs, size, step=_RESIDUALS)
        residuals = [_checked(self._active, _RESIDUALS, self._side.read, one.tobytes()) for one in data]
        masks, waiting = [], []
        for j in range(columns):
            encoded = self._encoded(batch, j)
            for encrypted in residuals:
                reply, mask = self._side.reply(encrypted, encoded)
                masks.append(mask)
                waiting.append(reply)
                if len(waiting) == _REPLIES or len(masks) == columns * self._outputs:
                    self.channel.send(self._active, b"".join(waiting), step=_REPLY)
                    waiting = []
        self.descend(self._gradient(rows, masks) / len(rows), slice(None))

    def _gradient(self, rows: Rows, masks: list[int]) -> Floats:
        numbers = np.frombuffer(
            self.channel.recv_exactly(self._active, step=_GRADIENT, size=8 * len(masks)), dtype="<u8"
        )
        absolute = np.repeat(np.abs(self._x[rows]).sum(axis=0), self._outputs)
        sums: Floats = _checked(self._active, _GRADIENT, self._side.open, numbers, masks, absolute)
        return sums.reshape(-1, self._outputs)

    def _encoded(self, batch: int, column: int) -> list[Any]:
        encoded = self._kept.get((batch, column))
        if encoded is None:
            encoded = self._side.encode(self._x[self.batches[batch], column])
            if self._keep:
                self._kept[batch, column] = encoded
        return encoded


def _checked(source: str, step: str, work: Any, *arguments: Any) -> Any:
    """`work(*arguments)`; what it refuses is laid to the peer whose message it was."""
    try:
        return work(*arguments)
    except BadMessage as error:
        raise BadFrame(source, step, str(error)) from None
